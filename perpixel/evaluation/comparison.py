"""A control against a treatment, scored on the same images: differences, their intervals, and what they show."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch

from perpixel.checks import check_number, check_option, complain
from perpixel.evaluation.per_image import SegmentationScores
from perpixel.evaluation.segmentation import SIZES, mean_false_positive_rate, mean_iou, pixel_accuracy
from perpixel.evaluation.statistics import BootstrapInterval, Floats, bootstrap_images, ratio, verdicts

Metric = Callable[[SegmentationScores, Floats], Floats]


def _matrices(scores: SegmentationScores, weights: Floats) -> torch.Tensor:
    classes = scores.confusion.shape[-1]
    return torch.from_numpy(weights @ scores.confusion.flatten(1).double().numpy()).view(-1, classes, classes)


def _boundary(scores: SegmentationScores, weights: Floats) -> Floats:
    values = scores.boundary.numpy()
    known = ~np.isnan(values)
    return ratio(weights[:, known] @ values[known], weights[:, known].sum(1))


def _counted(counts: torch.Tensor | None, weights: Floats) -> Floats:
    """The quotient of both columns (N, 2), summed over images first."""
    if counts is None:
        return np.full(len(weights), np.nan)
    return ratio(*(weights @ counts.double().numpy()).T)


def _of_size(size: int) -> Metric:
    return lambda scores, weights: _counted(
        None if scores.objects is None else scores.objects[:, :, size].sum(1), weights
    )


SEEDS = 5  # of training from which on an effect may be claimed

# name -> value in [0, 1] from scores and weights (R, N), how often each image counts; higher is better but in LOWER
METRICS: dict[str, Metric] = {
    "mIoU": lambda scores, weights: mean_iou(_matrices(scores, weights)).numpy(),
    "pixel accuracy": lambda scores, weights: pixel_accuracy(_matrices(scores, weights)).numpy(),
    "boundary F": _boundary,
    "accuracy far from the head": lambda scores, weights: _counted(scores.far, weights),
    "interior accuracy": lambda scores, weights: _counted(scores.interior, weights),
    **{f"IoU of {size} objects": _of_size(number) for number, size in enumerate(SIZES)},
    "false-positive rate": lambda scores, weights: mean_false_positive_rate(_matrices(scores, weights)).numpy(),
}
COMPARED = ("mIoU", "pixel accuracy", "boundary F", "accuracy far from the head")  # each more corrects all the others
LOWER = ("false-positive rate",)


def mean_score(metric: str, scores: Sequence[SegmentationScores]) -> float:
    """Mean over networks (seeds) of one of METRICS on all images, in percent; NaN where it is undefined."""
    return 100 * mean(float(METRICS[metric](one, np.ones((1, len(one.confusion))))[0]) for one in scores)


@dataclass(frozen=True)
class ScoreDifference:
    """One metric in percent, means over the seeds; interval and per_seed: treatment minus control, in points.

    verdict: `verdicts` of the table that this is a row of; helped or hurt only where both the interval over images and
    that over SEEDS seeds or more (Student's t) exclude zero, with the larger of the two p values; else better or worse
    on these images, undecided, or too few images. lower: a fall is what helps.
    """

    metric: str
    control: float
    treatment: float
    interval: BootstrapInterval
    per_seed: tuple[float, ...]
    verdict: str = "undecided"
    lower: bool = False

    @property
    def seed_interval(self) -> tuple[float, float] | None:
        """`t_interval` of the mean over seeds, at the level of the interval over images."""
        return t_interval(self.per_seed, self.interval.level)

    def describe(self, treatment: str) -> str:
        """A sentence: difference, interval over images, verdict."""
        interval = self.interval
        text = f"{self.metric}: {interval.value:+.2f} points, {_interval(interval.level, interval.low, interval.high)}"
        text += f" {'excludes' if interval.excludes_null else 'includes'} zero"
        if self.verdict in ("undecided", "too few images", "undefined"):
            return f"{text}: {self.verdict}."
        claimed = self.verdict in ("helped", "hurt")
        return f"{text}: the {treatment} {self.verdict if claimed else f'is {self.verdict}'}."

    def describe_seeds(self) -> str:
        """A sentence on two or more seeds: each difference, mean, spread, and from three on `seed_interval`."""
        text = f"{self.metric} by seed: {', '.join(f'{d:+.2f}' for d in self.per_seed)}; "
        text += f"mean {mean(self.per_seed):+.2f}, standard deviation {stdev(self.per_seed):.2f}"
        if self.seed_interval is not None:
            low, high = self.seed_interval
            verdict = "excludes zero" if low > 0 or high < 0 else "includes zero: another seed might tell another story"
            text += f", {_interval(self.interval.level, low, high, 't-interval of the mean')}, which {verdict}"
        better = sum(d < 0 if self.lower else d > 0 for d in self.per_seed)
        return f"{text}. Better in {better} of {len(self.per_seed)} seeds."


def _interval(level: float, low: float, high: float, kind: str = "interval") -> str:
    return f"{100 * level:g} % {kind} [{low:+.2f}, {high:+.2f}]"


def compare_scores(
    control: Sequence[Any],
    treatment: Sequence[Any],
    *,
    metrics: Sequence[str] | Mapping[str, Callable[[Any, Floats], Floats]] = COMPARED,
    lower: Sequence[str] = LOWER,
    level: float = 0.95,
    resamples: int = 4999,
) -> list[ScoreDifference]:
    """The differences of those of METRICS that are defined: both scored on the same resamples of the same images.

    control, treatment: one or more networks each, the same seed at the same place. With several seeds their mean
    difference is resampled. metrics: names of METRICS, or further ones by name, in [0, 1], of scores of any kind that
    have a `confusion` per image. Of `lower` a fall is what helps. Errors: none, not equally many, not the same number
    of images, an unknown metric.
    """
    if not isinstance(metrics, Mapping):
        metrics = {check_option("metrics", name, METRICS): METRICS[name] for name in metrics}
    if not control or len(control) != len(treatment) or len({len(s.confusion) for s in (*control, *treatment)}) > 1:
        came = f"{len(control)} and {len(treatment)}, of {[len(s.confusion) for s in (*control, *treatment)]} images"
        expected = "equally many scores, at least one, of the same images"
        raise ValueError(complain("control, treatment", expected, came, "Score all networks on one set of images."))
    images = len(control[0].confusion)
    every = np.ones((1, images))

    def compare(name: str, metric: Callable[[Any, Floats], Floats]) -> ScoreDifference:
        before, after = (100 * mean(float(metric(one, every)[0]) for one in of) for of in (control, treatment))

        def differences(weights: Floats) -> Floats:
            return np.stack([100 * (metric(b, weights) - metric(a, weights)) for a, b in zip(control, treatment)])

        interval = bootstrap_images(lambda w: differences(w).mean(0), images, level=level, resamples=resamples)
        per_seed = tuple(differences(every)[:, 0].tolist())
        return ScoreDifference(name, before, after, interval, per_seed, lower=name in lower)

    found = [compare(*item) for item in metrics.items()]
    return judged([one for one in found if not np.isnan(one.control)])


def judged(table: Sequence[ScoreDifference]) -> list[ScoreDifference]:
    """The differences, of several treatments say, with the verdicts of one table of them all."""
    words = verdicts([_over_seeds(one) for one in table], "more", "less")
    return [replace(one, verdict=_in_words(word, one.lower)) for one, word in zip(table, words)]


def _in_words(word: str, lower: bool) -> str:
    """What "more" and "less", alone or "on these images", mean for a metric."""
    kind, *rest = word.split(" ", 1)
    if kind not in ("more", "less"):
        return word
    good = (kind == "more") != lower
    return f"{'better' if good else 'worse'} {rest[0]}" if rest else "helped" if good else "hurt"


def _over_seeds(difference: ScoreDifference) -> BootstrapInterval:
    """The interval over images with a p value that is also that over seeds: 1 below SEEDS of them."""
    interval, seeds = difference.interval, difference.per_seed
    if len(seeds) < SEEDS or interval.value * mean(seeds) <= 0:
        return replace(interval, p_value=1.0)
    from scipy.stats import ttest_1samp

    spread = stdev(seeds)
    return replace(interval, p_value=max(interval.p_value, float(ttest_1samp(seeds, 0).pvalue) if spread else 0.0))


def t_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float] | None:
    """Student's t interval of the mean; None for fewer than three values."""
    check_number("level", level, low=0, high=1, open_low=True, open_high=True)
    if len(values) < 3:
        return None
    from scipy.stats import t

    reach = t.ppf(0.5 + level / 2, len(values) - 1) * stdev(values) / len(values) ** 0.5
    return mean(values) - float(reach), mean(values) + float(reach)
