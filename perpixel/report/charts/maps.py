"""Attributions as signed maps: colours symmetric about zero, a bar with the scale, the region outlined."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from perpixel.checks import check_integer, check_number, complain
from perpixel.report.charts.training import _figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIGNED = "PuOr_r"  # orange for, purple against, white zero: told apart without red and green
_Array = NDArray[np.float64]


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
) -> "Figure":
    """A grid of maps, orange for and purple against the label, each with a colour bar that is symmetric about zero.

    shared: one scale, that of the largest map, for all. clip: the quantile of |values| at which a scale ends; its bar
    has pointed ends where values lie beyond. meaning: of the panels without one of their own. A map of zeros is white.
    """
    check_integer("columns", columns, low=1)
    check_number("clip", clip, low=0, high=1, open_low=True)
    if not panels:
        raise ValueError(complain("panels", "at least one panel", "none", "Explain at least one image."))
    maps = [None if panel.values is None else grid_of("values", panel.values) for panel in panels]
    height, width = _extent(panels)
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    picture, bar = cell * height / width, 0.1
    about = (
        0.5 + 0.22 * any(p.note for p in panels) + 0.2 * any(p.meaning or meaning for p in panels)
    )  # texts of a row, inches
    figure = _figure(cell * columns, (picture + bar + about) * rows + 0.35 * bool(title) + 0.3 * bool(note))
    axes = figure.subplots(2 * rows, columns, squeeze=False, height_ratios=[picture, bar] * rows)
    limits = [0.0 if shown is None else float(np.quantile(np.abs(shown), clip)) for shown in maps]
    limits = [max(limits)] * len(limits) if shared else limits
    for number in range(rows * columns):
        axis, below = axes[2 * (number // columns) : 2 * (number // columns) + 2, number % columns]
        if number >= len(panels):
            axis.set_visible(False)
            below.set_visible(False)
            continue
        panel, shown = panels[number], maps[number]
        axis.set_title(panel.title, fontsize=9.5)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_color("#bbbbbb")
        if shown is not None:
            _draw_map(figure, axis, below, shown, limits[number], (height, width), panel.meaning or meaning)
        else:
            below.set_axis_off()
            if panel.picture is not None:
                axis.imshow(panel.picture, interpolation="nearest", extent=(-0.5, width - 0.5, height - 0.5, -0.5))
        _draw_outlines(axis, panel, (height, width))
        if panel.note:
            axis.set_xlabel(panel.note, fontsize=8, color="#444444")
    captions(figure, title, note)
    return figure


def _draw_map(
    figure: "Figure",
    axis: "Axes",
    below: "Axes",
    shown: _Array,
    limit: float,
    size: tuple[int, int],
    meaning: str,
) -> None:
    limit = limit or float(np.abs(shown).max()) or 1.0
    drawn = axis.imshow(
        shown,
        cmap=SIGNED,
        vmin=-limit,
        vmax=limit,
        interpolation="nearest",
        extent=(-0.5, size[1] - 0.5, size[0] - 0.5, -0.5),
    )
    beyond = bool((shown < -limit).any()), bool((shown > limit).any())
    extend = {(True, True): "both", (True, False): "min", (False, True): "max"}.get(beyond, "neither")
    bar = figure.colorbar(drawn, cax=below, orientation="horizontal", extend=extend)
    bar.set_ticks([-limit, 0, limit], labels=[short(-limit), "0", short(limit)])
    bar.ax.tick_params(labelsize=8, length=2)
    bar.outline.set_edgecolor("#bbbbbb")
    if meaning:
        bar.set_label(meaning, fontsize=8)


def _draw_outlines(axis: "Axes", panel: MapPanel, size: tuple[int, int]) -> None:
    if panel.patch is not None:
        across, down = (np.arange(step, length, step) - 0.5 for step, length in zip(panel.patch[::-1], size[::-1]))
        axis.vlines(across, -0.5, size[0] - 0.5, color="#00000030", linewidth=0.5)
        axis.hlines(down, -0.5, size[1] - 0.5, color="#00000030", linewidth=0.5)
    outlines = [*panel.marks, *([] if panel.region is None else [(panel.region, "black")])]
    for mask, color in outlines:
        inside = mask.detach().cpu().double().numpy()
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


def _extent(panels: Sequence[MapPanel]) -> tuple[int, int]:
    """Height and width of the pictures, in pixels: of a picture or region if there is one, else of the largest map."""
    for panel in panels:
        whole = panel.picture if panel.picture is not None else panel.region
        if whole is not None:
            return int(whole.shape[0]), int(whole.shape[1])
    sizes = [panel.values.shape for panel in panels if panel.values is not None]
    if not sizes:
        raise ValueError(complain("panels", "a map or a picture", "neither", "Give one of the panels values."))
    return max((int(size[0]), int(size[1])) for size in sizes)


def captions(figure: "Figure", title: str, note: str) -> None:
    """Title above and note below, at the left."""
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    if note:
        figure.supxlabel(note, x=0.01, ha="left", fontsize=8, color="#444444")


def grid_of(name: str, values: Tensor, finite: bool = True) -> _Array:
    """A map (H, W) as float64 on the CPU; ValueError if it is none, or not finite."""
    if not isinstance(values, Tensor) or values.ndim != 2 or values.numel() == 0:
        raise ValueError(complain(name, "a tensor (H, W), not empty", values, "Sum a map over its channels."))
    array: _Array = values.detach().cpu().double().numpy()
    if finite and not np.isfinite(array).all():
        raise ValueError(complain(name, "finite values", "NaN or infinity", "Leave that map out."))
    return array


def short(value: float) -> str:
    """Two significant digits or a few more, without an exponent where that is short."""
    return f"{value:.0f}" if 100 <= abs(value) < 100_000 else f"{value:.2g}"
