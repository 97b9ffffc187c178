"""The arms against each other as tables and in words."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import mean, median
from typing import Any

import numpy as np
import torch
from torchmetrics.functional.classification import multilabel_average_precision

from perpixel.evaluation import (
    IMAGES,
    SEEDS,
    Floats,
    ScoreDifference,
    class_iou,
    compare_scores,
    false_positive_rate,
    mean_iou,
    ratio,
)
from recipes.image_labels.maps import MapScores
from recipes.image_labels.settings import ARMS
from recipes.kit.settings import EvaluationSettings
from recipes.kit.summary import Section
from recipes.kit.tables import format_ends, format_number, markdown_table

FALSE, HALF, PEAK = "false-positive rate", "false positives at half recall", "maximum on the class"
ANSWERS = {  # verdict on both false-positive rows -> do unpooled features cut false positives?
    "helped": "Unpooled features cut false positives.",
    "hurt": "Unpooled features do not cut false positives: they make for more.",
    "better on these images": "On these images unpooled features make for fewer false positives; more is not shown.",
    "worse on these images": "On these images unpooled features make for more false positives; more is not shown.",
    "undecided": "It is not shown that unpooled features cut false positives.",
    "too few images": "There are too few images to say whether unpooled features cut false positives.",
}


def _matrices(scores: MapScores, weights: Floats) -> torch.Tensor:
    found: torch.Tensor = torch.einsum("rn,nij->rij", torch.from_numpy(weights), scores.confusion.double())
    return found


def _false(scores: MapScores, weights: Floats, *, background: int | None) -> Floats:
    rates = false_positive_rate(_matrices(scores, weights))
    if background is not None:
        rates[:, background] = torch.nan
    return rates.nanmean(-1).numpy()


def _recall(scores: MapScores, weights: Floats, *, background: int | None) -> Floats:
    confusion = _matrices(scores, weights)
    found = confusion.diagonal(dim1=-2, dim2=-1) / confusion.sum(-1)
    if background is not None:
        found[:, background] = torch.nan
    return found.nanmean(-1).numpy()


def _mean_of(scores: MapScores, weights: Floats, *, name: str) -> Floats:
    """Mean over all classes in all images."""
    values = getattr(scores, name).numpy()
    return ratio(weights @ np.nansum(values, 1), weights @ (~np.isnan(values)).sum(1))


@dataclass
class Results:
    """scores: by arm and seed; shares: of the training images that have each class; seconds: an epoch of each arm."""

    scores: Mapping[str, Mapping[int, MapScores]]
    classes: Sequence[str]
    background: int | None
    shares: Sequence[float]
    seconds: Mapping[str, Sequence[float]]
    parameters: Mapping[str, int]
    evaluation: EvaluationSettings

    def __post_init__(self) -> None:
        self.metrics: dict[str, Callable[[MapScores, Floats], Floats]] = {
            FALSE: partial(_false, background=self.background),
            HALF: partial(_mean_of, name="half"),
            "mIoU": lambda scores, weights: mean_iou(_matrices(scores, weights)).numpy(),
            PEAK: partial(_mean_of, name="peak"),
        }
        options: Any = {"level": self.evaluation.level, "resamples": self.evaluation.resamples}
        own = list(self.scores["stack"].values())
        self.differences: dict[str, list[ScoreDifference]] = {
            arm: compare_scores(
                list(self.scores[arm].values()), own, metrics=self.metrics, lower=(FALSE, HALF), **options
            )
            for arm in ("raw", "cam")
        }
        self.images = len(own[0].confusion)

    def arm(self, arm: str) -> dict[str, float]:
        """The means over seeds, in percent."""
        every, scores = np.ones((1, self.images)), list(self.scores[arm].values())
        of: dict[str, Any] = {**self.metrics, "recall": partial(_recall, background=self.background)}
        found = {name: 100 * mean(float(metric(one, every)[0]) for one in scores) for name, metric in of.items()}
        found["average precision"] = 100 * mean(map(self._image_precision, scores))
        return found | {"parameters": self.parameters[arm], "seconds": median(self.seconds[arm] or [float("nan")])}

    def _image_precision(self, scores: MapScores) -> float:
        """Mean average precision of the images' scores, over the classes that are in some and not in all."""
        some = self._varying()
        if len(some) < 2:
            return float("nan")
        given = scores.scores[:, some], scores.present[:, some].long()
        return float(multilabel_average_precision(*given, len(some), average="macro"))

    def _varying(self) -> list[int]:
        present = next(iter(self.scores["stack"].values())).present
        some = (present.any(0) & ~present.all(0)).nonzero().flatten().tolist()
        return [c for c in some if c != self.background]

    @property
    def chance(self) -> float:
        """The average precision of scores that know nothing, in percent."""
        present = next(iter(self.scores["stack"].values())).present
        return 100 * float(present[:, self._varying()].double().mean())

    def iou(self, arm: str) -> list[float]:
        """Per class, in percent, mean over seeds."""
        found = torch.stack([class_iou(one.confusion.sum(0)) for one in self.scores[arm].values()])
        return (100 * found.nanmean(0)).tolist()

    @property
    def verdict(self) -> str:
        """The answer, with its numbers."""
        by_rule, at_half = (self._row("raw", name) for name in (FALSE, HALF))
        said = f"{by_rule.describe('stack')} Where each finds half of a class, {at_half.describe('stack')}"
        answer = ANSWERS.get(at_half.verdict, "Nothing could be compared.")
        if by_rule.verdict != at_half.verdict:
            answer = "Whether unpooled features cut false positives has two answers here."
        return f"{answer} Against raw features: {said} {self._row('raw', 'mIoU').describe('stack')}"

    def _row(self, arm: str, metric: str) -> ScoreDifference:
        return next(one for one in self.differences[arm] if one.metric == metric)

    def sections(self) -> list[Section]:
        """The tables."""
        names = {"raw": "raw features", "cam": "CAM"}
        found = [
            Section(
                f"Restored features against {names[arm]}",
                [
                    *markdown_table(
                        ("percent", arm, "stack", "difference", "interval over images", "over seeds", "verdict"),
                        map(_cells, rows),
                        left=(0, 6),
                    ),
                ],
                note=f"stack: {ARMS['stack']}; {arm}: {ARMS[arm]}. Differences in points; of both false-positive rows "
                "less is better.",
            )
            for arm, rows in self.differences.items()
        ]
        columns = [FALSE, "recall", HALF, PEAK, "mIoU", "average precision"]
        rows = [(arm, self.arm(arm)) for arm in ARMS]
        cells = [
            (
                arm,
                *(format_number(row[name]) for name in columns),
                f"{int(row['parameters']):,}",
                format_number(row["seconds"]),
            )
            for arm, row in rows
        ]
        found.append(
            Section(
                "The arms",
                markdown_table(("percent", *columns, "parameters", "seconds per epoch"), cells),
                note="Means over seeds. Recall is the mean over classes of the pixels found; average precision that of "
                "the scores of the images, whether a class is in them: how well the image labels were learned "
                f"(scores that know nothing: {self.chance:.2f}).",
            )
        )
        ious = zip(*(self.iou(arm) for arm in ARMS))
        per_class = [
            (name, format_number(100 * share, 1), *map(format_number, values))
            for name, share, values in zip(self.classes, self.shares, ious)
        ]
        found.append(Section("Classes", markdown_table(("class", "% of images", *ARMS), per_class), self._presence()))
        found.append(Section("What this cannot say", self._limits()))
        return found

    def _presence(self) -> str:
        taught = [s for c, s in enumerate(self.shares) if c != self.background]
        always, never = sum(s > 0.95 for s in taught), sum(s == 0 for s in taught)
        text = (
            f"Share of training images that have the class, and IoU per class. {always} of {len(taught)} classes are "
        )
        text += "in more than 95 % of the images: a label that hardly ever differs teaches hardly anything."
        return text + (f" {never} are in none." if never else "")

    def _limits(self) -> list[str]:
        seeds = len(self.scores["stack"])
        return [
            f"- An effect is claimed (helped, hurt) from {IMAGES} images and {SEEDS} seeds on ({seeds} here), where "
            "both intervals exclude zero and Holm's correction for the rows of its table leaves it; else it is one on "
            "these images.",
            "- The false-positive rate is FP / (FP + TN) over pixels, one class against all others, mean over the "
            "classes but the background. It falls when less is labelled at all: read it beside recall. At half recall "
            "it does not: of a class in an image, the share of other pixels that lie above the median of its own.",
            "- Arms learn at different speeds: under one budget, the arm with the lower average precision has learned "
            "less. A class that is in more images than not and is not learned has positive maps everywhere, and is "
            "labelled wherever nothing else is.",
            "- The background comes of a rule: it is where no map reaches the threshold. Another one gives "
            "other rates.",
            "- Backbones start at random where no weights are given: published numbers come of pretrained ones.",
        ]

    def numbers(self) -> dict[str, Any]:
        """For results.json."""
        return {
            "stack against": {
                arm: [asdict(one) | {"seed_interval": one.seed_interval} for one in rows]
                for arm, rows in self.differences.items()
            },
            "arms": {arm: self.arm(arm) for arm in ARMS},
            "iou": {arm: dict(zip(self.classes, self.iou(arm))) for arm in ARMS},
            "share of training images": dict(zip(self.classes, self.shares)),
            "images": self.images,
            "seeds": list(self.scores["stack"]),
        }


def _cells(one: ScoreDifference) -> tuple[str, ...]:
    interval = format_ends(one.interval.low, one.interval.high, sign=True)
    over_seeds = format_ends(*one.seed_interval, sign=True) if one.seed_interval else "–"
    values = map(format_number, (one.control, one.treatment))
    return (one.metric, *values, format_number(one.interval.value, sign=True), interval, over_seeds, one.verdict)
