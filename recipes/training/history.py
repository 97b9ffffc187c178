"""Metrics of a stretch of training as files: a row per epoch (CSV, JSON lines), a row per step, TensorBoard events."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recipes.kit.run_folder import write_atomically

Row = dict[str, Any]


def _plain(row: Mapping[str, Any]) -> Row:
    """JSON has no NaN: null."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


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
        self.folder = folder
        self.epochs = list(epochs)
        self._steps = folder / "steps.jsonl"
        kept = [row for row in read_json_lines(self._steps) if row["step"] <= step]
        write_atomically(self._steps, "".join(json.dumps(row) + "\n" for row in kept).encode())
        self._write_epochs()
        self._events: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        self._events = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def add_steps(self, rows: Sequence[Row]) -> None:
        """Append rows with a "step" each; they are on the way to the disk before this returns."""
        with open(self._steps, "a") as file:
            file.writelines(json.dumps(_plain(row)) + "\n" for row in rows)
        for row in rows if self._events is not None else ():
            for name, value in row.items():
                if name not in ("step", "epoch"):
                    self._events.add_scalar(f"step/{name}", value, row["step"])

    def add_epoch(self, row: Row) -> None:
        """Add the row of one epoch (with "epoch" and "step") to all files."""
        self.epochs.append(row)
        self._write_epochs()
        if self._events is not None:
            for name, value in row.items():
                if isinstance(value, (int, float)) and name not in ("step", "epoch"):
                    self._events.add_scalar(f"epoch/{name}", value, row["step"])
            self._events.flush()

    def _write_epochs(self) -> None:
        columns = list(dict.fromkeys(name for row in self.epochs for name in row))
        table = io.StringIO()
        writer = csv.DictWriter(table, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(_plain(row) for row in self.epochs)
        write_atomically(self.folder / "metrics.csv", table.getvalue().encode())
        lines = "".join(json.dumps(_plain(row)) + "\n" for row in self.epochs)
        write_atomically(self.folder / "metrics.jsonl", lines.encode())

    def close(self) -> None:
        """Close the event file."""
        if self._events is not None:
            self._events.close()
