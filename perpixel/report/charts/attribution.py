"""Attributions as charts: class-context matrix with counts, radial profiles, deletion and insertion curves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perpixel.checks import complain
from perpixel.report import theme
from perpixel.report.theme import Axes, Figure, line_color, to_array


def class_matrix_chart(
    values: Tensor,
    counts: Tensor,
    *,
    classes: Sequence[str],
    control: Tensor | None = None,
    intervals: tuple[Tensor, Tensor] | None = None,
    marked: Tensor | None = None,
    few: int = 500,
    title: str = "",
    note: str = "",
) -> Figure:
    """What the class of a row (its logit is read) loses when the class of a column is hidden.

    values: (C, C), NaN where nothing was counted (grey). control: the same with as much hidden at random; given, the
    cells show the excess, values − control. counts: integer (C, C), the pixels behind each value, in small print;
    cells from fewer than `few` are faint. intervals: lowest and highest of what is shown, each (C, C), NaN where
    unknown. marked: bool (C, C), the cells with a dot; None: those whose interval excludes zero. Classes without any
    count are left out.
    """
    low, high = intervals or (None, None)
    given = {"values": values, "counts": counts, "control": control, "low": low, "high": high, "marked": marked}
    cells = {name: theme.map_array(name, each, finite=False) for name, each in given.items() if each is not None}
    expected = f"shape {(len(classes), len(classes))}, one row per class"
    for name, each in cells.items():
        if each.shape != (len(classes), len(classes)):
            raise ValueError(complain(name, expected, f"shape {each.shape}", "Match classes and matrix."))
    counted = cells["counts"] > 0
    shown = np.flatnonzero(counted.any(0) | counted.any(1))
    if not len(shown):
        raise ValueError(complain("counts", "at least one pixel", "none", "Hide a class that the images have."))
    cells = {name: each[np.ix_(shown, shown)] for name, each in cells.items()}
    table = cells["values"] - cells["control"] if control is not None else cells["values"]
    figure = _draw_matrix(table, cells, [classes[int(i)] for i in shown], few)
    how = ["grey: never seen together"] if np.isnan(table).any() else []
    if "low" in cells:
        how.append("small print: interval, and pixels counted")
    if "marked" in cells:
        how.append("● told apart from zero" + ("" if cells["marked"].any() else ": none"))
    elif "low" in cells:
        how.append("● the interval excludes zero")
    if (cells["counts"][np.isfinite(table)] < few).any():
        how.append(f"faint: fewer than {few} pixels")
    return theme.finished(figure, title, "; ".join([*how, *([note] if note else [])]))


def _draw_matrix(table: Any, cells: Mapping[str, Any], names: Sequence[str], few: int) -> Figure:
    known, count = np.isfinite(table), len(names)
    strong = known & (cells["counts"] >= few)
    limit = float(np.abs(table[strong if strong.any() else known]).max(initial=0.0)) or 1.0
    names = [theme.wrapped(name, 2.2, 9) for name in names]
    longest = max(theme.text_width(name, 9) for name in names)
    side, down = max(0.92 * count, 2.8), max(0.58 * count, 1.9)
    figure = theme.new_figure(side + longest + 1.9, down + 0.75 * longest + 1.35)
    axis = figure.subplots()
    axis.imshow(np.where(known[..., None], 1.0, 0.93).repeat(3, axis=-1), aspect="auto")
    scale: dict[str, Any] = {"cmap": theme.signed_colors(), "vmin": -limit, "vmax": limit}
    drawn = axis.imshow(table, aspect="auto", alpha=np.where(strong, 1.0, np.where(known, 0.3, 0.0)), **scale)
    axis.set_xticks(range(count), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=9)
    axis.set_yticks(range(count), names, fontsize=9)
    axis.set_xlabel("class that is hidden", fontsize=9)
    axis.set_ylabel("class whose logit is read", fontsize=9)
    low, high = (cells.get(name, np.full_like(table, np.nan)) for name in ("low", "high"))
    dots = cells["marked"] > 0 if "marked" in cells else (low > 0) | (high < 0)
    for (row, column), value in np.ndenumerate(table):
        ink = "#8a8a8a" if not strong[row, column] else "white" if abs(value) > 0.75 * limit else "#1a1a1a"
        _write(
            axis, row, column, value, limit, (low[row, column], high[row, column]), cells["counts"][row, column], ink
        )
        if known[row, column] and dots[row, column]:
            axis.plot(column - 0.4, row - 0.36, "o", color=ink, markersize=4)
    bar = figure.colorbar(drawn, ax=axis, fraction=0.05, pad=0.02, aspect=24, shrink=0.9, alpha=1)
    more = "more than with as much hidden at random" if "control" in cells else "with the column's class hidden"
    bar.set_label(f"mean fall of the row's logit, {more}", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    return figure


def _write(
    axis: Axes, row: int, column: int, value: float, limit: float, ends: tuple[float, float], count: float, ink: str
) -> None:
    middle: dict[str, Any] = {"ha": "center", "va": "center", "color": ink}
    if not np.isfinite(value):
        axis.text(column, row, "–", fontsize=8, **middle)
        return
    axis.text(column, row - 0.18, theme.table_number(value, limit), fontsize=9.5, **middle)
    if np.isfinite(ends).all():
        axis.text(column, row + 0.1, " to ".join(theme.table_number(e, limit) for e in ends), fontsize=6, **middle)
    axis.text(column, row + 0.32, theme.pixel_count(count), fontsize=6, **middle)


def profile_chart(
    edges: Tensor,
    series: Mapping[str, Tensor],
    area: Tensor,
    *,
    r50: Mapping[str, float] | None = None,
    controls: Sequence[str] = (),
    ylabel: str = "share of the context's attribution",
    title: str = "",
    note: str = "",
) -> Figure:
    """How far from the region attribution lies: a step per distance bin and a line for each series.

    edges: (B + 1,), pixels. series: name -> (B,), or (S, B) for several networks or images, drawn as mean and range.
    area: (B,), the share of the pixels outside, which evenly spread attribution would have (dashed). r50: name ->
    distance within which half lies, marked on the axis. NaN (no attribution outside) leaves a gap. controls: names of
    the series drawn in grey.
    """
    borders = to_array(edges)
    figure = theme.new_figure(6.4, 3.9 + 0.3 * bool(note))
    axis = figure.subplots()
    dashed: dict[str, Any] = {"color": theme.SMALL_PRINT, "linestyle": (0, (4, 2)), "linewidth": 1.4}
    axis.stairs(to_array(area), borders, baseline=None, label="share of the pixels", **dashed)
    for number, (name, values) in enumerate(series.items()):
        rows = to_array(torch.atleast_2d(values.detach()))
        if rows.shape[1] != len(borders) - 1:
            came = f"{rows.shape[1]} for {len(borders) - 1} bins"
            raise ValueError(complain("series", "a value per bin", came, "Use the edges of these profiles."))
        color = theme.RANDOM if name in controls else line_color(number)
        rows = rows[np.isfinite(rows).all(1)]
        if not len(rows):
            continue
        label = name + ", mean and range" * (len(rows) > 1)
        axis.stairs(rows.mean(0), borders, baseline=None, color=color, linewidth=2, label=label)
        if len(rows) > 1:
            axis.stairs(rows.max(0), borders, baseline=rows.min(0), color=color, fill=True, alpha=0.18)
        place = (r50 or {}).get(name)
        if place is not None and np.isfinite(place):
            axis.plot(place, 0, marker="^", color=color, markersize=8, clip_on=False, zorder=5)
    axis.set_xlabel("distance from the region (pixels)" + ("; ▲ half of it lies nearer" if r50 else ""))
    axis.set_ylabel(ylabel)
    axis.set_xlim(borders[0], borders[-1])
    axis.set_ylim(bottom=0)
    _chart_axis(axis)
    theme.legend(figure, *axis.get_legend_handles_labels())
    return theme.finished(figure, title, note)


@dataclass(frozen=True)
class CurvePanel:
    """One picture of `removal_chart`; all arrays (K,).

    title: shown above. fraction: share removed (or put back). value: along the attribution. mean, low, high: of the
    random orders. others: further orders by name. gain: the signed area to the random mean, written into the picture.
    """

    title: str
    fraction: Tensor
    value: Tensor
    mean: Tensor
    low: Tensor
    high: Tensor
    others: Mapping[str, Tensor] = field(default_factory=dict)
    gain: float | None = None
    xlabel: str = "share of the context removed, highest first"
    ylabel: str = ""


def removal_chart(panels: Sequence[CurvePanel], *, columns: int = 3, title: str = "", note: str = "") -> Figure:
    """Deletion and insertion curves, each with the band of the random orders; the better, the farther outside it."""
    if not panels:
        raise ValueError(complain("panels", "at least one curve", "none", "Measure one with perpixel.faithfulness."))
    figure, axes, _ = theme.panel_figure(len(panels), columns, (3.9, 3.0), 0.6, 0.3 * bool(title), 0.3 * bool(note))
    handles: dict[str, Any] = {}
    orders = list(dict.fromkeys(name for panel in panels for name in panel.others))
    for axis, panel in zip(axes, panels):
        fraction = to_array(panel.fraction)
        low, high = to_array(panel.low), to_array(panel.high)
        handles.setdefault("attribution")
        band = axis.fill_between(fraction, low, high, color=theme.RANDOM, alpha=0.3, linewidth=0)
        (mean,) = axis.plot(fraction, to_array(panel.mean), color=theme.RANDOM, linewidth=1.4)
        handles["random orders: mean, range"] = band, mean
        for name, other in panel.others.items():
            color = line_color(2 + orders.index(name))
            (handles[name],) = axis.plot(fraction, to_array(other), color=color, linestyle=(0, (5, 2)), linewidth=1.4)
        style: dict[str, Any] = {"color": line_color(1), "linewidth": 2.2, "marker": "o", "markersize": 2.5}
        (handles["attribution"],) = axis.plot(fraction, to_array(panel.value), **style)
        axis.set_title(panel.title + "\n" * (panel.gain is not None), fontsize=10, loc="left")  # above the verdict
        axis.set_xlabel(panel.xlabel, fontsize=8.5)
        axis.set_ylabel(panel.ylabel, fontsize=8.5)
        axis.set_xlim(0, 1)
        _chart_axis(axis)
        if panel.gain is not None and np.isfinite(panel.gain):
            verdict = "better than" if panel.gain > 0 else "worse than" if panel.gain < 0 else "as"
            axis.set_title(f"{panel.gain:+.2g}, {verdict} random", fontsize=8.5, loc="right", color=theme.SMALL_PRINT)
    theme.legend(figure, list(handles.values()), list(handles), note)
    return theme.finished(figure, title)


def _chart_axis(axis: Axes) -> None:
    theme.chart_axis(axis)
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=8.5)
