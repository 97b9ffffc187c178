"""What a person sees while it trains: a bar in a terminal, plain lines elsewhere."""

import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

EVERY_SECONDS = 30.0  # between lines where there is no terminal


class Progress:
    """Title, steps, loss terms, images per second and time left; silent unless `shown` (rank 0)."""

    def __init__(self, console: Console, *, shown: bool = True) -> None:
        self.console, self.shown = console, shown
        self._bar: Bar | None = None
        self._task = TaskID(0)
        self._title, self._first, self._steps, self._began, self._reported = "", 0, 0, 0.0, 0.0

    def report(self, text: str) -> None:
        """A line that stays; what no terminal can show, as in a file name that is not UTF-8, as its code."""
        if self.shown:
            text = text.encode(errors="backslashreplace").decode()
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def begin(self, title: str, step: int, steps: int) -> None:
        """Start on `steps`, of which `step` are done."""
        self._title, self._first, self._steps = title, step, steps
        self._began = self._reported = time.monotonic()
        if not self.shown or steps == 0:
            return
        if self.console.is_terminal:
            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}"),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            )
            self._task = self._bar.add_task(title, total=steps, completed=step, text="")
            self._bar.start()
        else:
            self.report(f"{title}: {f'continuing at step {step} of ' if step else ''}{steps} steps")

    def advance(self, step: int, terms: Mapping[str, float], images_per_second: float) -> None:
        """Show the newest loss terms and the speed."""
        state = [f"{name} {value:.3f}" for name, value in terms.items()]
        text = "  ".join([*state, f"{images_per_second:.1f} images/s"])
        if self._bar is not None:
            self._bar.update(self._task, completed=step, text=text)
        elif time.monotonic() - self._reported >= EVERY_SECONDS:
            self._reported = time.monotonic()
            left = (self._reported - self._began) / max(step - self._first, 1) * (self._steps - step)
            self.report(f"{self._title}: step {step}/{self._steps}  {text}  {timedelta(seconds=round(left))} left")

    def epoch(self, title: str, row: Mapping[str, Any], epochs: int) -> None:
        """A line per epoch."""
        parts = [f"{title}: epoch {row['epoch']}/{epochs}", f"{row['seconds']:.1f} s"]
        parts += [f"{n.removeprefix('train/')} {v:.4f}" for n, v in row.items() if n.startswith("train/")]
        names = {
            "miou": "mIoU",
            "pixel_accuracy": "pixels",
            "boundary_f": "boundary F",
            "accuracy_far_from_head": "far from the head",
        }
        parts += [f"{shown} {100 * row[n]:.2f}" for n, shown in names.items() if n in row]
        self.report("  ".join(parts))

    def end(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
