"""What the scores of all arms show: metrics and classes with their intervals, and two arms compared."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import stdev
from typing import Any

import numpy as np
import torch

from perpixel.evaluation import (
    IMAGES,
    METRICS,
    Floats,
    ScoreDifference,
    SegmentationScores,
    bootstrap_images,
    compare_scores,
    mean_iou,
    pixel_accuracy,
    ratio,
    t_interval,
)
from recipes.kit.settings import EvaluationSettings
from recipes.kit.tables import Row, format_ends, format_interval, format_number, save_csv, save_json

OfNetwork = Callable[[SegmentationScores, Floats], Floats]


@dataclass(frozen=True)
class Measured:
    """A score in percent, mean over the networks of an arm, with its interval over images, and by seed.

    Its ends are NaN where fewer than IMAGES images have a say.
    """

    value: float
    low: float
    high: float
    by_seed: tuple[float, ...]
    seed_interval: tuple[float, float] | None

    def text(self) -> str:
        """ "76.26 [75.10, 77.31]"."""
        return format_interval(self.value, self.low, self.high)


@dataclass
class Arm:
    """Networks of one name, by seed (None: one for all), where they are from, and their scores."""

    name: str
    seeds: Sequence[int | None]
    sources: Sequence[str]
    scores: Sequence[SegmentationScores]
    classes: Sequence[str]
    evaluation: EvaluationSettings

    def __post_init__(self) -> None:
        self.metrics = {name: self._measure(metric) for name, metric in METRICS.items()}
        self.metrics = {name: found for name, found in self.metrics.items() if found.value == found.value}
        self.iou = {name: self._measure(_iou_of(number)) for number, name in enumerate(self.classes)}
        rates = torch.stack([one.false_positive_rate for one in self.scores]).mean(0)
        self.false_positives = dict(zip(self.classes, (100 * rates).tolist()))

    def _measure(self, metric: OfNetwork) -> Measured:
        images, options = len(self.scores[0].confusion), self.evaluation

        def values(weights: Floats) -> Floats:
            return np.stack([100 * metric(one, weights) for one in self.scores])

        by_seed = values(np.ones((1, images)))[:, 0]
        value, low, high = float(_known_mean(by_seed)), np.nan, np.nan
        if images >= IMAGES and value == value:
            found = bootstrap_images(
                lambda weights: _known_mean(values(weights)), images, level=options.level, resamples=options.resamples
            )
            if found.images >= IMAGES:
                low, high = found.low, found.high
        known = [one for one in by_seed.tolist() if one == one]
        return Measured(value, low, high, tuple(by_seed.tolist()), t_interval(known, options.level))

    def line(self) -> dict[str, Any]:
        """What is printed: mIoU and IoU of every class in percent, without intervals."""
        line: dict[str, Any] = {"arm": self.name, "unit": "percent", "miou": self.metrics["mIoU"].value}
        line |= {"iou": {name: found.value for name, found in self.iou.items()}}
        return line | {"images": len(self.scores[0].confusion), "seeds": list(self.seeds)}

    def numbers(self) -> dict[str, Any]:
        """`line`, every metric and class with its interval, and the weights."""
        classes = {
            name: asdict(found) | {"false_positive_rate": self.false_positives[name]}
            for name, found in self.iou.items()
        }
        metrics = {name: asdict(found) for name, found in self.metrics.items()}
        return self.line() | {"weights": list(self.sources), "metrics": metrics, "classes": classes}

    def describe(self) -> str:
        """mIoU in a sentence."""
        seeds = f", mean of {len(self.scores)} seeds" if len(self.scores) > 1 else ""
        return f"{self.name}: mIoU {self.metrics['mIoU'].text()}{seeds}."

    def describe_seeds(self) -> str:
        """mIoU of two or more seeds: each, spread, and from three on the t interval of the mean."""
        found = self.metrics["mIoU"]
        text = f"{self.name}: mIoU by seed {', '.join(map(format_number, found.by_seed))}"
        text += f"; standard deviation {stdev(found.by_seed):.2f}"
        if found.seed_interval is not None:
            text += f", {100 * self.evaluation.level:g} % t-interval of the mean {format_ends(*found.seed_interval)}"
        return f"{text}."


def _iou_of(number: int) -> OfNetwork:
    def iou(scores: SegmentationScores, weights: Floats) -> Floats:
        hits = scores.confusion[:, number, number]
        either = scores.confusion[:, number].sum(1) + scores.confusion[:, :, number].sum(1) - hits
        return ratio(*(weights @ np.stack([hits.numpy(), either.numpy()], 1).astype(np.float64)).T)

    return iou


def _known_mean(values: Floats) -> Floats:
    """Mean over the first axis of what is not NaN."""
    return torch.from_numpy(values).nanmean(0).numpy()


def compare_arms(arms: Sequence[Arm]) -> tuple[list[ScoreDifference], str]:
    """The second of two arms against the first, seed by seed, or nothing and why not.

    A network that is one for all seeds, such as a start, is compared with each.
    """
    if len(arms) != 2:
        return [], ""
    control, treatment = arms
    count = max(len(control.scores), len(treatment.scores))
    (one, other) = (list(a.scores) * (count if a.seeds[0] is None else 1) for a in arms)
    seeds = [a.seeds for a in arms if a.seeds[0] is not None]
    if len(one) != len(other) or (len(seeds) == 2 and seeds[0] != seeds[1]):
        return [], f"{control.name} has seeds {list(control.seeds)}, {treatment.name} {list(treatment.seeds)}"
    options = control.evaluation
    if len(control.scores[0].confusion) < 2:
        return [], "there is one image"
    return compare_scores(one, other, level=options.level, resamples=options.resamples), ""


def class_rows(arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """A row per class: share of the labelled pixels, images it is labelled in, and the scores of every arm."""
    labelled = arms[0].scores[0].confusion.sum(2)
    shares = (100 * labelled.sum(0) / max(int(labelled.sum()), 1)).tolist()
    rows = []
    for number, name in enumerate(arms[0].classes):
        row: dict[str, Any] = {"class": name, "pixels_percent": shares[number]}
        row["images"] = int((labelled[:, number] > 0).sum())
        for arm in arms:
            found = arm.iou[name]
            row |= {f"{arm.name}/iou": found.value, f"{arm.name}/low": found.low, f"{arm.name}/high": found.high}
            row[f"{arm.name}/false_positive_rate"] = arm.false_positives[name]
        rows.append(row)
    return rows


def image_rows(arms: Sequence[Arm], names: Sequence[str]) -> list[Row]:
    """A row per image, arm and seed."""
    rows: list[Row] = []
    for arm in arms:
        for seed, scores in zip(arm.seeds, arm.scores):
            columns = pixel_accuracy(scores.confusion), mean_iou(scores.confusion), scores.boundary
            for name, *values in zip(names, *(column.tolist() for column in columns)):
                keys = ("pixel_accuracy", "miou", "boundary_f")
                rows.append(
                    {"image": name, "arm": arm.name, "seed": "" if seed is None else seed, **dict(zip(keys, values))}
                )
    return rows


def save(folder: Path, arms: Sequence[Arm], found: Sequence[ScoreDifference], about: Mapping[str, Any]) -> None:
    """results.json and classes.csv."""
    differences = [asdict(one) | {"seed_interval": one.seed_interval} for one in found]
    content = {**about, "arms": {arm.name: arm.numbers() for arm in arms}, "difference": differences}
    save_json(folder / "results.json", content, indent=2)
    save_csv(folder / "classes.csv", class_rows(arms))
