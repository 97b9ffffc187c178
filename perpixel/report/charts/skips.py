"""What layers bring: gains over the depth of a network, and one gain against another."""

from collections.abc import Mapping, Sequence

import numpy as np

from perpixel.checks import complain
from perpixel.report.charts.intervals import Interval
from perpixel.report.theme import (
    LINES,
    RANDOM,
    Axes,
    Figure,
    chart_axis,
    finished,
    legend,
    line_color,
    new_figure,
    text_width,
    wrapped,
)


def depth_chart(
    layers: Sequence[str],
    groups: Sequence[str],
    panels: Mapping[str, Sequence[Interval]],
    *,
    references: Mapping[str, Mapping[str, Interval]] | None = None,
    highlight: int | None = None,
    title: str = "",
    note: str = "",
) -> Figure:
    """A panel per quantity, one below the other: a dot with its interval (value, low, high) per layer, by depth.

    groups: of every layer, such as its stride; neighbours of one group share a band and its name. references: by panel
    and name, drawn as a line with its interval as a band. highlight: the layer whose dots are drawn in another colour.
    """
    if not panels or any(len(values) != len(layers) for values in panels.values()) or len(groups) != len(layers):
        came = f"{len(layers)} layers, {len(groups)} groups, {[len(values) for values in panels.values()]} values"
        raise ValueError(complain("layers, groups, panels", "equally many, in a panel or more", came, "Match them."))
    names = [wrapped(name, 2.2, 8.5) for name in layers]
    below = 0.8 * max(text_width(name, 8.5) for name in names)
    figure = new_figure(max(6.0, 1.9 + 0.62 * len(layers)), 2.1 * len(panels) + below + 0.7)
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    bands = _runs(groups)
    for number, (axis, (heading, values)) in enumerate(zip(axes, panels.items())):
        for band, (first, last, name) in enumerate(bands):
            if band % 2:
                axis.axvspan(first - 0.5, last + 0.5, color="#f3f3f1", zorder=0)
            if number == 0:
                place = ((first + last) / 2, 1.0)
                axis.annotate(name, place, (0, 3), xycoords=("data", "axes fraction"), textcoords="offset points",
                              ha="center", fontsize=8.5, color="#444444")  # fmt: skip
        axis.axhline(0, color="#999999", linewidth=1, zorder=1)
        for index, (name, (value, low, high)) in enumerate((references or {}).get(heading, {}).items()):
            color = LINES[2 + index]
            axis.axhspan(low, high, color=color, alpha=0.13, linewidth=0, zorder=1)
            axis.axhline(value, color=color, linewidth=1.5, linestyle="--", label=name)
        for layer, (value, low, high) in enumerate(values):
            color = line_color(1 if layer == highlight else 0)
            axis.vlines(layer, low, high, color=color, linewidth=2, alpha=0.75)
            axis.plot(layer, value, "o", color=color, markersize=6)
        axis.set_ylabel(heading, fontsize=9.5)
        chart_axis(axis, grid="y")
    axes[-1].set_xticks(np.arange(len(names)), names, rotation=40, ha="right", rotation_mode="anchor", fontsize=8.5)
    axes[-1].set_xlim(-0.5, len(layers) - 0.5)
    if handles := axes[0].get_legend_handles_labels()[0]:
        legend(figure, handles)
    return finished(figure, title, note)


def _runs(groups: Sequence[str]) -> list[tuple[int, int, str]]:
    """First and last place of every run of one group."""
    starts = [place for place in range(len(groups)) if place == 0 or groups[place] != groups[place - 1]]
    return [(a, b - 1, groups[a]) for a, b in zip(starts, [*starts[1:], len(groups)])]


def character_chart(
    names: Sequence[str],
    across: Sequence[Interval],
    up: Sequence[Interval],
    *,
    order: Sequence[float],
    xlabel: str,
    ylabel: str,
    controls: Sequence[str] = (),
    title: str = "",
    note: str = "",
) -> Figure:
    """A named dot per layer with its intervals along both axes; darker where `order`, such as depth, is higher.

    controls: names of those drawn hollow and in grey.
    """
    from matplotlib import colormaps

    if not names or not len(names) == len(across) == len(up) == len(order):
        came = f"{len(names)} names, {len(across)} and {len(up)} intervals, {len(order)} places"
        raise ValueError(complain("names, across, up, order", "equally many, at least one", came, "Match them."))
    figure = new_figure(6.4, 5.2)
    axis = figure.subplots()
    low, span = min(order), (max(order) - min(order)) or 1.0
    for name, (x, left, right), (y, down, top), at in zip(names, across, up, order):
        color = RANDOM if name in controls else colormaps["viridis_r"](0.15 + 0.8 * (at - low) / span)
        face = "white" if name in controls else color
        axis.hlines(y, left, right, color=color, linewidth=1.2, alpha=0.6)
        axis.vlines(x, down, top, color=color, linewidth=1.2, alpha=0.6)
        axis.plot(x, y, "o", color=color, markerfacecolor=face, markersize=7)
    axis.margins(x=0.2, y=0.1)  # room for the names
    _name_dots(axis, names, [(x, y) for (x, *_), (y, *_) in zip(across, up)], (5.2, 4.2))
    axis.axhline(0, color="#999999", linewidth=1, zorder=0)
    axis.axvline(0, color="#999999", linewidth=1, zorder=0)
    axis.set_xlabel(xlabel)
    axis.set_ylabel(ylabel)
    chart_axis(axis)
    return finished(figure, title, note)


def _name_dots(
    axis: Axes, names: Sequence[str], dots: Sequence[tuple[float, float]], size: tuple[float, float]
) -> None:
    """Beside every dot its name, on the side where it covers none before it; size: of the axis in inches, about."""
    (left, right), (low, high) = axis.get_xlim(), axis.get_ylim()
    taken: list[tuple[float, float, float]] = []  # left end, middle, width
    for name, (x, y) in zip(names, dots):
        width = text_width(name, 8)
        place = (x - left) / (right - left) * size[0], (y - low) / (high - low) * size[1]
        sides = [(0.08 if side > 0 else -0.08 - width, 0.1 * up) for up in (1, -1, 2.5, -2.5) for side in (1, -1)]

        def covers(side: tuple[float, float], place: tuple[float, float] = place, width: float = width) -> bool:
            start, middle = place[0] + side[0], place[1] + side[1]
            return any(abs(middle - m) < 0.14 and start < s + w and s < start + width for s, m, w in taken)

        side = next((one for one in sides if not covers(one)), sides[0])
        taken.append((place[0] + side[0], place[1] + side[1], width))
        shift = (72 * side[0], 72 * side[1])
        axis.annotate(name, (x, y), shift, textcoords="offset points", va="center", fontsize=8)
