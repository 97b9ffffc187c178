"""Control against loss: the table, and in words what it does and does not show."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import numpy as np
import torch
from rich.table import Table

from perpixel.evaluation import BootstrapInterval, SegmentationScores, bootstrap_images, mean_iou, pixel_accuracy
from recipes.kit.run_folder import write_atomically
from recipes.kit.settings import EvaluationSettings

Arms = Mapping[str, SegmentationScores]  # "control" and "loss" of one seed
Statistic = Callable[[SegmentationScores, Any], Any]


def _matrices(scores: SegmentationScores, weights: Any) -> torch.Tensor:
    classes = scores.confusion.shape[-1]
    return torch.from_numpy(weights @ scores.confusion.flatten(1).double().numpy()).view(-1, classes, classes)


def _boundary(scores: SegmentationScores, weights: Any) -> Any:
    values = scores.boundary.numpy()
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return weights[:, known] @ values[known] / weights[:, known].sum(1)


def _far(scores: SegmentationScores, weights: Any) -> Any:
    if scores.far is None:
        return np.full(len(weights), np.nan)
    right, counted = (weights @ scores.far.double().numpy()).T
    with np.errstate(invalid="ignore", divide="ignore"):
        return right / counted


STATISTICS: dict[str, Statistic] = {
    "mIoU": lambda scores, weights: mean_iou(_matrices(scores, weights)).numpy(),
    "pixel accuracy": lambda scores, weights: pixel_accuracy(_matrices(scores, weights)).numpy(),
    "boundary F": _boundary,
    "far-body accuracy": _far,
}


@dataclass
class Line:
    """One metric, in percent (differences in points), means over the seeds."""

    metric: str
    start: float
    control: float
    loss: float
    interval: BootstrapInterval
    per_seed: list[float]

    @property
    def difference(self) -> float:
        """Loss minus control, in points."""
        return self.interval.value

    @property
    def verdict(self) -> str:
        """helped, hurt or undecided: whether the interval excludes zero, and on which side."""
        if not self.interval.excludes_zero:
            return "undecided"
        return "helped" if self.difference > 0 else "hurt"


@dataclass
class Comparison:
    """All metrics, seconds per epoch of the two arms, and what was compared."""

    lines: list[Line]
    seconds: dict[str, float]
    seeds: list[int]
    images: int
    loss: str
    shared_start: bool
    iou: dict[str, dict[str, float]]


def compare(
    starts: Mapping[int, SegmentationScores],
    arms: Mapping[int, Arms],
    seconds: Mapping[str, list[float]],
    *,
    classes: list[str],
    evaluation: EvaluationSettings,
    loss: str,
    shared_start: bool,
) -> Comparison:
    """Score both arms on the same resamples of the same images; with several seeds the mean difference is resampled."""
    seeds = list(arms)
    images = len(arms[seeds[0]]["control"].confusion)
    everything = np.ones((1, images))
    lines = []
    for metric, statistic in STATISTICS.items():

        def difference(weights: Any, seed: int, statistic: Statistic = statistic) -> Any:
            return 100 * (statistic(arms[seed]["loss"], weights) - statistic(arms[seed]["control"], weights))

        def average(weights: Any, difference: Callable[..., Any] = difference) -> Any:
            return np.mean([difference(weights, seed) for seed in seeds], axis=0)

        values = {
            name: 100 * mean(float(statistic(scores, everything)[0]) for scores in group)
            for name, group in (
                ("start", list(starts.values())),
                ("control", [arms[s]["control"] for s in seeds]),
                ("loss", [arms[s]["loss"] for s in seeds]),
            )
        }
        if np.isnan(values["control"]):
            continue
        interval = bootstrap_images(average, images, level=evaluation.level, resamples=evaluation.resamples)
        per_seed = [float(difference(everything, seed)[0]) for seed in seeds]
        lines.append(Line(metric, **values, interval=interval, per_seed=per_seed))
    iou = {
        name: {
            arm: float(torch.stack([arms[s][arm].iou for s in seeds])[:, i].nanmean() * 100)
            for arm in ("control", "loss")
        }
        for i, name in enumerate(classes)
    }
    typical = {name: median(values) if values else float("nan") for name, values in seconds.items()}
    return Comparison(lines, typical, seeds, images, loss, shared_start, iou)


def seed_interval(differences: list[float], level: float) -> tuple[float, float] | None:
    """Student's t interval of the mean over seeds; None for fewer than three."""
    if len(differences) < 3:
        return None
    from scipy.stats import t

    reach = t.ppf(0.5 + level / 2, len(differences) - 1) * stdev(differences) / len(differences) ** 0.5
    return mean(differences) - float(reach), mean(differences) + float(reach)


def in_words(comparison: Comparison) -> list[str]:
    """What the table shows, as sentences: the verdict on mIoU first, then what the interval covers and what not."""
    level = f"{100 * comparison.lines[0].interval.level:g} %"
    words = []
    for line in comparison.lines:
        interval = line.interval
        span = f"[{interval.low:+.2f}, {interval.high:+.2f}]"
        told = f"{line.metric}: {line.difference:+.2f} points, {level} interval {span}"
        if not interval.excludes_zero:
            told += " includes zero: undecided."
        else:
            told += f" excludes zero: the loss {line.verdict}."
        words.append(told)
    count = len(comparison.seeds)
    covers = f"The interval covers the choice of the {comparison.images} evaluation images, for these trained networks"
    if count == 1:
        words.append(f"{covers}; it does not cover the luck of a training run. For that: --seeds [0,1,2].")
        return words
    line = comparison.lines[0]
    better = sum(d > 0 for d in line.per_seed)
    over_seeds = f"{line.metric} by seed: {', '.join(f'{d:+.2f}' for d in line.per_seed)}; "
    over_seeds += f"mean {mean(line.per_seed):+.2f}, standard deviation {stdev(line.per_seed):.2f}"
    span_of_seeds = seed_interval(line.per_seed, line.interval.level)
    if span_of_seeds is not None:
        low, high = span_of_seeds
        verdict = "excludes zero" if low > 0 or high < 0 else "includes zero: another seed might tell another story"
        over_seeds += f", {level} t-interval of the mean [{low:+.2f}, {high:+.2f}], which {verdict}"
    words.append(f"{over_seeds}. Better in {better} of {count} seeds.")
    words.append(f"{covers}; the spread over seeds is the luck of fine-tuning.")
    if comparison.shared_start:
        words[-1] += " All seeds share one start, so neither covers the luck of pre-training."
    return words


HEADINGS = ("", "start", "control", "loss", "difference", "interval", "verdict")


def table_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """The cells under HEADINGS."""
    rows: list[tuple[str, ...]] = [
        (
            line.metric,
            f"{line.start:.2f}",
            f"{line.control:.2f}",
            f"{line.loss:.2f}",
            f"{line.difference:+.2f}",
            f"[{line.interval.low:+.2f}, {line.interval.high:+.2f}]",
            line.verdict,
        )
        for line in comparison.lines
    ]
    control, loss = comparison.seconds["control"], comparison.seconds["loss"]
    rows.append(("seconds per epoch", "", f"{control:.2f}", f"{loss:.2f}", f"{loss - control:+.2f}", "", ""))
    return rows


def heading(comparison: Comparison) -> str:
    """What was compared, in a line."""
    seeds = f"{len(comparison.seeds)} seeds" if len(comparison.seeds) > 1 else "1 seed"
    return f"control (cross-entropy alone) against loss ({comparison.loss}); {comparison.images} images, {seeds}"


def rich_table(comparison: Comparison) -> Table:
    """The table for a terminal."""
    table = Table(title=heading(comparison), title_justify="left")
    for name in HEADINGS:
        table.add_column(name, justify="left" if name in ("", "verdict") else "right")
    for row in table_rows(comparison):
        table.add_row(*row)
    return table


def save_comparison(comparison: Comparison, folder: Path) -> None:
    """table.md and results.json."""
    lines = [heading(comparison), "", "| " + " | ".join(HEADINGS) + " |", "|---" + "|---:" * 5 + "|---|"]
    lines += ["| " + " | ".join(row) + " |" for row in table_rows(comparison)]
    lines += ["", *(f"- {sentence}" for sentence in in_words(comparison))]
    lines += ["", "| IoU | control | loss |", "|---|---:|---:|"]
    lines += [f"| {name} | {iou['control']:.2f} | {iou['loss']:.2f} |" for name, iou in comparison.iou.items()]
    write_atomically(folder / "table.md", ("\n".join(lines) + "\n").encode())
    content = asdict(comparison)
    for line, told in zip(comparison.lines, content["lines"]):
        told["verdict"] = line.verdict
        told["seed_interval"] = seed_interval(line.per_seed, line.interval.level)
    content["words"] = in_words(comparison)
    write_atomically(folder / "results.json", (json.dumps(content, indent=2) + "\n").encode())
