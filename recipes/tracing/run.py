"""A fixation run as its parts see it: the images that are measured, and results that outlast an interruption."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from recipes.kit.images import EvaluationBatch
from recipes.kit.job import Job
from recipes.kit.summary import Section, subject
from recipes.tracing.settings import FixationSettings
from recipes.training.origin import Origin, keep


@dataclass(frozen=True)
class Report:
    """What a part found: sections and verdict for the summary, numbers for results.json, tables it wrote."""

    sections: list[Section]
    numbers: dict[str, Any]
    verdict: str = ""
    files: dict[str, str] = field(default_factory=dict)


@dataclass
class FixationRun(Job):
    """What the parts share."""

    recipe = "fixations"
    settings_class = FixationSettings

    origin: Origin = field(default_factory=dict)  # what all that is measured depends on

    @property
    def indices(self) -> list[int]:
        """The evaluation images measured: evenly spread."""
        total, wanted = self.images.evaluated, self.settings.measure.images
        count = total if wanted is None else min(wanted, total)
        return [i * total // count for i in range(count)]

    def batches(self, title: str, indices: list[int]) -> Iterator[EvaluationBatch]:
        """Evaluation batches of these images, with a progress bar."""
        batches = self.images.evaluation(batch_size=self.settings.measure.batch_size, far=0.0, only=indices)
        return self.each(title, batches, len(indices), lambda batch: len(batch[0]))

    def measured(self, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `measure` gives, or what it gave before this run was stopped."""
        return keep(self.folder / "measured" / f"{name}.pt", self.origin, measure, self.progress.report)

    @property
    def subject(self) -> str:
        """Network and data, for titles."""
        return subject(self.settings)
