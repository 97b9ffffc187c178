"""What an attribution is asked about: images, label, region and score, checked; the prediction they lie in."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from perpixel.checks import check_integer, check_tensor, complain
from perpixel.outputs import dense_logits, refuse_queries

SCORES = ("logit", "margin")
_LISTED = 5  # numbers that a line names before it counts the others


def listed(numbers: Sequence[int]) -> str:
    """The first five, and how many more there are."""
    more = len(numbers) - _LISTED
    return ", ".join(map(str, numbers[:_LISTED])) + (f" and {more} more" if more > 0 else "")


def named_labels(label: int | Tensor) -> str:
    """The labels of all images in words."""
    labels = [label] if isinstance(label, int) else label.unique().tolist()
    return f"label{'s' * (len(labels) != 1)} {listed(labels)}"


def counted(images: int) -> str:
    """Their number in words."""
    return f"{images} image{'s' * (images != 1)}"


def check_model(model: object) -> nn.Module:
    """`model` if it is a module, else TypeError."""
    if not isinstance(model, nn.Module):
        raise TypeError(complain("model", "a torch.nn.Module", model, "Pass the network itself."))
    return model


def check_images(images: object) -> Tensor:
    """`images`, detached, if they are float (N, channels, H, W) and not empty, else TypeError or ValueError."""
    images = check_tensor("images", images, ndim=4, shape="(N, channels, H, W)", floating=True).detach()
    if images.numel() == 0:
        raise ValueError(complain("images", "at least one image with pixels", images, "Skip empty batches."))
    return images


def check_label(label: object) -> int | Tensor:
    """`label` as an int, or as int64 (N,), else TypeError or ValueError."""
    if isinstance(label, (list, tuple)):
        label = torch.as_tensor(label)
    if not isinstance(label, Tensor) or (label.ndim == 0 and label.dtype != torch.bool):
        return check_integer("label", label, low=0)
    label = check_tensor("label", label, ndim=1, shape="(N,), one label per image", floating=False)
    if label.numel() and int(label.min()) < 0:
        raise ValueError(complain("label", "class numbers", int(label.min()), "Count the classes from 0."))
    return label.detach().long()


def check_region(region: object) -> Tensor:
    """`region` if it is bool (N, H, W) or (H, W), else TypeError or ValueError."""
    expected = "a bool tensor (N, H, W) or (H, W)"
    if not isinstance(region, Tensor) or region.dtype != torch.bool:
        remedy = "Pass labels == label, or None for where the label is predicted."
        raise TypeError(complain("region", expected, region, remedy))
    if region.ndim not in (2, 3):
        remedy = "Use region[:, 0]." if region.ndim == 4 and region.shape[1] == 1 else "One map per image."
        raise ValueError(complain("region", expected, region, remedy))
    return region.detach()


def labels_for(label: int | Tensor, logits: Tensor) -> Tensor:
    """`label` as int64 (N,) for the N images of `logits`; ValueError if the network has no such class."""
    count, classes = len(logits), max(2, logits.shape[1])
    labels = torch.full((count,), label) if isinstance(label, int) else label
    if len(labels) != count:
        remedy = "Pass one label per image, or an int for all."
        raise ValueError(complain("label", f"an int, or {count} ints for {count} images", labels, remedy))
    high = int(labels.max())
    if high >= classes:
        raise ValueError(complain("label", f"a class in [0, {classes})", high, "The network's output has no more."))
    return labels.to(logits.device)


def region_for(
    region: Tensor,
    logits: Tensor,
    labels: Tensor,
    size: torch.Size | tuple[int, int],
    *,
    predicted: Tensor | None = None,
) -> Tensor:
    """`region` as bool (N, H, W), not empty, at the size of `logits` (N, C, h, w) or `size`.

    predicted: int (N, H, W), the prediction that the region was read off: the error says what there is instead.
    """
    count = len(logits)
    if tuple(region.shape[-2:]) not in {tuple(logits.shape[-2:]), tuple(size)}:
        expected = f"the output's size {tuple(logits.shape[-2:])} or the images' {tuple(size)}"
        raise ValueError(complain("region", expected, region, "Bring it there with nearest-neighbour interpolation."))
    if region.ndim == 2:
        region = region.expand(count, -1, -1)
    if len(region) != count:
        raise ValueError(complain("region", f"one map for each of {count} images", region, "Pass (N, H, W) or (H, W)."))
    region = region.to(logits.device)
    empty = (~region.flatten(1).any(1)).nonzero().flatten().tolist()
    if empty:
        came = f"none in {'image' if len(empty) == 1 else 'images'} {listed(empty)} of {count}"
        remedy = "Leave it out." if len(empty) == 1 else "Leave them out."
        if predicted is not None:
            there = [
                f"image {n} has {listed(predicted[n].unique().tolist())}, not {int(labels[n])}" for n in empty[:_LISTED]
            ]
            came = f"{came}, where the network predicts the label nowhere ({'; '.join(there)})"
            remedy = f"{remedy[:-1]}, ask for a label that is there, or pass region=."
        raise ValueError(complain("region", "at least one pixel per image", came, remedy))
    return region


def dense(output: object, images: Tensor) -> Tensor:
    """The logits (N, C, h, w) in a network's output for `images`; an error if it gives nothing dense for each."""
    refuse_queries(output)
    try:
        logits = dense_logits(output)
    except (TypeError, ValueError) as error:
        expected = "a network that gives a logit map per class, (N, C, H, W)"
        remedy = "A classifier labels no pixels: use captum as it is."
        raise type(error)(complain("model", expected, f"nothing dense ({error})", remedy)) from None
    if len(logits) != len(images):
        came = f"{len(logits)} for {len(images)} images"
        raise ValueError(complain("output", "one logit map per image", came, "Return the maps of this very batch."))
    return logits
