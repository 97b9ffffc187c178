"""A fixation run as its parts see it: the images that are measured, and results that outlast an interruption."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from recipes.kit.images import EvaluationBatch
from recipes.kit.job import Job
from recipes.tracing.settings import FixationSettings
from recipes.training.checkpoints import load_or_compute

Advance = Callable[[int], None]  # called with the number of images just done


@dataclass(frozen=True)
class Report:
    """What a part found: lines for summary.md, numbers for results.json."""

    lines: list[str]
    numbers: dict[str, Any]


@dataclass
class FixationRun(Job):
    """What the parts share."""

    recipe = "fixations"
    settings_class = FixationSettings
    nested = "trace.shift"
    example = "--run RUN_FOLDER --picture.image 7"

    @property
    def indices(self) -> list[int]:
        """The evaluation images measured: evenly spread."""
        total, wanted = self.images.evaluated, self.settings.measure.images
        count = total if wanted is None else min(wanted, total)
        return [i * total // count for i in range(count)]

    def batches(self, indices: list[int]) -> Iterator[EvaluationBatch]:
        """Evaluation batches of these images."""
        return self.images.evaluation(batch_size=self.settings.measure.batch_size, far=0.0, only=indices)

    def measured(self, name: str, measure: Callable[[Advance], dict[str, Any]], images: int) -> dict[str, Any]:
        """What `measure` gives, or what it gave before this run was stopped."""

        def compute() -> dict[str, Any]:
            done, began = 0, time.monotonic()

            def advance(count: int) -> None:
                nonlocal done
                done += count
                self.progress.advance(done, {}, done / max(time.monotonic() - began, 1e-9))
                self.stop_if_asked()

            self.progress.begin(name, 0, images)
            try:
                return measure(advance)
            finally:
                self.progress.end()

        return load_or_compute(self.folder / "measured" / f"{name}.pt", compute, self.progress.report)

    @property
    def subject(self) -> str:
        """Network and data, for titles."""
        return f"{self.settings.model.name} on {self.settings.data.name}"
