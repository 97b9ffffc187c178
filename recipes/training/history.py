"""Metrics of a training as files: a row per epoch (CSV, JSON lines), a row per step, TensorBoard events."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lightning_fabric.loggers import TensorBoardLogger

from recipes.kit.run_folder import write_atomically
from recipes.kit.tables import json_lines, save_csv

Row = dict[str, Any]
_PLACE = ("step", "epoch")


def read_json_lines(path: Path) -> list[Row]:
    """Rows of a JSON-lines file; lines that are none, such as a last one cut short by a kill, are left out."""
    rows = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict)]


class History:
    """metrics.csv and metrics.jsonl (rewritten whole after each epoch), steps.jsonl (appended), TensorBoard events."""

    def __init__(
        self,
        folder: Path,
        *,
        epochs: Sequence[Row] = (),
        step: int = 0,
        digest: str | None = None,
        report: Callable[[str], None] = print,
    ) -> None:
        """Continue at `step` with the rows of the `epochs` before it: whatever the files hold beyond is dropped.

        digest: `steps_digest` at that step; where the rows of steps.jsonl have another, `report` is told.
        """
        self.folder, self.epochs = folder, list(epochs)
        self._steps, self._hash = folder / "steps.jsonl", hashlib.sha256()
        rows = [row for row in read_json_lines(self._steps) if isinstance(row.get("step"), int)]
        kept = [row for row in rows if row["step"] <= step]
        lines = json_lines(kept).encode()
        self._hash.update(lines)
        if digest not in (None, self.steps_digest):
            kept_now = f"the {len(kept)} that can be read are kept"
            report(
                f"damaged log: {self._steps}: its rows up to step {step} are not those that were written; {kept_now}"
            )
        write_atomically(self._steps, lines)
        self._write_epochs()
        self._events: TensorBoardLogger | None = None
        with contextlib.suppress(ImportError, UnicodeEncodeError):  # tensorboard is optional, and writes to UTF-8 paths
            str(folder).encode()
            self._events = TensorBoardLogger(folder, name="", version="", purge_step=step + 1 if step else None)

    @property
    def steps_digest(self) -> str:
        """SHA-256 of the rows of steps.jsonl."""
        return self._hash.hexdigest()

    def add_steps(self, rows: Sequence[Row]) -> None:
        """Append rows with a "step" each; they are on the way to the disk before this returns."""
        lines = json_lines(rows).encode()
        try:
            with open(self._steps, "ab") as file:
                file.write(lines)
        except OSError as error:  # of a write it does not name the file
            raise OSError(error.errno, error.strerror, str(self._steps)) from error
        self._hash.update(lines)
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
