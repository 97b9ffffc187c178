"""Attributions as signed maps: colours symmetric about zero, a bar with the scale, the region outlined."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from perpixel.checks import check_integer, check_number, complain
from perpixel.report import theme
from perpixel.report.theme import Axes, Figure


@dataclass(frozen=True)
class MapPanel:
    """One picture of `signed_panels`.

    title: shown above. values: signed, (H, W) or on a coarser grid (gh, gw) that covers the picture; None: no map.
    picture: float (H, W, 3) in [0, 1], shown where there is no map. region: bool (H, W), outlined.
    marks: further masks (H, W) outlined, with the colour. patch: (height, width), lines of a grid from the upper left.
    note: small print below. meaning: what the values are, at the colour bar.
    """

    title: str
    values: Tensor | None = None
    picture: Any = None
    region: Tensor | None = None
    marks: Sequence[tuple[Tensor, str]] = ()
    patch: tuple[int, int] | None = None
    note: str = ""
    meaning: str = ""


def signed_panels(
    panels: Sequence[MapPanel],
    *,
    columns: int = 4,
    cell: float = 2.9,
    shared: bool = False,
    clip: float = 0.995,
    meaning: str = "",
    title: str = "",
    note: str = "",
) -> Figure:
    """A grid of maps, orange for and blue against the label, each with a colour bar that is symmetric about zero.

    shared: one scale, that of the largest map, for all. clip: the quantile of |values| at which a scale ends; its bar
    has pointed ends where values lie beyond. meaning: of the panels without one of their own. A map of zeros is white.
    """
    check_integer("columns", columns, low=1)
    check_number("clip", clip, low=0, high=1, open_low=True)
    if not panels:
        raise ValueError(complain("panels", "at least one panel", "none", "Explain at least one image."))
    maps = [None if panel.values is None else theme.map_array("values", panel.values) for panel in panels]
    limits = [0.0 if values is None else float(np.quantile(np.abs(values), clip)) for values in maps]
    limits = [max(limits)] * len(limits) if shared else limits
    size = height, width = _size(panels)
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    picture, bar = cell * height / width, 0.1
    texts = 0.5 + 0.22 * any(p.note for p in panels) + 0.2 * any(p.meaning or meaning for p in panels)  # inches a row
    more = 0.35 * bool(title) + 0.3 * bool(note)
    figure = theme.new_figure(cell * columns, (picture + bar + texts) * rows + more)
    axes = figure.subplots(2 * rows, columns, squeeze=False, height_ratios=[picture, bar] * rows)
    above, below = axes[::2].flatten(), axes[1::2].flatten()
    for axis in (*above[len(panels) :], *below[len(panels) :]):
        axis.set_visible(False)
    over: dict[str, Any] = {"interpolation": "nearest", "extent": theme.extent(*size)}
    for axis, bar_axis, panel, values, limit in zip(above, below, panels, maps, limits):
        theme.picture_axis(axis, panel.title)
        if values is not None:
            end = limit or float(np.abs(values).max()) or 1.0
            axis.imshow(values, **over, cmap=theme.signed_colors(), vmin=-end, vmax=end)
            _draw_bar(figure, bar_axis, axis.images[0], panel.meaning or meaning)
        else:
            bar_axis.set_axis_off()
            if panel.picture is not None:
                axis.imshow(panel.picture, **over)
        _draw_outlines(axis, panel, size)
        if panel.note:
            axis.set_xlabel(panel.note, fontsize=8, color=theme.SMALL_PRINT)
    return theme.finished(figure, title, note)


def _draw_bar(figure: Figure, axis: Axes, drawn: Any, meaning: str) -> None:
    values, (_, limit) = drawn.get_array(), drawn.get_clim()
    beyond = bool((values < -limit).any()), bool((values > limit).any())
    extend = {(True, True): "both", (True, False): "min", (False, True): "max"}.get(beyond, "neither")
    bar = figure.colorbar(drawn, cax=axis, orientation="horizontal", extend=extend)
    number = theme.short_number
    bar.set_ticks([-limit, 0, limit], labels=[number(-limit), "0", number(limit)])
    bar.ax.tick_params(labelsize=8, length=2)
    for text, side in zip(bar.ax.get_xticklabels(), ("left", "center", "right")):  # beside the next bar's
        text.set_horizontalalignment(side)
    bar.outline.set_edgecolor(theme.FRAME)
    if meaning:
        bar.set_label(meaning, fontsize=8)


def _draw_outlines(axis: Axes, panel: MapPanel, size: tuple[int, int]) -> None:
    if panel.patch is not None:
        across, down = (np.arange(step, length, step) - 0.5 for step, length in zip(panel.patch[::-1], size[::-1]))
        axis.vlines(across, -0.5, size[0] - 0.5, color="#00000030", linewidth=0.5)
        axis.hlines(down, -0.5, size[1] - 0.5, color="#00000030", linewidth=0.5)
    outlines = [*panel.marks, *([] if panel.region is None else [(panel.region, "black")])]
    for mask, color in outlines:
        inside = theme.to_array(mask)
        if inside.shape != size:
            expected = f"shape {size}, that of the picture"
            raise ValueError(complain("region", expected, mask, "Pass masks at the picture's size."))
        if inside.any():
            padded = np.pad(inside, 1)  # a border that is also the picture's border is closed
            place = [np.arange(-1, length + 1) for length in size[::-1]]
            for line, paint in ((2.6, "white"), (1.3, color)):
                axis.contour(*place, padded, levels=[0.5], colors=[paint], linewidths=line)
    axis.set_xlim(-0.5, size[1] - 0.5)
    axis.set_ylim(size[0] - 0.5, -0.5)


def _size(panels: Sequence[MapPanel]) -> tuple[int, int]:
    """Height and width of the pictures, in pixels: of a picture or region if there is one, else of the largest map."""
    whole = [each.shape[:2] for panel in panels for each in (panel.picture, panel.region) if each is not None]
    maps = [panel.values.shape for panel in panels if panel.values is not None]
    if not whole and not maps:
        raise ValueError(complain("panels", "a map or a picture", "neither", "Give one of the panels values."))
    height, width = whole[0] if whole else max(maps)
    return int(height), int(width)
