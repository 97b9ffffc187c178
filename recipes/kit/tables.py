"""Numbers as files and as text: JSON, CSV, Markdown tables, a value with its interval."""

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from perpixel.evaluation import IMAGES, SEEDS, BootstrapInterval, ScoreDifference, verdicts
from recipes.kit.run_folder import write_atomically

Row = Mapping[str, Any]
CLAIM = (
    f"An effect is claimed (helped, hurt) from {IMAGES} images and {SEEDS} seeds on, where both intervals exclude zero "
    "and Holm's correction for the rows of this table leaves it; else it is one on these images."
)


def json_ready(value: Any) -> Any:
    """`value` with null for NaN and infinities, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: json_ready(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_ready(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def json_lines(rows: Iterable[Row]) -> str:
    """A line of JSON per row."""
    return "".join(json.dumps(json_ready(row)) + "\n" for row in rows)


def save_json(path: Path, content: Any, indent: int | None = None) -> None:
    """`json_ready` content as a file."""
    write_atomically(path, (json.dumps(json_ready(content), indent=indent) + "\n").encode())


def save_csv(path: Path, rows: Sequence[Row]) -> None:
    """All rows, six significant digits, whole numbers in full; NaN and what a row does not have as empty cells.

    Texts that a spreadsheet would compute as a formula stand behind an apostrophe.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _csv_cell(value) for name, value in row.items()} for row in rows)
    write_atomically(path, text.getvalue().encode(errors="backslashreplace"))


def _csv_cell(value: Any) -> Any:
    if isinstance(value, str):
        return f"'{value}" if value.startswith(("=", "+", "-", "@")) else value
    if isinstance(value, float):
        return None if math.isnan(value) else int(value) if value.is_integer() and abs(value) < 1e15 else f"{value:.6g}"
    return value


def markdown_text(text: str) -> str:
    """`text` in a line, so that Markdown shows it as it stands: names of classes and files are anyone's."""
    special = r"[\\`*<>|~&$#]|\](?=[(:\[])|(?<![^\W_])_|_(?![^\W_])"  # an underscore inside a word means nothing
    return re.sub(special, lambda found: f"\\{found[0]}", " ".join(text.split()))


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], left: Sequence[int] = (0,)) -> list[str]:
    """The lines of a table of `markdown_text`; the columns `left` are aligned to the left, the others to the right."""
    head, *body = [[markdown_text(cell) for cell in row] for row in (head, *rows)]
    rule = "".join("|---" if column in left else "|---:" for column in range(len(head))) + "|"
    return [f"| {' | '.join(head)} |", rule, *(f"| {' | '.join(row)} |" for row in body)]


def format_number(value: float, digits: int = 2, *, sign: bool = False, missing: str = "–") -> str:
    """ "1.20", with `sign` "+1.20", `missing` for NaN."""
    return missing if math.isnan(value) else f"{value:{'+' if sign else ''}.{digits}f}"


def format_ends(low: float, high: float, digits: int = 2, *, sign: bool = False) -> str:
    """ "[0.90, 1.51]"."""
    return f"[{format_number(low, digits, sign=sign)}, {format_number(high, digits, sign=sign)}]"


def format_interval(
    value: float,
    low: float,
    high: float,
    digits: int = 2,
    *,
    sign: bool = False,
    unit: str = "",
    missing: str = "–",
) -> str:
    """ "1.20 [0.90, 1.51]", the unit behind the value; without ends where they are NaN, `missing` for NaN."""
    if math.isnan(value):
        return missing
    ends = "" if math.isnan(low) else f" {format_ends(low, high, digits, sign=sign)}"
    return format_number(value, digits, sign=sign) + unit + ends


def difference_cells(found: ScoreDifference) -> tuple[str, ...]:
    """Control, treatment, difference, interval over images, verdict."""
    scores = (format_number(value) for value in (found.control, found.treatment))
    interval = found.interval
    ends = format_ends(interval.low, interval.high, sign=True)
    return (*scores, format_number(interval.value, sign=True), ends, found.verdict)


def format_cell(row: Row, name: str, digits: int = 2, *, sign: bool = False, unit: str = "", missing: str = "–") -> str:
    """`format_interval` of the columns NAME, NAME_low and NAME_high of a row."""
    ends = row[f"{name}_low"], row[f"{name}_high"]
    return format_interval(row[name], *ends, digits, sign=sign, unit=unit, missing=missing)


def interval_columns(
    name: str, interval: BootstrapInterval, factor: float = 1.0, *, tested: bool = False
) -> dict[str, float]:
    """The columns NAME, NAME_low and NAME_high of a row, times `factor`; if `tested`, NAME_p for `add_verdicts`."""
    ends = {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
    row = {column: factor * value for column, value in ends.items()}
    return row | {f"{name}_p": interval.p_value} if tested else row


def add_verdicts(
    rows: Sequence[dict[str, Any]], *names: str, level: float, null: float = 0.0, more: str = "more", less: str = "less"
) -> None:
    """The columns NAME_verdict: `verdicts` of these columns of these rows, which are one table; "" for NaN.

    How many images have a say is the column "images".
    """
    cells = [(row, name) for name in names for row in rows]
    table = []
    for row, name in cells:
        value, low, high, p = (row[f"{name}{end}"] for end in ("", "_low", "_high", "_p"))
        table.append(BootstrapInterval(value, low, high, level, null, p, row["images"]))
    for (row, name), word in zip(cells, verdicts(table, more, less)):
        row[f"{name}_verdict"] = "" if math.isnan(row[name]) else word
