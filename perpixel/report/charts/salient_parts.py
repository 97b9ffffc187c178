"""Objects with and without their discriminative region, side by side."""

import colorsys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from perpixel.report import theme
from perpixel.report.theme import Figure

_REGION, _OBJECT = "#e6007a", "#222222"
_CELL = 2.7
_NO_VOID = -1  # predicted labels have none


def salient_sheet(
    pictures: Tensor,
    regions: Tensor,
    predicted: Sequence[Tensor],
    change: Tensor,
    objects: Tensor,
    *,
    rows: Sequence[Mapping[str, float]],
    classes: Sequence[str] | None = None,
    colors: Tensor | None = None,
    title: str = "",
) -> Figure:
    """A row per object: the picture, the labels found with and without the region, the change of the activation.

    pictures: float (M, 3, h, w) in [0, 1]; regions, objects: bool (M, H, W), what was hidden and the true pixels of the
    label; predicted: two int (M, H, W), with and without; change: float (M, H, W), after − before, of its logit.
    rows: per object "label", "held", "lost", "iou_before", "iou_after". classes: names of the labels.
    colors: uint8 (C, 3) of the labels.
    """
    pictures, regions, change, objects, *labels = (
        t.detach().cpu() for t in (pictures, regions, change, objects, *predicted)
    )
    colors = colors.cpu() if colors is not None else _palette(1 + int(max(each.max() for each in labels)))
    height, width = change.shape[-2:]
    place = theme.extent(height, width)
    figure = theme.new_figure(4 * _CELL + 0.9, (_CELL * height / width + 0.32) * len(rows) + 0.4 + 0.3 * bool(title))
    axes = figure.subplots(len(rows), 4, squeeze=False)
    limit = float(change.abs().flatten().kthvalue(max(1, int(0.995 * change.numel()))).values) or 1.0
    scale: dict[str, Any] = {"cmap": theme.signed_colors(), "vmin": -limit, "vmax": limit}
    for line, row, picture, region, true, *two, moved in zip(axes, rows, pictures, regions, objects, *labels, change):
        shown: list[Any] = [picture.permute(1, 2, 0).numpy()]
        shown += [theme.paint_labels(each, colors, _NO_VOID) for each in two]
        for axis, image in zip(line, shown):
            axis.imshow(image, interpolation="nearest", extent=place)
        drawn = line[3].imshow(moved.numpy(), extent=place, **scale)
        figure.colorbar(drawn, ax=line[3], fraction=0.045, pad=0.03, extend="both").ax.tick_params(labelsize=8)
        texts = (
            classes[int(row["label"])] if classes is not None else f"label {int(row['label'])}",
            f"found with it: IoU {100 * row['iou_before']:.0f} %",
            f"without it: IoU {100 * row['iou_after']:.0f} %",
            f"activation of the rest: {row['held']:.1f} → {row['held'] - row['lost']:.1f}",
        )
        for axis, text in zip(line, texts):
            theme.picture_axis(axis, text)
            theme.outline(axis, region, _REGION, 1.6)
        for axis in (line[0], line[3]):
            theme.outline(axis, true, _OBJECT, 0.8)
    present = torch.stack(labels).unique().tolist()
    named = [theme.swatch(name, colors[i]) for i, name in enumerate(classes or ()) if i in present]
    theme.legend(figure, [*_meanings(), *named])
    return theme.finished(figure, title)


def _palette(count: int) -> Tensor:
    """Colours of labels without any: the first is light grey, the others walk around the hues."""
    hues = [colorsys.hsv_to_rgb(0.61803 * i % 1.0, 0.55, 0.85) for i in range(1, count)]
    return (torch.tensor([(0.9, 0.9, 0.88), *hues]) * 255).round().to(torch.uint8)


def _meanings() -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    return [
        Line2D([], [], color=_REGION, label="hidden region"),
        Line2D([], [], color=_OBJECT, label="the object"),
        Patch(facecolor=theme.AGAINST, label="activation lost"),
        Patch(facecolor=theme.FOR, label="activation gained"),
    ]
