"""What stands in for hidden pixels: zero, the image's mean, a blur, the surroundings."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from perpixel.checks import check_same_device, check_tensor, complain

NAMES = ("zero", "mean", "blur")
Baselines = str | float | Tensor | Callable[[Tensor], Tensor] | None
BLUR = 0.05  # standard deviation, as a share of the image's longer side
RING = 2  # pixels
_PAIRS = 1 << 22  # pairs of hidden and ring pixels weighed at once


def baseline_images(baselines: Baselines, images: Tensor) -> Tensor:
    """Images (N, channels, H, W) to put in place of `images`, of their dtype and device.

    "zero" (also None); "mean": each image's mean colour; "blur": a Gaussian of 5 % of the longer side; a number; a
    tensor that broadcasts to the images; or a callable on them. TypeError or ValueError for anything else, NaN too.
    """
    if baselines is None or (isinstance(baselines, str) and baselines == "zero"):
        return torch.zeros_like(images)
    if isinstance(baselines, str) and baselines == "mean":
        return images.mean((2, 3), keepdim=True).expand_as(images)
    if isinstance(baselines, str) and baselines == "blur":
        return blur(images, BLUR * max(images.shape[-2:]))
    if callable(baselines) and not isinstance(baselines, Tensor):
        baselines = baselines(images)
    elif isinstance(baselines, (int, float)) and not isinstance(baselines, bool):
        baselines = torch.tensor(float(baselines), device=images.device)
    expected = f"one of {', '.join(map(repr, NAMES))}, a number, a tensor that broadcasts to the images, or a callable"
    if isinstance(baselines, str):
        remedy = "Influence alone can fill in from around." if baselines == "inpaint" else "Choose one of these."
        raise ValueError(complain("baselines", expected, baselines, remedy))
    if not isinstance(baselines, Tensor):
        raise TypeError(complain("baselines", expected, baselines, "Choose one of these."))
    check_same_device(baselines=baselines, images=images)
    try:
        values = baselines.detach().to(images.dtype).expand_as(images)
    except RuntimeError:
        expected = f"a tensor that broadcasts to the images {tuple(images.shape)}"
        raise ValueError(complain("baselines", expected, baselines, "Pass (N, channels, H, W).")) from None
    if not bool(torch.isfinite(baselines).all()):
        raise ValueError(complain("baselines", "finite values", "NaN or infinity", "Look where they come from."))
    return values


def blur(images: Tensor, sigma: float) -> Tensor:
    """Images (N, channels, H, W) under a Gaussian of `sigma` pixels; at the border over the pixels that are there."""
    work = images if images.dtype == torch.float64 else images.float()
    for axis in (2, 3):
        place = torch.arange(images.shape[axis], device=images.device, dtype=work.dtype)
        kernel = torch.exp(-0.5 * ((place[:, None] - place) / sigma) ** 2)
        kernel = kernel / kernel.sum(1, keepdim=True)
        work = kernel @ work if axis == 2 else work @ kernel.T
    return work.to(images.dtype)


def fill(images: Tensor, mask: Tensor, *, ring: int = RING) -> Tensor:
    """Images (N, channels, H, W) with the pixels of `mask`, bool (H, W) or (N, H, W), filled in from around them.

    x_p = Σ_q x_q / |p − q|² ÷ Σ_q 1 / |p − q|², q in the ring of `ring` pixels around the mask: on a disc the harmonic
    (smoothest) continuation of its border (Poisson's kernel). Nothing around: the image's mean colour. Nothing hidden:
    the image.
    """
    check_tensor("images", images, ndim=4, shape="(N, channels, H, W)", floating=True)
    shapes = (tuple(images.shape[-2:]), (len(images), *images.shape[-2:]))
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or tuple(mask.shape) not in shapes:
        expected = f"a bool tensor {shapes[0]} or {shapes[1]}"
        raise ValueError(complain("mask", expected, mask, "True where pixels are hidden, at image size."))
    filled = images.clone(memory_format=torch.contiguous_format)
    if mask.ndim == 2:
        _fill(filled, mask, ring)
    else:
        for image, hidden in zip(filled, mask):
            _fill(image[None], hidden, ring)
    return filled


def _fill(images: Tensor, mask: Tensor, ring: int) -> None:
    grown = F.max_pool2d(mask[None, None].float(), 2 * ring + 1, stride=1, padding=ring)[0, 0] > 0
    inside, around = mask.nonzero(), (grown & ~mask).nonzero()
    if len(around) == 0:
        if len(inside):
            images[:, :, inside[:, 0], inside[:, 1]] = images.mean((2, 3))[:, :, None]
        return
    work = images.dtype if images.dtype == torch.float64 else torch.float32
    known = images[:, :, around[:, 0], around[:, 1]].to(work)
    for part in inside.split(math.ceil(_PAIRS / len(around))):
        step = (part[:, None] - around).to(work)
        weights = 1 / step.square().sum(-1)
        weights = weights / weights.sum(1, keepdim=True)
        images[:, :, part[:, 0], part[:, 1]] = (known @ weights.T).to(images.dtype)
