"""python -m recipes.evaluate: how good is a network, or every arm of a run, on any split of any data?"""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from perpixel.checks import complain
from perpixel.evaluation import IMAGES, ScoreDifference, SegmentationScores, pixel_accuracy, score_images
from perpixel.report import interval_chart
from recipes.evaluating.networks import Candidate, Loaded, check_model, find_candidates, load, name_classes
from recipes.evaluating.results import Arm, class_rows, compare_arms, image_rows, save
from recipes.evaluating.settings import EvaluateSettings
from recipes.kit.job import Job, settings_of_run
from recipes.kit.run_folder import CONFIG, save_figure
from recipes.kit.summary import Section, Summary, subject
from recipes.kit.tables import (
    CLAIM,
    difference_cells,
    format_interval,
    format_number,
    json_ready,
    markdown_table,
    markdown_text,
    save_csv,
)
from recipes.training.origin import keep, origin
from recipes.training.pictures import draw_predictions
from recipes.training.trainer import SCORES

DRAWN = 3  # arms in predictions.png
RATE = (
    "FPR: false-positive rate, the share of the pixels of other classes that are taken for the class; lower is better."
)


@dataclass
class EvaluateJob(Job):
    """Network by network: loaded, scored, put away; then intervals, comparison, pictures, summary."""

    recipe = "evaluate"
    settings_class = EvaluateSettings

    settings: EvaluateSettings
    candidates: list[Candidate] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    subject: str = ""  # networks and data, for titles

    @classmethod
    def read_settings(cls, parser: ArgumentParser, parsed: Namespace) -> EvaluateSettings:
        """The settings, checked, with the classes of the run where the data name none."""
        return name_classes(super().read_settings(parser, parsed))

    def prepare(self) -> None:
        """Find and load every network, so that mistakes show before anything is written."""
        settings = self.settings
        self.candidates = find_candidates(settings)
        if settings.run is not None:
            check_model(settings.model, settings_of_run(self.build_parser(), Path(settings.run)))
        source, count = self.images.sources["evaluation"]
        if len(source) > count:
            self.told.append(f"scored are the first {count} of {len(source)} images (data.eval_images)")
        files, models = origin(self)["data: evaluation files"], []
        for candidate in self.candidates:
            loaded = load(settings, candidate, self.images)
            models.append(loaded.model.name)
            self._tell(candidate, loaded, files)
        model = replace(settings.model, name=", ".join(dict.fromkeys(models)))
        self.subject = subject(replace(settings, model=model))

    def _tell(self, candidate: Candidate, loaded: Loaded, files: str) -> None:
        """What of this evaluation differs from that of the training, each once."""
        trained, found = loaded.trained, []
        size, now = trained.get("data.size"), self.settings.data.size
        if "data.size" in trained and (size and list(size)) != (now and list(now)):
            found.append(f"images are brought to {_size(now)}, in training to {_size(size)}")
        if candidate.part is not None and not (Path(f"{self.settings.run}") / candidate.part / SCORES).is_file():
            found.append(f"{candidate.part} has not been trained to its end")
        if files != "none" and files == trained.get("data: training files"):
            found.append("these are the images of the training: scores on images never seen are lower")
        self.told += [text for text in found if text not in self.told]

    def run(self) -> None:
        """Scores, numbers, pictures, summary; the last lines told are JSON, one per arm."""
        for text in self.told:
            self.progress.report(f"note: {text}")
        scored = [(candidate, *self._score(candidate)) for candidate in self.candidates]
        classes, evaluation, arms = self.images.classes, self.settings.evaluation, []
        for name, some in itertools.groupby(scored, lambda one: one[0].arm):
            networks, sources, scores = zip(*some)
            arms.append(Arm(name, [one.seed for one in networks], sources, scores, classes, evaluation))
        found, why_not = compare_arms(arms)
        if why_not:
            self.told.append(f"the arms are not compared: {why_not}")
        save(self.folder, arms, found, self._about())
        save_csv(self.folder / "images.csv", image_rows(arms, self._image_names()))
        self._summary(arms, found, self._draw(arms)).save(self.folder, self.progress)
        for arm in arms:
            self.progress.report(json.dumps(json_ready(arm.line() | {"results": f"{self.folder / 'results.json'}"})))

    def _score(self, candidate: Candidate) -> tuple[str, SegmentationScores]:
        """Where a network is from, and its scores: computed, or kept from before this run was stopped."""
        loaded, options = load(self.settings, candidate, self.images), self.settings.evaluation
        title = candidate.part or candidate.arm

        def compute() -> dict[str, Any]:
            batches = self.images.evaluation(batch_size=options.batch_size, far=options.far)
            scores = score_images(
                loaded.network,
                self.each(title, batches, self.images.evaluated, lambda batch: len(batch[0])),
                self.images.num_classes,
                ignore_index=self.images.ignore_index,
                boundary_share=options.boundary_share,
                device=self.fabric.device,
                autocast=self.fabric.autocast,
            )
            return vars(scores)

        loaded.network.to(self.fabric.device)
        began = origin(self, evaluation=options, model=loaded.model, weights=loaded.network.state_dict())
        path = self.folder / "scores" / f"{candidate.part or 'network'}.pt"
        scores = SegmentationScores(**keep(path, began, compute, self.progress.report))
        if not int(scores.confusion.sum()):
            void = self.images.ignore_index
            remedy = f"Void is {void}: check the values in the masks, and data.ignore_index."
            raise ValueError(
                complain("data", "labelled pixels in the masks", f"none in {len(scores.confusion)}", remedy)
            )
        return loaded.source, scores

    def _about(self) -> dict[str, Any]:
        data = self.settings.data
        return {
            "unit": "percent",
            "level": self.settings.evaluation.level,
            "data": {"name": data.name, "root": data.root, "split": data.eval_split, "size": data.size}
            | {"images": self.images.evaluated, "classes": list(self.images.classes)},
            "notes": self.told,
        }

    def _image_names(self) -> list[str]:
        source, count = self.images.sources["evaluation"]
        return [source.names(i)[0] if hasattr(source, "names") else f"{i}" for i in range(count)]

    def _draw(self, arms: Sequence[Arm]) -> dict[str, str]:
        """Chart of the classes, predictions of the first seed: their names and what they show."""
        settings, images = self.settings, self.images
        title = f"{settings.name}: {self.subject}, {settings.data.eval_split}"
        series = {arm.name: [(one.value, one.low, one.high) for one in arm.iou.values()] for arm in arms}
        shown = {"iou.png": f"IoU of every class, with {100 * settings.evaluation.level:g} % intervals over images"}
        save_figure(self.folder / "iou.png", interval_chart(images.classes, series, xlabel="IoU (%)", title=title))
        examples = select_examples(arms[0].scores[0], settings.evaluation.pictures)
        if not examples:
            return shown
        drawn = arms[:DRAWN]
        first = {arm.name: next(one for one in self.candidates if one.arm == arm.name) for arm in drawn}
        networks = {name: load(settings, one, images).network.eval() for name, one in first.items()}
        draw_predictions(self.folder / "predictions.png", networks, images, examples, title)
        seed = "" if drawn[0].seeds[0] is None else f", seed {drawn[0].seeds[0]},"
        what = f"typical, best and worst images of {drawn[0].name}{seed} by the share of pixels that are right"
        return {"predictions.png": what} | shown

    def _summary(self, arms: Sequence[Arm], found: Sequence[ScoreDifference], pictures: dict[str, str]) -> Summary:
        settings, names = self.settings, [arm.name for arm in arms]
        rows = [
            (metric, *(arm.metrics[metric].text() if metric in arm.metrics else "–" for arm in arms))
            for metric in dict.fromkeys(metric for arm in arms for metric in arm.metrics)
        ]
        classes = [
            (
                row["class"],
                format_number(row["pixels_percent"], 1),
                f"{row['images']}",
                *(format_interval(*(row[f"{name}/{end}"] for end in ("iou", "low", "high"))) for name in names),
                *(format_number(row[f"{name}/false_positive_rate"]) for name in names),
            )
            for row in class_rows(arms)
        ]
        head = ("class", "pixels %", "images", *(f"IoU {name}" for name in names), *(f"FPR {name}" for name in names))
        seeds = [f"- {markdown_text(arm.describe_seeds())}" for arm in arms if len(arm.scores) > 1]
        sections = [Section("Scores", [*markdown_table(("", *names), rows), *(["", *seeds] if seeds else [])])]
        if found:
            columns = ("", *names, "difference", "interval", "verdict")
            lines = [*markdown_table(columns, ((one.metric, *difference_cells(one)) for one in found), left=(0, 5)), ""]
            said = [found[0].describe_seeds()] if len(found[0].per_seed) > 1 else []
            lines += [f"- {markdown_text(text)}" for text in (*said, CLAIM)]
            sections.append(Section(f"{markdown_text(names[1])} against {markdown_text(names[0])}", lines))
        sections += [
            Section("IoU per class", markdown_table(head, classes), note=RATE, pictures=pictures),
            Section("What this does not say", [f"- {markdown_text(text)}" for text in self._limits(arms)]),
        ]
        split = f"split {settings.data.eval_split!r}"
        about = f"{self.subject}, {split}: {self.images.evaluated} images. Percent; intervals "
        about += f"({100 * settings.evaluation.level:g} %) over images."
        about += "".join(f" Note: {text}." for text in self.told)
        verdict = " ".join(arm.describe() for arm in arms[:2])
        verdict += f" {found[0].describe(names[1])}" if found else ""
        files = {
            "results.json": "all numbers of this page",
            "classes.csv": "the table of the classes",
            "images.csv": "scores of every image, to find those that go wrong",
            CONFIG: "the settings, with all defaults",
        }
        title = f"{markdown_text(settings.name)}: how good, on {markdown_text(split)}?"
        return Summary(title, markdown_text(about), markdown_text(verdict), sections, files)

    def _limits(self, arms: Sequence[Arm]) -> list[str]:
        size = _size(self.settings.data.size)
        single = any(len(arm.scores) == 1 for arm in arms)
        return [
            f"{self.images.evaluated} images are too few for intervals: what is said holds on these images."
            if self.images.evaluated < IMAGES
            else "The intervals cover the choice of the images, for these trained networks"
            + ("; not the luck of training, of which one network says nothing." if single else ".")
            + " Images that resemble each other, such as frames of a film, make them too narrow.",
            f"Scored at {size}, to which images and masks were brought."
            if self.settings.data.size
            else "Scored at the size of the masks.",
            "Interior: farther from labelled boundaries than the tolerance of the boundary F-score. Objects: connected "
            "pieces of one class in the labels, small below 1/300 of the image, large from 3/100 on (COCO's bounds as "
            "shares).",
            "If settings were chosen on these images, their scores are too good.",
        ]


def _size(size: Sequence[int] | None) -> str:
    return "their own size" if size is None else f"{size[0]} x {size[1]} pixels"


def select_examples(scores: SegmentationScores, count: int) -> list[tuple[int, str]]:
    """Images with the reason: in turns the median, the best and the worst by pixel accuracy, then those beside them."""
    shares = pixel_accuracy(scores.confusion)
    known = shares.isfinite().nonzero().flatten()
    order = known[shares[known].argsort(stable=True)].tolist()
    turns = itertools.cycle((("typical", lambda left: left // 2), ("best", lambda left: -1), ("worst", lambda left: 0)))
    chosen = []
    for _, (name, place) in zip(range(min(count, len(order))), turns):
        index = order.pop(place(len(order)))
        chosen.append((index, f"{name}\n{100 * float(shares[index]):.1f} % right"))
    return chosen
