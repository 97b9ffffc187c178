"""Whether images and starting labels fit a model; the points that start."""

import numpy as np
import torch
from torch import Tensor, nn

from perpixel.checks import check_same_device, check_tensor, complain
from perpixel.fixations.points import Points, Units
from perpixel.outputs import predicted_labels, whole_mask

VOID = 255


def check_images(images: object, model: nn.Module) -> None:
    """TypeError or ValueError for images that do not fit the model."""
    images = check_tensor("images", images, ndim=4, shape="(N, channels, H, W)", floating=True)
    if images.numel() == 0:
        raise ValueError(complain("images", "at least one image with pixels", images, "Skip empty batches."))
    weights = next((p for p in model.parameters() if p.is_floating_point()), None)
    if weights is None:
        return
    check_same_device(images=images, model=weights)
    if images.dtype != weights.dtype and not torch.is_autocast_enabled(images.device.type):
        remedy = "Convert the images with .to(dtype), or call under torch.autocast."
        raise TypeError(complain("images", f"the model's dtype {weights.dtype}", images, remedy))


def _check_start(start: object, logits: Tensor) -> Tensor:
    """The labels to start from, of the size of the logits (N, C, ...), negative where nothing is traced.

    TypeError or ValueError for any other. 255 is a class like any other where there are more than 255. Where there are
    two classes, C = 1 or 2, masks of any dtype, (N, 1, H, W) as well.
    """
    expected, classes = (logits.shape[0], *logits.shape[2:]), max(2, logits.shape[1])
    start = whole_mask("start", start) if classes == 2 else start
    labels = check_tensor("start", start, ndim=len(expected), shape=f"{expected}, the output's size", floating=False)
    check_same_device(start=labels, images=logits)
    if tuple(labels.shape) != expected:
        remedy = "Bring the labels to the output's size with nearest-neighbour interpolation."
        raise ValueError(complain("start", f"shape {expected}, the output's size", labels, remedy))
    labels = labels.long()
    if classes <= VOID:
        labels = labels.masked_fill(labels == VOID, -1)
    high = int(labels.max()) if labels.numel() else -1
    if high >= classes:
        place = tuple((labels == high).nonzero()[0].tolist())
        expected_values = f"values below {classes}, negative ones, or {VOID}"
        remedy = "Mark what is not to be traced with 255 or a negative number."
        raise ValueError(complain("start", expected_values, f"{high} at position {place}", remedy))
    return labels


def starting_labels(logits: Tensor, start: Tensor | None) -> tuple[Tensor, bool]:
    """The labels (N, ...) to start from, and whether there is NaN among the logits (N, C, ...)."""
    if start is not None:
        labels, values = _check_start(start, logits), logits
    elif logits.shape[1] == 1:
        labels, values = predicted_labels(logits), logits
    else:
        values, labels = logits.max(1)
    return labels, bool(values.isnan().any())


def starting_points(labels: Tensor, channels: int) -> Points:
    """A point for each pixel with a label, in the channel of its label.

    In a single channel each point has a row that tells its label; 0 asks what made it negative.
    """
    label = labels.flatten().cpu().numpy()
    pixel = np.arange(len(label))
    if len(label) and label.min() < 0:
        pixel = (label >= 0).nonzero()[0]
        label = label.take(pixel)
    mass = np.ones(len(pixel))
    if channels > 1:
        return Points(Units(pixel, label, distinct=True), mass)
    minus = label == 0
    units = Units(pixel, np.zeros_like(pixel), minus if minus.any() else None, distinct=True)
    return Points(units, mass, pixel // (labels.numel() // len(labels)) * 2 + label, np.arange(len(pixel)))
