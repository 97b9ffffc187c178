"""Metrics of a training as files: a row per epoch (CSV, JSON lines), a row per step, TensorBoard events."""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_fabric.loggers import TensorBoardLogger

from recipes.kit.run_folder import write_atomically
from recipes.kit.tables import json_lines, save_csv

Row = dict[str, Any]
_PLACE = ("step", "epoch")


def read_json_lines(path: Path) -> list[Row]:
    """Rows of a JSON-lines file; a last line cut short by a kill is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class History:
    """metrics.csv and metrics.jsonl (rewritten whole after each epoch), steps.jsonl (appended), TensorBoard events."""

    def __init__(self, folder: Path, *, epochs: Sequence[Row] = (), step: int = 0) -> None:
        """Continue at `step` with the rows of the `epochs` before it: whatever the files hold beyond is dropped."""
        self.folder, self.epochs = folder, list(epochs)
        self._steps = folder / "steps.jsonl"
        kept = [row for row in read_json_lines(self._steps) if row["step"] <= step]
        write_atomically(self._steps, json_lines(kept).encode())
        self._write_epochs()
        self._events: TensorBoardLogger | None = None
        with contextlib.suppress(ImportError):  # tensorboard is optional
            self._events = TensorBoardLogger(folder, name="", version="", purge_step=step + 1 if step else None)

    def add_steps(self, rows: Sequence[Row]) -> None:
        """Append rows with a "step" each; they are on the way to the disk before this returns."""
        with open(self._steps, "a") as file:
            file.write(json_lines(rows))
        for row in rows:
            self._log("step", row)

    def add_epoch(self, row: Row) -> None:
        """Add the row of one epoch (with "epoch" and "step") to all files."""
        self.epochs.append(row)
        self._write_epochs()
        self._log("epoch", row)
        if self._events is not None:
            self._events.experiment.flush()

    def _log(self, kind: str, row: Row) -> None:
        if self._events is not None:
            self._events.log_metrics({f"{kind}/{n}": v for n, v in row.items() if n not in _PLACE}, row["step"])

    def _write_epochs(self) -> None:
        save_csv(self.folder / "metrics.csv", self.epochs)
        write_atomically(self.folder / "metrics.jsonl", json_lines(self.epochs).encode())

    def close(self) -> None:
        """Close the event file."""
        if self._events is not None:
            self._events.finalize("closed")
