"""Fixations as pictures: points and heat over a backdrop, steps of their way through the layers, charts of shares."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from perpixel.checks import check_integer, check_option, check_tensor, complain
from perpixel.report.charts.training import _LINES, _figure, _paint

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAPER = 0.55  # how far a backdrop is faded to white, so that points stand out
Interval = tuple[float, float, float]


@dataclass(frozen=True)
class PointPanel:
    """One picture of a sheet.

    title: shown above. backdrop: float (H, W, 3) in [0, 1]. labels, y, x: (P,) class and place of every point, in
    pixels of the backdrop; mass (P,) sets the dots' area. heat: (H, W), drawn over the backdrop. outlines: masks
    (H, W) with the colour of their border.
    """

    title: str
    backdrop: Any
    labels: Tensor
    y: Tensor
    x: Tensor
    mass: Tensor
    heat: Tensor | None = None
    outlines: Sequence[tuple[Tensor, str]] = ()


def fixation_backdrop(
    image: Tensor | None, labels: Tensor, colors: Tensor, *, style: str = "photograph", ignore_index: int = 255
) -> Any:
    """What points are drawn on, (H, W, 3) in [0, 1], faded.

    style: "photograph", `image` (3, H, W) in [0, 1]; "labels", the label map (H, W) in pale colours with grey borders;
    "outlines", its borders on white. The last two show nothing of the image.
    """
    check_option("style", style, ("photograph", "labels", "outlines"))
    check_tensor("labels", labels, ndim=2, shape="(H, W)", floating=False)
    if style == "photograph":
        if image is None or image.shape != (3, *labels.shape):
            expected = f"shape {(3, *labels.shape)}, as the labels"
            raise ValueError(complain("image", expected, image, "Pass it, or choose another style."))
        return 1 - (1 - image.permute(1, 2, 0).clamp(0, 1).double().numpy()) * (1 - 0.6 * PAPER)
    painted = _paint(labels, colors, ignore_index)
    canvas = np.ones_like(painted) if style == "outlines" else 1 - (1 - painted) * (1 - 1.2 * PAPER)
    edge = np.zeros(labels.shape, bool)
    edge[1:] |= (labels[1:] != labels[:-1]).numpy()
    edge[:, 1:] |= (labels[:, 1:] != labels[:, :-1]).numpy()
    canvas[edge] = 0.5
    return canvas


def point_sheet(
    panels: Sequence[PointPanel],
    *,
    classes: Sequence[str],
    colors: Tensor,
    columns: int = 4,
    cell: float = 3.2,
    title: str = "",
    note: str = "",
    legend: bool = True,
    heaviest: float | None = None,
) -> "Figure":
    """A grid of panels; the legend names the classes of the points shown.

    note: a line of small print below. heaviest: the mass of the largest dots (None: the largest mass of the sheet); a
    dot's area grows with the root of its mass.
    """
    check_integer("columns", columns, low=1)
    if not panels:
        raise ValueError(complain("panels", "at least one panel", "none", "Trace at least one pixel."))
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    height, width = panels[0].backdrop.shape[:2]
    figure = _figure(cell * columns, (cell * height / width + 0.24) * rows + 0.5 + 0.3 * bool(title))
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    seen: set[int] = set()
    if heaviest is None:
        heaviest = max((float(panel.mass.max()) for panel in panels if len(panel.mass)), default=1.0)
    for axis, panel in zip(axes, panels):
        _draw_panel(axis, panel, colors, heaviest, (cell / 3.2) ** 2)
        seen.update(panel.labels.unique().tolist())
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    shown = sorted(seen) if legend else []
    _name_points(figure, shown, classes, colors, max(2, int(cell * columns / 1.25)), note)
    return figure


def _draw_panel(axis: "Axes", panel: PointPanel, colors: Tensor, heaviest: float, scale: float) -> None:
    height, width = panel.backdrop.shape[:2]
    axis.imshow(panel.backdrop, interpolation="nearest")
    if panel.heat is not None and float(panel.heat.max()) > 0:
        heat = (panel.heat / panel.heat.max()).double().numpy()
        axis.imshow(heat, cmap="inferno", alpha=np.clip(1.6 * heat, 0, 0.88), vmin=0, vmax=1)
    for mask, color in panel.outlines:
        if bool(mask.any()):
            axis.contour(mask.double().numpy(), levels=[0.5], colors=[color], linewidths=1.3)
    if len(panel.mass):
        of_class = torch.zeros(int(panel.labels.max()) + 1, dtype=torch.float64)
        of_class.index_add_(0, panel.labels.long(), panel.mass.double())
        order = panel.mass.argsort(descending=True)  # heavy classes and points below, so that no light one is hidden
        order = order[of_class[panel.labels[order].long()].argsort(descending=True, stable=True)]
        share = (panel.mass / max(heaviest, 1e-12))[order].double().clamp(0, 1).sqrt().numpy()
        ink = (colors.double() / 255)[panel.labels[order].long()].numpy()
        area = scale * (1.5 + 44 * share)
        x, y = panel.x[order].numpy(), panel.y[order].numpy()
        axis.scatter(x, y, s=area, c=ink, alpha=0.85, linewidths=0.3, edgecolors="#1118")
    axis.set_xlim(-0.5, width - 0.5)
    axis.set_ylim(height - 0.5, -0.5)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_color("#bbbbbb")
    axis.set_title(panel.title, fontsize=9.5)


def _name_points(
    figure: "Figure", shown: Sequence[int], classes: Sequence[str], colors: Tensor, columns: int, note: str
) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], linestyle="", marker="o", color=(colors[c].double() / 255).numpy(), markeredgecolor="#111")
        for c in shown
    ]
    names = [classes[c] for c in shown]
    if handles or note:
        figure.legend(
            handles,
            names,
            loc="outside lower left",
            ncols=max(1, min(columns, len(handles))),
            frameon=False,
            fontsize=9,
            title=note or None,
            title_fontsize=8.5,
            alignment="left",
        )


def picture_bytes(figure: "Figure") -> bytes:
    """The figure as PNG, packed as tightly as PNG can."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(_pixels(figure)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def animation_bytes(figures: Sequence["Figure"], milliseconds: int) -> bytes:
    """An endless GIF of figures of one size; the last one stays three times as long.

    One palette for all frames, made of them all, so that nothing flickers.
    """
    from PIL import Image

    check_integer("milliseconds", milliseconds, low=20)
    if not figures:
        raise ValueError(complain("figures", "at least one", "none", "Record the layers."))
    frames = [_pixels(figure) for figure in figures]
    every = Image.fromarray(np.concatenate(frames))
    palette = every.quantize(255, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    drawn = [Image.fromarray(f).quantize(palette=palette, dither=Image.Dither.NONE) for f in frames]
    times = [milliseconds] * (len(drawn) - 1) + [3 * milliseconds]
    buffer = io.BytesIO()
    drawn[0].save(
        buffer, "GIF", save_all=True, append_images=drawn[1:], duration=times, loop=0, optimize=False, disposal=1
    )
    return buffer.getvalue()


def _pixels(figure: "Figure") -> Any:
    canvas: Any = figure.canvas
    canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])


def interval_chart(
    names: Sequence[str],
    series: Mapping[str, Sequence[Interval]],
    *,
    marks: Mapping[str, Sequence[float]] | None = None,
    xlabel: str,
    title: str = "",
    log: bool = False,
    line: float | None = None,
) -> "Figure":
    """A row per name, a dot with its interval (value, low, high) per series, a tick per mark; NaN leaves a gap.

    line: a vertical line, such as "no difference" at 1.
    """
    for key, values in {**series, **(marks or {})}.items():
        if len(values) != len(names):
            raise ValueError(complain(f"series[{key!r}]", f"{len(names)} values", len(values), "One for every name."))
    figure = _figure(7.6, 0.3 * len(names) * max(1.0, 0.45 * len(series) + 0.4) + 1.7)
    axis = figure.subplots()
    gap = 0.62 / max(len(series), 1)
    for number, (name, values) in enumerate(series.items()):
        color = _LINES[number % len(_LINES)]
        rows = np.arange(len(names)) + (number - (len(series) - 1) / 2) * gap
        middle, low, high = (np.array([v[i] for v in values], float) for i in range(3))
        axis.hlines(rows, low, high, color=color, linewidth=1.8, alpha=0.75)
        axis.plot(middle, rows, "o", color=color, markersize=5, label=name)
    for number, (name, ticks) in enumerate((marks or {}).items()):
        style = ("|", "D", "x")[number % 3]
        axis.plot(ticks, np.arange(len(names)), style, color="#222222", markersize=(11, 4, 6)[number % 3], label=name)
    if line is not None:
        axis.axvline(line, color="#999999", linewidth=1, zorder=0)
    axis.set_yticks(np.arange(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set_xlabel(xlabel)
    if log:
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter("{x:g}")
    axis.grid(axis="x", color="#e6e6e6", linewidth=0.8)
    axis.spines[["top", "right"]].set_visible(False)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    long = sum(len(name) for name in (*series, *(marks or {}))) > 60
    figure.legend(loc="outside lower left", ncols=2 if long else 4, frameon=False, fontsize=9)
    return figure


def count_chart(
    layers: Sequence[str], panels: Mapping[str, Mapping[str, Sequence[Interval]]], *, title: str = ""
) -> "Figure":
    """A panel per way of counting; in each a line over the layers per series (median, q25, q75), the band between the
    quartiles; counts on a logarithmic axis."""
    if not layers or not panels:
        raise ValueError(complain("layers, panels", "at least one of each", "none", "Measure a layer."))
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = _figure(5.4 * columns, 2.6 * rows + 1.4)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    place = np.arange(len(layers))
    for axis, (shown, lines) in zip(axes.flatten(), panels.items()):
        for number, (name, values) in enumerate(lines.items()):
            middle, low, high = (np.array([v[i] for v in values], float) for i in range(3))
            color = _LINES[number % len(_LINES)]
            axis.fill_between(place, low, high, color=color, alpha=0.18, linewidth=0)
            axis.plot(place, middle, "o-", color=color, markersize=3.5, linewidth=1.5, label=name)
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.set_title(shown, fontsize=10, loc="left")
        axis.grid(color="#e6e6e6", linewidth=0.8)
        axis.spines[["top", "right"]].set_visible(False)
    step = -(-len(layers) // 24)
    for axis in axes[-1]:
        axis.set_xticks(place[::step], list(layers)[::step], rotation=60, ha="right", fontsize=7.5)
    for axis in axes[:, 0]:
        axis.set_ylabel("inputs needed (K)")
    handles, names = axes.flatten()[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower left", ncols=4, frameon=False, fontsize=9)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure


def on_backdrop(place: Tensor, cells: int, pixels: int) -> Tensor:
    """Places on an axis of `cells` units as pixels of the backdrop: the centres of the units, spread evenly."""
    return (place.to(torch.float64) + 0.5) * pixels / cells - 0.5
