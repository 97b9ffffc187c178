"""Training curves."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from perpixel.checks import complain
from perpixel.report.theme import Figure, chart_axis, finished, legend, line_color, panel_figure


def training_curves(
    histories: Mapping[str, Sequence[Mapping[str, Any]]],
    panels: Mapping[str, str],
    *,
    x: str = "epoch",
    title: str = "",
    colors: Mapping[str, int] | None = None,
) -> Figure:
    """One panel per quantity, one line per history.

    histories: name -> rows, each with `x` and whatever quantities it has (missing, None and NaN leave a gap out).
    panels: key of the rows -> title of its panel; a panel without any value is left out. colors: name -> number of a
    line colour, so that several lines (seeds of one arm) share one; the first of them is named in the legend.
    """
    lines = {
        key: {name: [(row[x], row[key]) for row in rows if _finite(row.get(key))] for name, rows in histories.items()}
        for key in panels
    }
    kept = [key for key in panels if any(lines[key].values())]
    if not kept:
        raise ValueError(complain("histories", f"rows with any of {list(panels)}", "none", "Train for an epoch first."))
    figure, axes, _ = panel_figure(len(kept), 3, (4.2, 3.1), 0.5)
    numbers = {name: (colors or {}).get(name, i) for i, name in enumerate(histories)}
    places = [place for key in kept for points in lines[key].values() for place, _ in points]
    low, high = min(places), max(places)
    edge = 0.05 * (high - low) or 0.5
    handles: dict[int, Any] = {}
    for axis, key in zip(axes, kept):
        for name, points in lines[key].items():
            if points:
                size = 3 if len(points) > 1 else 7  # a point alone has no line that leads to it
                style: dict[str, Any] = {"color": line_color(numbers[name]), "marker": "o", "markersize": size}
                (line,) = axis.plot(*zip(*points), linewidth=1.6, alpha=0.85, **style)
                handles.setdefault(numbers[name], (line, name))
        axis.set_title(panels[key], fontsize=11, loc="left")
        axis.set_xlabel(x)
        axis.set_xlim(low - edge, high + edge)
        axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        chart_axis(axis)
    shown, names = zip(*handles.values())
    legend(figure, shown, names)
    return finished(figure, title)


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and bool(np.isfinite(value))
