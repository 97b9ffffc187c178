"""Prediction sheets: images, truth, predictions and errors side by side."""

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from perpixel.checks import check_tensor, complain
from perpixel.report import theme
from perpixel.report.theme import Figure

RIGHT, WRONG = (0.97, 0.97, 0.95), (0.80, 0.15, 0.18)


def prediction_sheet(
    images: Sequence[Tensor],
    labels: Sequence[Tensor],
    predictions: Mapping[str, Sequence[Tensor]],
    *,
    classes: Sequence[str],
    colors: Tensor,
    captions: Sequence[str] = (),
    ignore_index: int = 255,
    title: str = "",
) -> Figure:
    """A row per image: image, truth, then prediction and error of every model; the legend names the classes shown.

    images: float (3, H, W) in [0, 1]; labels and predictions: integer (H, W); colors: uint8 (C, 3) by class.
    An error picture is red where the prediction is wrong, and names the share of valid pixels that are right.
    """
    if not images or any(len(rows) != len(images) for rows in (labels, *predictions.values())):
        came = f"{len(images)} images, {len(labels)} labels, " + ", ".join(str(len(r)) for r in predictions.values())
        raise ValueError(complain("images, labels, predictions", "equally many, at least one", came, "Match them."))
    for image in images:
        check_tensor("images", image, ndim=3, shape="(3, H, W)", floating=True)
    columns, cell = 2 + 2 * len(predictions), 2.5
    height, width = images[0].shape[1:]
    figure = theme.new_figure(cell * columns + 0.4, (cell * height / width + 0.3) * len(images) + 0.6)
    axes = figure.subplots(len(images), columns, squeeze=False)
    seen: set[int] = set()
    for row, (image, truth) in enumerate(zip(images, labels)):
        valid = truth != ignore_index
        seen.update(truth[valid].unique().tolist())
        pictures = [("image", image.permute(1, 2, 0).clamp(0, 1).numpy())]
        pictures.append(("truth", theme.paint_labels(truth, colors, ignore_index)))
        for name, predicted in predictions.items():
            shown = predicted[row].masked_fill(~valid, ignore_index)
            seen.update(shown[valid].unique().tolist())
            wrong = valid & (predicted[row] != truth)
            error = np.array([theme.VOID, RIGHT, WRONG])[(valid.long() + wrong.long()).numpy()]
            share = 100 * (1 - float(wrong.sum()) / max(int(valid.sum()), 1))
            pictures.append((name, theme.paint_labels(shown, colors, ignore_index)))
            pictures.append((f"{name}: {share:.1f} % right", error))
        for axis, (name, picture) in zip(axes[row], pictures):
            axis.imshow(picture, interpolation="nearest")
            theme.picture_axis(axis, name if row == 0 or "right" in name else "")
        if row < len(captions):
            axes[row, 0].set_ylabel(captions[row], fontsize=9.5)
    handles = [theme.swatch(classes[c], colors[c]) for c in sorted(seen)]
    if any(bool((truth == ignore_index).any()) for truth in labels):
        handles.append(theme.swatch("void", theme.VOID))
    theme.legend(figure, [*handles, theme.swatch("wrong", WRONG)])
    return theme.finished(figure, title)
