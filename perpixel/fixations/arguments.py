"""Check what `fixations` is given, and make of it what the walk back asks for."""

import difflib
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from perpixel.checks import check_integer, check_same_device, check_tensor, complain
from perpixel.fixations.rules.step import K, Share, Step
from perpixel.fixations.trace.graph import Trace

VOID = 255


def one(step: Step) -> K:
    """k = 1."""
    return 1


def _finer(step: Step) -> K:
    """The increase of spatial resolution from the operation's result to its source."""
    before, after = (math.prod(shape[2:]) for shape in (step.shape(step.operands[0]), step.shape()))
    return max(1, round(before / max(after, 1)))


def counts(k: object, trace: Trace) -> Callable[[Step], K]:
    """How many inputs a point moves to, by step; `one` for one everywhere."""
    if k == "resolution":
        return _finer
    if not isinstance(k, Mapping):
        count = _count("k", k)
        return one if count == 1 else lambda step: count
    names = {name for node in trace.nodes for name in (node.name, str(node.target))}
    by_name = {name: _count(f"k[{name!r}]", value) for name, value in k.items()}
    for name in by_name:
        if name not in names:
            close = difflib.get_close_matches(str(name), names, 5)
            remedy = f"The closest are {', '.join(close)}." if close else "See model.named_modules()."
            raise ValueError(complain("k", "names of layers or nodes as keys", name, remedy))
    return lambda step: by_name.get(step.node.name, by_name.get(str(step.node.target), 1))


def _count(argument: str, k: object) -> K:
    if isinstance(k, Share):
        return k
    if isinstance(k, str):
        raise ValueError(complain(argument, "an integer, a Share or 'resolution'", k, "Choose one of these."))
    return check_integer(argument, k, low=1)


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
    """The labels to start from, of the size of the logits (N, C, ...); TypeError or ValueError for any other."""
    expected = (logits.shape[0], *logits.shape[2:])
    labels = check_tensor("start", start, ndim=len(expected), shape=f"{expected}, the output's size", floating=False)
    check_same_device(start=labels, images=logits)
    if tuple(labels.shape) != expected:
        remedy = "Bring the labels to the output's size with nearest-neighbour interpolation."
        raise ValueError(complain("start", f"shape {expected}, the output's size", labels, remedy))
    labels = labels.long()
    high = int(labels.masked_fill(labels == VOID, -1).max()) if labels.numel() else -1
    if high >= logits.shape[1]:
        place = tuple((labels == high).nonzero()[0].tolist())
        expected_values = f"values below {logits.shape[1]}, negative ones, or {VOID}"
        remedy = "Mark what is not to be traced with 255 or a negative number."
        raise ValueError(complain("start", expected_values, f"{high} at position {place}", remedy))
    return labels
