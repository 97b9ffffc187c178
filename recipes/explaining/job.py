"""python -m recipes.explain: which context decides which labels, beside what a network with random weights shows?"""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from torch import nn

from perpixel.checks import complain
from recipes.explaining.explorer import write_explorer
from recipes.explaining.images import (
    ExplainedImage,
    ImageReader,
    Selection,
    count_predicted,
    named_labels,
    select_images,
)
from recipes.explaining.maps import RANDOM, TRAINED, Explainer, Explanation, check_methods
from recipes.explaining.measurements import MEASUREMENTS, Figure, Measurement, Results, Rows
from recipes.explaining.settings import ExplainSettings
from recipes.explaining.statistics import count
from recipes.explaining.summary import limits
from recipes.kit.command_line import named
from recipes.kit.job import Job
from recipes.kit.networks import random_network
from recipes.kit.run_folder import save_figure
from recipes.kit.summary import Section, Summary, subject
from recipes.kit.tables import markdown_text, save_csv, save_json
from recipes.training.origin import Origin, keep, origin
from recipes.training.pretraining import load_network, train_network


@dataclass
class ExplainJob(Job):
    """The way of an image: chosen, read with its regions, explained by every network, measured, drawn, summarised."""

    recipe = "explain"
    settings_class = ExplainSettings

    loaded: tuple[nn.Module, str] | None = None
    selection: Selection | None = None
    origin: Origin = field(default_factory=dict)  # what all that is measured depends on
    warnings: list[str] = field(default_factory=list)
    pages: dict[str, str] = field(default_factory=dict)  # explorers written -> what they show
    files: dict[str, str] = field(default_factory=dict)  # tables
    pictures: dict[str, dict[str, str]] = field(default_factory=dict)  # by measurement

    def prepare(self) -> None:
        """Read the weights and try the settings, so that mistakes show before anything is written."""
        settings, images = self.settings, self.images
        named_labels(images, settings.ask)
        self._check_patch()
        self.loaded = load_network(settings, images.channels, images.classes)
        with named("", method="maps.methods"):
            check_methods(random_network(settings.model, images.channels, 0, []), settings.maps, self.fabric.device)
        if self.loaded is None:
            with named("pretrain."):
                images.steps_per_epoch(settings.pretrain.batch_size)
        else:
            self.selection = self._select(self.loaded[0])

    def run(self) -> None:
        """Network and controls; drawn images, measured images; tables, charts, summary."""
        settings, images, device = self.settings, self.images, self.fabric.device
        network, weights = self.loaded or train_network(self, self.folder / "training")
        parts = {name: getattr(settings, name) for name in ("seed", "ask", "maps", "measure")}
        self.origin = origin(self, **parts, weights=network.state_dict())
        selection = self.selection or self._select(network)
        networks = {TRAINED: network, **self._random_networks(selection)}
        explainer = Explainer(settings, networks, device, self.stop_if_asked)
        reader = ImageReader(settings, images, network, device)
        measurements = [kind(explainer, images) for kind in MEASUREMENTS]

        drawn, of_drawn = reader.drawn(selection), []
        for image in self.each("drawn images", drawn, len(drawn)):
            with self._collecting_warnings():
                explanations = list(explainer.explain(image, settings.maps.methods))
                of_drawn.append(measure(explanations, measurements))
            for measurement in measurements:
                self._save_figures(measurement.name, measurement.figures(explanations, of_drawn[-1]))
            if settings.explorer:
                page = write_explorer(self.folder, explanations[0], settings, images, weights)
                self.pages[page.name] = f"{image.name}, to click through: which patches decide a pixel's label?"

        chosen = selection.measured if settings.measure.images else []
        measured, of_measured = [reader.evaluation(number, selection.labels) for number in chosen], []
        everywhere = [measurement for measurement in measurements if not measurement.drawn_only]
        for image in self.each("measured images", measured, len(measured)):
            with self._collecting_warnings():
                of_measured.append(self.measured(explainer, image, everywhere))

        pooled = _joined(of_drawn)
        results = Results(
            weights=weights,
            labels=[images.classes[c] for c in selection.labels],
            images=[image.name for image in measured or drawn],
            drawn_images=[image.name for image in drawn],
            measured=_joined(of_measured) if measured else pooled,
            drawn=pooled,
        )
        missing = f"none of the labels asked about is predicted on {settings.ask.least} pixels there"
        self.warnings += [f"{i.name}: {missing}: no maps are drawn of it" for i in drawn if not i.regions]
        self._conclude(measurements, results)

    def measured(
        self, explainer: Explainer, image: ExplainedImage, measurements: Sequence[Measurement]
    ) -> dict[str, Rows]:
        """What is measured on one image, or what was before this run was stopped."""
        explanations = explainer.explain(image, self.settings.measured_methods)  # a generator: nothing is done yet
        path = self.folder / "measured" / f"{image.file_name}.pt"
        return keep(path, self.origin, lambda: measure(explanations, measurements), self.progress.report)

    def _conclude(self, measurements: Sequence[Measurement], results: Results) -> None:
        for measurement in measurements:
            for name, (rows, what) in measurement.tables(results).items():
                results.tables[name] = rows
                if rows:
                    save_csv(self.folder / f"{name}.csv", rows)
                    self.files[f"{name}.csv"] = what
            self._save_figures(measurement.name, measurement.charts(results))
        self.files["numbers.json"] = "all tables in one"
        distinct = list(dict.fromkeys(self.warnings))
        numbers = {"about": results.weights, "asked": results.labels, "measured": results.images}
        numbers |= {"drawn": results.drawn_images, "warnings": distinct}
        save_json(self.folder / "numbers.json", numbers | results.tables)
        self._summary(measurements, results, distinct).save(self.folder, self.progress)

    def _summary(self, measurements: Sequence[Measurement], results: Results, warned: Sequence[str]) -> Summary:
        settings, patch, sections = self.settings, self.settings.maps.patch, list[Section]()
        for measurement in measurements:
            if section := measurement.section(results):
                sections.append(replace(section, pictures=self.pictures.get(measurement.name, {})))
        sections += [
            Section("Warnings", [f"- {markdown_text(warning)}" for warning in warned]),
            Section("What this does not say", [f"- {limit}" for limit in limits(settings, len(results.images))]),
        ]
        labels = markdown_text(", ".join(results.labels)) if len(results.labels) < 5 else "the labels"
        about = (
            f"{markdown_text(subject(settings))}, weights from {markdown_text(results.weights)}. Measured "
            f"on {count(len(results.images), 'image')}; drawn: {markdown_text(', '.join(results.drawn_images))}. "
            f"Patches: {f'{patch} pixels' if patch else 'an eighth of the shorter side'}. A region is where the "
            "network predicts the label. Beside every number stands that of a network with random weights."
        )
        said = " ".join(text for measurement in measurements if (text := measurement.verdict(results)))
        title = f"{markdown_text(settings.name)}: what decides {labels}?"
        return Summary(title, about, said, sections, self.files, self.pages)

    def _check_patch(self) -> None:
        """ValueError where patch or stride exceed the first evaluation image: nothing would be compared on it."""
        side = min(self.images.evaluation_sample(0)[0].shape[-2:])
        for name in ("patch", "stride"):
            if (getattr(self.settings.maps, name) or 1) > side:
                expected, came = f"at most {side}, the shorter side of the images", getattr(self.settings.maps, name)
                raise ValueError(complain(f"maps.{name}", expected, came, "Make it smaller."))

    def _select(self, network: nn.Module) -> Selection:
        counts = count_predicted(network.to(self.fabric.device).eval(), self.fabric.device, self.images)
        return select_images(self.settings, self.images, *counts)

    def _random_networks(self, selection: Selection) -> dict[str, nn.Module]:
        """The controls, whose normalisation layers know the statistics of some of the images."""
        settings, classes = self.settings, self.images.channels
        some = (selection.measured or list(selection.drawn))[:32] or list(range(min(8, self.images.evaluated)))
        batches = [batch for _, batch, _, _ in self.images.evaluation(batch_size=8, far=0.0, only=some)]
        return {
            f"{RANDOM} {seed}": random_network(settings.model, classes, seed, batches).to(self.fabric.device)
            for seed in settings.measure.random_seeds
        }

    @contextmanager
    def _collecting_warnings(self) -> Iterator[None]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            yield
        self.warnings += [str(w.message).strip() for w in caught if issubclass(w.category, UserWarning)]

    def _save_figures(self, measurement: str, figures: Iterable[Figure]) -> None:
        for name, figure, what in figures:
            save_figure(self.folder / f"{name}.png", figure)
            self.pictures.setdefault(measurement, {})[f"{name}.png"] = what


def measure(explanations: Iterable[Explanation], measurements: Sequence[Measurement]) -> dict[str, Rows]:
    """The rows of one image, by measurement."""
    rows: dict[str, Rows] = {measurement.name: [] for measurement in measurements}
    for explanation in explanations:
        for measurement in measurements:
            rows[measurement.name] += measurement.measure(explanation)
    return rows


def _joined(images: Sequence[dict[str, Rows]]) -> dict[str, Rows]:
    return {name: [row for rows in images for row in rows[name]] for name in images[0]}
