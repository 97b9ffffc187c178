"""Fixations as pictures: points and heat over a backdrop."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perpixel.checks import check_option, check_tensor, complain
from perpixel.report import theme
from perpixel.report.theme import Axes, Figure

PAPER = 0.55  # how far a backdrop is faded to white, so that points stand out


@dataclass(frozen=True)
class PointPanel:
    """One picture of a sheet.

    title: shown above. backdrop: float (H, W, 3) in [0, 1]. labels, y, x: (P,) class and place of every point, in
    pixels of the backdrop; mass (P,) sets the dots' area. heat: (H, W), labelled pixels that rest on each pixel, drawn
    over the backdrop with a scale. outlines: masks (H, W) with the colour of their border.
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
    painted = theme.paint_labels(labels, colors, ignore_index)
    canvas = np.ones_like(painted) if style == "outlines" else 1 - (1 - painted) * (1 - 1.2 * PAPER)
    edge = np.zeros(labels.shape, bool)
    edge[1:] |= (labels[1:] != labels[:-1]).numpy()
    edge[:, 1:] |= (labels[:, 1:] != labels[:, :-1]).numpy()
    canvas[edge] = 0.5
    return canvas


def on_backdrop(place: Tensor, cells: int, pixels: int) -> Tensor:
    """Places on an axis of `cells` units as pixels of the backdrop: the centres of the units, spread evenly."""
    return (place.to(torch.float64) + 0.5) * pixels / cells - 0.5


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
) -> Figure:
    """A grid of panels; the legend names the classes of the points shown.

    note: a line of small print below. heaviest: the mass of the largest dots (None: the largest mass of the sheet); a
    dot's area grows with the root of its mass.
    """
    if not panels:
        raise ValueError(complain("panels", "at least one panel", "none", "Trace at least one pixel."))
    height, width = panels[0].backdrop.shape[:2]
    size = cell, cell * height / width + 0.24 + 0.5 * any(panel.heat is not None for panel in panels)
    figure, axes, columns = theme.panel_figure(len(panels), columns, size, 0.5, 0.3 * bool(title))
    if heaviest is None:
        heaviest = max((float(panel.mass.max()) for panel in panels if len(panel.mass)), default=1.0)
    for axis, panel in zip(axes, panels):
        _draw_panel(axis, panel, colors, heaviest, (cell / 3.2) ** 2)
        if panel.heat is not None:
            bar = figure.colorbar(axis.images[-1], ax=axis, orientation="horizontal", pad=0.02, aspect=30)
            bar.set_label("labelled pixels that rest on a pixel", fontsize=8)
            bar.ax.tick_params(labelsize=8, length=2)
            bar.ax.locator_params(nbins=4)
    shown = sorted({c for panel in panels for c in panel.labels.unique().tolist()}) if legend else []
    if shown:
        theme.legend(figure, [_dot(colors[c]) for c in shown], [classes[c] for c in shown], note)
    return theme.finished(figure, title, "" if shown else note)


def _draw_panel(axis: Axes, panel: PointPanel, colors: Tensor, heaviest: float, scale: float) -> None:
    height, width = panel.backdrop.shape[:2]
    axis.imshow(panel.backdrop, interpolation="nearest")
    if panel.heat is not None:
        heat = theme.map_array("heat", panel.heat)
        top = float(heat.max()) or 1.0
        axis.imshow(heat, cmap="inferno", alpha=np.clip(1.6 * heat / top, 0, 0.88), vmin=0, vmax=top)
    for mask, color in panel.outlines:
        theme.outline(axis, mask, color, 1.3)
    if len(panel.mass):
        of_class = torch.zeros(int(panel.labels.max()) + 1, dtype=torch.float64)
        of_class.index_add_(0, panel.labels.long(), panel.mass.double())
        order = panel.mass.argsort(descending=True)  # heavy classes and points below, so that no light one is hidden
        order = order[of_class[panel.labels[order].long()].argsort(descending=True, stable=True)]
        share = (panel.mass / max(heaviest, 1e-12))[order].double().clamp(0, 1).sqrt().numpy()
        ink = (colors.double() / 255)[panel.labels[order].long()].numpy()
        side = np.sqrt(scale * (1.5 + 44 * share))
        rings = [side + np.minimum(0.6 * side, 2.2), side + np.minimum(0.35 * side, 1.2), side]
        inks = [np.full_like(ink, 0.12), np.ones_like(ink), ink]  # a dark and a white ring: seen on their own colour,
        x, y = (np.repeat(place[order].numpy(), 3) for place in (panel.x, panel.y))  # dot by dot: seen apart
        area = np.stack(rings, 1).ravel() ** 2
        axis.scatter(x, y, s=area, c=np.stack(inks, 1).reshape(-1, 3), linewidths=0)
    axis.set_xlim(-0.5, width - 0.5)
    axis.set_ylim(height - 0.5, -0.5)
    theme.picture_axis(axis, panel.title)


def _dot(color: Tensor) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], linestyle="", marker="o", color=(color.double() / 255).numpy(), markeredgecolor="#111")
