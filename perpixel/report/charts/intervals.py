"""Values with their intervals: rows of dots, and lines over layers."""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from perpixel.checks import complain
from perpixel.report.theme import (
    RANDOM,
    Array,
    Figure,
    chart_axis,
    finished,
    legend,
    line_color,
    new_figure,
    panel_figure,
    text_width,
    wrapped,
)

Interval = tuple[float, float, float]  # value, low, high


def interval_chart(
    names: Sequence[str],
    series: Mapping[str, Sequence[Interval]],
    *,
    marks: Mapping[str, Sequence[float]] | None = None,
    controls: Sequence[str] = (),
    xlabel: str,
    title: str = "",
    log: bool = False,
    line: float | None = None,
) -> Figure:
    """A row per name, a dot with its interval (value, low, high) per series, a tick per mark; NaN leaves a gap.

    controls: names of the series drawn hollow and in grey. line: a vertical line, such as "no difference" at 1.
    """
    marks = marks or {}
    for key, values in {**series, **marks}.items():
        if len(values) != len(names):
            raise ValueError(complain(f"series[{key!r}]", f"{len(names)} values", len(values), "One for every name."))
    names = [wrapped(name, 4.4, 10) for name in names]
    room, lines = (max(map(of, names), default=0) for of in (partial(text_width, size=10), lambda n: 1 + n.count("\n")))
    figure = new_figure(5.4 + room, 0.3 * len(names) * max(0.75 * lines, 1.0, 0.45 * len(series) + 0.4) + 1.7)
    axis = figure.subplots()
    rows, gap = np.arange(len(names)), 0.62 / max(len(series), 1)
    for number, (name, values) in enumerate(series.items()):
        places = rows + (number - (len(series) - 1) / 2) * gap
        value, low, high = _columns(values)
        color = RANDOM if name in controls else line_color(number)
        face = "white" if name in controls else color
        axis.hlines(places, low, high, color=color, linewidth=1.8, alpha=0.75)
        axis.plot(value, places, "o", color=color, markerfacecolor=face, markersize=5, label=name)
    for number, (name, ticks) in enumerate(marks.items()):
        style, size = (("|", 11), ("D", 4), ("x", 6))[number % 3]
        axis.plot(ticks, rows, style, color="#222222", markersize=size, label=name)
    if line is not None:
        axis.axvline(line, color="#999999", linewidth=1, zorder=0)
    axis.set_yticks(rows, names)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set_xlabel(xlabel)
    if log:
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter("{x:g}")
    chart_axis(axis, grid="x")
    legend(figure, *axis.get_legend_handles_labels())
    return finished(figure, title)


def count_chart(
    layers: Sequence[str], panels: Mapping[str, Mapping[str, Sequence[Interval]]], *, title: str = ""
) -> Figure:
    """A panel per way of counting; in each a line over the layers per series (median, q25, q75), the band between the
    quartiles; counts on a logarithmic axis."""
    if not layers or not panels:
        raise ValueError(complain("layers, panels", "at least one of each", "none", "Measure a layer."))
    layers = [wrapped(name, 2.2, 7.5) for name in layers]
    below = 0.9 * max(text_width(name, 7.5) for name in layers)
    figure, axes, columns = panel_figure(len(panels), 2, (5.4, 2.6), 0.8, below, share=True)
    place = np.arange(len(layers))
    for axis, (heading, lines) in zip(axes, panels.items()):
        for number, (name, values) in enumerate(lines.items()):
            median, low, high = _columns(values)
            axis.fill_between(place, low, high, color=line_color(number), alpha=0.18, linewidth=0)
            axis.plot(place, median, "o-", color=line_color(number), markersize=3.5, linewidth=1.5, label=name)
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.set_title(heading, fontsize=10, loc="left")
        chart_axis(axis)
    step = -(-len(layers) // 24)
    for axis in axes[-columns:]:
        axis.set_xticks(place[::step], list(layers)[::step], rotation=60, ha="right", fontsize=7.5)
        axis.tick_params(labelbottom=True)
    for axis in axes[::columns]:
        axis.set_ylabel("inputs needed (K)")
    legend(figure, *axes[0].get_legend_handles_labels())
    return finished(figure, title)


def _columns(values: Sequence[Interval]) -> Array:
    return np.array(values, np.float64).reshape(-1, 3).T
