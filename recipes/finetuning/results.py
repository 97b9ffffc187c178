"""Control against loss as files: the table, all numbers, and in words what they do and do not show."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch

from perpixel.evaluation import ScoreDifference, SegmentationScores, compare_scores, mean_score
from recipes.kit.settings import EvaluationSettings
from recipes.kit.summary import Section, Summary
from recipes.kit.tables import CLAIM, difference_cells, format_number, markdown_table, markdown_text, save_json

ARMS = ("control", "loss")
HEADINGS = ("", "start", *ARMS, "difference", "interval", "verdict")
# verdict on mIoU -> that of the run in a sentence
VERDICTS = {
    "helped": "The loss helped.",
    "hurt": "The loss hurt.",
    "better on these images": "Better on these images; whether the loss helps is not shown.",
    "worse on these images": "Worse on these images; whether the loss hurts is not shown.",
    "undecided": "Undecided: it is not shown that the loss helps or hurts.",
    "too few images": "Too few images to say whether the loss helps.",
    "undefined": "Undefined: nothing could be compared.",
}


@dataclass
class Results:
    """Differences of all metrics between control and loss.

    starts: scores by seed; arms: "control" and "loss", each by seed; seconds: of their epochs; loss: in words.
    """

    starts: Mapping[int, SegmentationScores]
    arms: Mapping[str, Mapping[int, SegmentationScores]]
    classes: Sequence[str]
    seconds: Mapping[str, Sequence[float]]
    evaluation: EvaluationSettings
    loss: str
    shared_start: bool

    def __post_init__(self) -> None:
        options, (control, loss) = self.evaluation, [list(self.arms[arm].values()) for arm in ARMS]
        self.differences = compare_scores(control, loss, level=options.level, resamples=options.resamples)
        self.start = {d.metric: mean_score(d.metric, list(self.starts.values())) for d in self.differences}
        self.median_seconds = {arm: median(self.seconds[arm] or [float("nan")]) for arm in ARMS}
        self.seeds, self.images = list(self.arms["control"]), len(control[0].confusion)
        percent = [(100 * torch.stack([s.iou for s in scores]).nanmean(0)).tolist() for scores in (control, loss)]
        self.iou = {name: dict(zip(ARMS, values)) for name, *values in zip(self.classes, *percent)}

    @property
    def heading(self) -> str:
        """What was compared, in a line."""
        seeds = f"{len(self.seeds)} seeds" if len(self.seeds) > 1 else "1 seed"
        return f"control (cross-entropy alone) against loss ({self.loss}); {self.images} images, {seeds}"

    def rows(self) -> list[tuple[str, ...]]:
        """The cells under HEADINGS."""
        rows = [(d.metric, format_number(self.start[d.metric]), *difference_cells(d)) for d in self.differences]
        control, loss = (self.median_seconds[arm] for arm in ARMS)
        numbers = (format_number(control), format_number(loss), format_number(loss - control, sign=True))
        return [*rows, ("seconds per epoch", "", *numbers, "", "")]

    def sentences(self) -> list[str]:
        """What the table shows: the verdict on mIoU first, then what the interval covers and what not."""
        text = [difference.describe("loss") for difference in self.differences]
        covers = f"The interval covers the choice of the {self.images} evaluation images, for these trained networks"
        if len(self.seeds) == 1:
            return [*text, f"{covers}; it does not cover the luck of a training run. For that: --seeds [0,1,2,3,4]."]
        shared = " All seeds share one start, so neither covers the luck of pre-training." if self.shared_start else ""
        text.append(self.differences[0].describe_seeds())
        return [*text, f"{covers}; the spread over seeds is the luck of fine-tuning.{shared}"]

    def summary(self, title: str, subject: str, pictures: Mapping[str, str], files: Mapping[str, str]) -> Summary:
        """What the run folder says first."""
        first = self.differences[0]
        lines = [*markdown_table(HEADINGS, self.rows(), left=(0, 6)), ""]
        lines += [f"- {sentence}" for sentence in (*self.sentences()[len(self.differences) :], CLAIM)]
        ious = [(name, *(format_number(iou[arm]) for arm in ARMS)) for name, iou in self.iou.items()]
        sections = [
            Section("Did the loss help?", lines, pictures=pictures),
            Section("IoU per class", markdown_table(("class", *ARMS), ious)),
        ]
        about = f"{markdown_text(f'{subject}: {self.heading}')}. Percent; difference in points."
        return Summary(title, about, f"{VERDICTS[first.verdict]} {first.describe('loss')}", sections, files)

    def save(self, folder: Path) -> None:
        """results.json."""
        content = {
            "lines": [self._line(difference) for difference in self.differences],
            "seconds": self.median_seconds,
            "seeds": self.seeds,
            "images": self.images,
            "loss": self.loss,
            "shared_start": self.shared_start,
            "iou": self.iou,
            "words": self.sentences(),
        }
        save_json(folder / "results.json", content, indent=2)

    def _line(self, difference: ScoreDifference) -> dict[str, object]:
        return {
            "metric": difference.metric,
            "start": self.start[difference.metric],
            "control": difference.control,
            "loss": difference.treatment,
            "interval": asdict(difference.interval),
            "per_seed": difference.per_seed,
            "verdict": difference.verdict,
            "seed_interval": difference.seed_interval,
        }
