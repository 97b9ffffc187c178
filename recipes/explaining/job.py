"""python -m recipes.explain: which context decides which labels, beside what a network with random weights shows?"""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import nn

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
from recipes.explaining.summary import summary
from recipes.kit.job import Job
from recipes.kit.networks import random_network
from recipes.kit.run_folder import save_figure, write_atomically
from recipes.kit.tables import save_csv, save_json
from recipes.training.checkpoints import load_or_compute
from recipes.training.pretraining import load_network, train_network

Item = TypeVar("Item")


@dataclass
class ExplainJob(Job):
    """The way of an image: chosen, read with its regions, explained by every network, measured, drawn, told."""

    recipe = "explain"
    settings_class = ExplainSettings
    nested = "ask.labels"
    example = "--run RUN_FOLDER --ask.labels [pedestrian,pavement]"

    loaded: tuple[nn.Module, str] | None = None
    selection: Selection | None = None
    files: dict[str, str] = field(default_factory=dict)  # pictures written -> what they show
    warnings: list[str] = field(default_factory=list)

    def prepare(self) -> None:
        """Read the weights and try the settings, so that mistakes show before anything is written."""
        settings, images = self.settings, self.images
        named_labels(images, settings.ask)
        self.loaded = load_network(settings, images.num_classes)
        network = random_network(settings.model, images.num_classes, 0, [])
        check_methods(network, settings.maps, self.fabric.device)
        if self.loaded is None:
            images.steps_per_epoch(settings.pretrain.batch_size)
        else:
            self.selection = self._select(self.loaded[0])

    def run(self) -> None:
        """Network and controls; drawn images, measured images; tables, charts, summary."""
        settings, images, device = self.settings, self.images, self.fabric.device
        network, weights = self.loaded or train_network(self, self.folder / "training")
        selection = self.selection or self._select(network)
        networks = {TRAINED: network, **self._random_networks(selection)}
        reader, explainer = ImageReader(settings, images, network, device), Explainer(settings, device)
        measurements = [kind(explainer, images) for kind in MEASUREMENTS]

        drawn = reader.drawn(selection)
        drawn_rows: dict[str, Rows] = {measurement.name: [] for measurement in measurements}
        for image in self._each("drawn images", drawn):
            with self._collecting_warnings():
                explanations = list(explainer.explain(networks, image, settings.maps.methods))
                rows = measure(explanations, measurements)
            _append(drawn_rows, rows)
            for measurement in measurements:
                self._save_figures(measurement.figures(explanations, rows))
            if settings.explorer:
                write_explorer(self.folder, explanations[0], settings, images, weights)

        chosen = selection.measured if settings.measure.images else []
        measured = [reader.evaluation(number, selection.labels) for number in chosen]
        everywhere = [measurement for measurement in measurements if not measurement.drawn_only]
        measured_rows: dict[str, Rows] = {measurement.name: [] for measurement in everywhere}
        for image in self._each("measured images", measured):
            with self._collecting_warnings():
                _append(measured_rows, self.measured(explainer, networks, image, everywhere))

        labels = [images.classes[c] for c in selection.labels]
        names = [image.name for image in measured or drawn]
        results = Results(names, labels, measured_rows if measured else drawn_rows, drawn_rows)
        self._conclude(measurements, results, drawn, weights)

    def measured(
        self,
        explainer: Explainer,
        networks: dict[str, nn.Module],
        image: ExplainedImage,
        measurements: Sequence[Measurement],
    ) -> dict[str, Rows]:
        """What is measured on one image, or what was before this run was stopped."""
        path = self.folder / "measured" / f"{image.file_name}.pt"
        methods = self.settings.measured_methods
        return load_or_compute(
            path, lambda: measure(explainer.explain(networks, image, methods), measurements), self.progress.report
        )

    def _conclude(
        self, measurements: Sequence[Measurement], results: Results, drawn: Sequence[ExplainedImage], weights: str
    ) -> None:
        tables: dict[str, str] = {}
        for measurement in measurements:
            for name, (rows, what) in measurement.tables(results).items():
                results.tables[name] = rows
                if rows:
                    save_csv(self.folder / f"{name}.csv", rows)
                    tables[f"{name}.csv"] = what
            self._save_figures(measurement.charts(results))
        least = self.settings.ask.least
        missing = "none of the labels asked about is predicted on {} pixels there: no maps are drawn of it"
        told = [*dict.fromkeys(self.warnings), *(f"{i.name}: {missing.format(least)}" for i in drawn if not i.regions)]
        names = [image.name for image in drawn]
        numbers = {"about": weights, "asked": results.labels, "measured": results.images, "drawn": names}
        save_json(self.folder / "numbers.json", {**numbers, "warnings": told, **results.tables})
        text = summary(
            self.settings,
            results,
            [section for measurement in measurements if (section := measurement.section(results))],
            weights=weights,
            drawn=names,
            warnings=told,
            files={**self.files, **tables, "numbers.json": "all tables in one"},
        )
        write_atomically(self.folder / "summary.md", text.encode())
        self.progress.report(text)
        self.progress.report(f"Summary, tables, pictures and pages: {self.folder}")

    def _select(self, network: nn.Module) -> Selection:
        counts = count_predicted(network.to(self.fabric.device).eval(), self.fabric.device, self.images)
        return select_images(self.settings, self.images, *counts)

    def _random_networks(self, selection: Selection) -> dict[str, nn.Module]:
        """The controls, whose normalisation layers know the statistics of some of the images."""
        some = (selection.measured or list(selection.drawn))[:32] or list(range(min(8, self.images.evaluated)))
        batches = [batch for _, batch, _, _ in self.images.evaluation(batch_size=8, far=0.0, only=some)]
        return {
            f"{RANDOM} {seed}": random_network(self.settings.model, self.images.num_classes, seed, batches).to(
                self.fabric.device
            )
            for seed in self.settings.measure.random_seeds
        }

    def _each(self, title: str, items: Sequence[Item]) -> Iterator[Item]:
        """The items, with a bar; stops between two of them where that is asked for."""
        self.progress.begin(title, 0, len(items))
        try:
            for number, item in enumerate(items):
                yield item
                self.progress.advance(number + 1, {}, 0.0)
                self.stop_if_asked()
        finally:
            self.progress.end()

    @contextmanager
    def _collecting_warnings(self) -> Iterator[None]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            yield
        self.warnings += [str(w.message).strip() for w in caught if issubclass(w.category, UserWarning)]

    def _save_figures(self, figures: Iterable[Figure]) -> None:
        for name, figure, what in figures:
            save_figure(self.folder / f"{name}.png", figure)
            self.files[f"{name}.png"] = what


def measure(explanations: Iterable[Explanation], measurements: Sequence[Measurement]) -> dict[str, Rows]:
    """The rows of one image, by measurement."""
    rows: dict[str, Rows] = {measurement.name: [] for measurement in measurements}
    for explanation in explanations:
        for measurement in measurements:
            rows[measurement.name] += measurement.measure(explanation)
    return rows


def _append(rows: dict[str, Rows], of_image: dict[str, Any]) -> None:
    for name, mine in rows.items():
        mine += of_image[name]
