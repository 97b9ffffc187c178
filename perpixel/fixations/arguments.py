"""Whether images and starting labels fit a model."""

import torch
from torch import Tensor, nn

from perpixel.checks import check_same_device, check_tensor, complain

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


def check_start(start: object, logits: Tensor) -> Tensor:
    """The labels to start from, of the size of the logits (N, C, ...), negative where nothing is traced.

    TypeError or ValueError for any other. 255 is a class like any other where there are more than 255.
    """
    expected = (logits.shape[0], *logits.shape[2:])
    labels = check_tensor("start", start, ndim=len(expected), shape=f"{expected}, the output's size", floating=False)
    check_same_device(start=labels, images=logits)
    if tuple(labels.shape) != expected:
        remedy = "Bring the labels to the output's size with nearest-neighbour interpolation."
        raise ValueError(complain("start", f"shape {expected}, the output's size", labels, remedy))
    labels = labels.long()
    if logits.shape[1] <= VOID:
        labels = labels.masked_fill(labels == VOID, -1)
    high = int(labels.max()) if labels.numel() else -1
    if high >= logits.shape[1]:
        place = tuple((labels == high).nonzero()[0].tolist())
        expected_values = f"values below {logits.shape[1]}, negative ones, or {VOID}"
        remedy = "Mark what is not to be traced with 255 or a negative number."
        raise ValueError(complain("start", expected_values, f"{high} at position {place}", remedy))
    return labels
