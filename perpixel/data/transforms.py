"""Transforms for (image, mask) pairs of tv_tensors, from torchvision.transforms.v2: the same geometry for both.

Images are float32 in [0, 1] before normalisation; masks hold class ids and are never interpolated.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from perpixel.checks import check_integer, check_number, complain
from perpixel.data.files.samples import VOID
from perpixel.data.ranges import check_pair, check_range

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
Size = int | tuple[int, int]


def _check_size(size: Any) -> tuple[int, int]:
    sides = size if isinstance(size, Sequence) and len(size) == 2 else (size, size)
    return check_pair("size", sides, check_integer, low=1)


def resize_ids(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Ids (..., H, W) at `size`: each new pixel takes the old pixel its centre falls in. Exact for every dtype."""
    rows, columns = (
        (2 * torch.arange(new, device=mask.device) + 1) * old // (2 * new) for new, old in zip(size, mask.shape[-2:])
    )
    return mask.index_select(-2, rows).index_select(-1, columns)


def _resize(value: Any, size: tuple[int, int]) -> Any:
    """Bilinear with antialias for images, nearest for masks."""
    if tuple(value.shape[-2:]) == tuple(size):
        return value
    if isinstance(value, tv_tensors.Mask):
        return tv_tensors.wrap(resize_ids(value.as_subclass(Tensor), size), like=value)
    return F.resize(value, list(size), antialias=True)


def _check_images(values: list[Any]) -> tuple[int, int]:
    sizes = {tuple(v.shape[-2:]) for v in values if isinstance(v, Tensor)}
    if len(sizes) != 1:
        raise ValueError(complain("image and mask", "one common size", str(sorted(sizes)), "Resize one of them."))
    height, width = sizes.pop()
    return height, width


class RandomScaledCrop(v2.Transform):
    """A random crop of the image enlarged by a factor drawn uniformly from `scale`; at most `size` large.

    The same as scaling the whole image and cropping, up to rounding, but only the crop is computed. Where the scaled
    image is smaller than `size`, all of it is kept: pad with `PadTo` afterwards.
    """

    def __init__(self, size: Size, scale: tuple[float, float] = (0.5, 2.0)) -> None:
        super().__init__()
        self.size = _check_size(size)
        self.scale = check_range("scale", scale, check_number, low=0, open_low=True)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        low, high = self.scale
        factor = low + (high - low) * float(torch.rand(()))
        places, out = [], []
        for length, limit in zip(_check_images(flat_inputs), self.size):
            new = max(1, min(limit, round(length * factor)))
            old = max(1, min(length, round(new / factor)))
            places += [int(torch.randint(0, length - old + 1, ())), old]
            out.append(new)
        top, height, left, width = places
        return {"box": (top, left, height, width), "out": tuple(out)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return _resize(F.crop(inpt, *params["box"]), params["out"])


class PadTo(v2.Transform):
    """Pads to at least `size`, the picture at a random place: images with `fill`, masks with `ignore_index`."""

    def __init__(self, size: Size, fill: float = 0.0, ignore_index: int = VOID) -> None:
        super().__init__()
        self.size, self.fill = _check_size(size), check_number("fill", fill)
        self.ignore_index = check_integer("ignore_index", ignore_index)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = _check_images(flat_inputs)
        rows, columns = max(0, self.size[0] - height), max(0, self.size[1] - width)
        top, left = int(torch.randint(0, rows + 1, ())), int(torch.randint(0, columns + 1, ()))
        return {"padding": [left, top, columns - left, rows - top]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if not any(params["padding"]):
            return inpt
        fill = self.ignore_index if isinstance(inpt, tv_tensors.Mask) else self.fill
        return F.pad(inpt, params["padding"], fill=fill)


class ResizeTo(v2.Transform):
    """Resizes image (bilinear, antialias) and mask (nearest) to (H, W), or the shorter side to one number."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size, self.shorter = _check_size(size), size if isinstance(size, int) else None

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = _check_images(flat_inputs)
        if self.shorter is None:
            return {"size": self.size}
        factor = self.shorter / min(height, width)
        return {"size": (round(height * factor), round(width * factor))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return _resize(inpt, params["size"])


def train_transforms(
    crop: Size,
    *,
    scale: tuple[float, float] = (0.5, 2.0),
    flip: float = 0.5,
    jitter: float | tuple[float, float, float, float] = 0.3,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    ignore_index: int = VOID,
) -> v2.Compose:
    """Random scale, crop, horizontal flip, colour jitter, normalisation, then padding to exactly `crop`.

    Padding comes last and is 0, that is the mean colour, in the image and `ignore_index` in the mask.

    Args:
        crop: (H, W) or one side of the result.
        scale: range of the scale factor; (1, 1) for none.
        flip: probability of a horizontal flip.
        jitter: strength j for brightness, contrast and saturation (factors in [1 - j, 1 + j]; hue moves by up to j/10
            of the colour circle), or these four numbers one by one; 0 for none.
        mean, std: per channel, on the [0, 1] scale.
        ignore_index: what the mask is padded with.
    """
    flipped = v2.RandomHorizontalFlip(check_number("flip", flip, low=0, high=1))
    steps: list[Any] = [RandomScaledCrop(crop, scale), flipped]
    strengths = tuple(jitter) if isinstance(jitter, Sequence) else (jitter, jitter, jitter, jitter / 10)
    if len(strengths) != 4:
        expected = "one number, or brightness, contrast, saturation, hue"
        raise ValueError(complain("jitter", expected, jitter, "Pass four."))
    for value, high in zip(strengths, (1, 1, 1, 0.5)):
        check_number("jitter", value, low=0, high=high)
    if any(strengths):
        steps.append(v2.ColorJitter(*strengths))
    return v2.Compose([*steps, _normalize(mean, std), PadTo(crop, 0.0, ignore_index)])


def eval_transforms(
    size: Size | None = None, *, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> v2.Compose:
    """Normalisation, after a resize to `size` ((H, W), or the shorter side) if given. The mask is resized too."""
    steps: list[Any] = [] if size is None else [ResizeTo(size)]
    return v2.Compose([*steps, _normalize(mean, std)])


def _normalize(mean: Sequence[float], std: Sequence[float]) -> v2.Normalize:
    if len(mean) != 3 or len(std) != 3:
        raise ValueError(complain("mean, std", "three numbers each", f"{mean}, {std}", "Give one per colour channel."))
    stds = [check_number("std", s, low=0, open_low=True) for s in std]
    return v2.Normalize([check_number("mean", m) for m in mean], stds)


def denormalize(image: Tensor, *, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> Tensor:
    """Undoes the normalisation of images (..., 3, H, W), clipped to [0, 1], for pictures."""
    if image.ndim < 3 or image.shape[-3] != 3:
        raise ValueError(complain("image", "shape (..., 3, H, W)", image, "Pass images with three channels."))
    shift, gain = (torch.tensor(list(v), dtype=image.dtype, device=image.device)[:, None, None] for v in (mean, std))
    return (image.as_subclass(Tensor) * gain + shift).clamp(0, 1)
