"""Where the taps of a window lie in the source, for convolutions and poolings alike."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Taps:
    """Where the taps of P windows lie: pixel int64 (P, T) in the source's grid, valid bool (P, T), None if all are."""

    pixel: Tensor
    valid: Tensor | None

    def part(self, part: slice) -> "Taps":
        return Taps(self.pixel[part], None if self.valid is None else self.valid[part])


@dataclass(frozen=True)
class Window:
    """A kernel's settings; before: padding above and left of the image; mode: what the padding holds."""

    size: tuple[int, int]
    stride: tuple[int, int]
    before: tuple[int, int]
    dilation: tuple[int, int]
    mode: str = "zeros"
    transposed: bool = False

    @property
    def is_point(self) -> bool:
        """Whether every unit looks at the pixel in its own place, and nothing else."""
        return self.size == self.stride == (1, 1) and self.before == (0, 0)


def taps(row: Tensor, column: Tensor, window: Window, order: list[int], size: tuple[int, int]) -> Taps:
    """Where the taps, in `order`, of the windows of the units (row, column) lie in a source of `size`.

    What lies outside is not valid, and stands at the pixel of the border next to it.
    """
    if window.is_point:
        return Taps((row * size[1] + column)[:, None], None)
    tap = torch.tensor(order, device=row.device)
    axes = []
    for out, offset, axis in ((row, tap // window.size[1], 0), (column, tap % window.size[1], 1)):
        stride, length = window.stride[axis], size[axis]
        if window.transposed:
            at = out[:, None] + (window.before[axis] - offset * window.dilation[axis])
            inside = (at % stride == 0) & (at >= 0) & (at < length * stride)
            at = at // stride
        else:
            at = (out * stride - window.before[axis])[:, None] + offset * window.dilation[axis]
            inside = (at >= 0) & (at < length)
            if window.mode != "zeros":
                at, inside = _wrapped(at, length, window.mode), torch.ones_like(inside)
        axes.append((at.clamp(0, length - 1), inside))
    (y, y_inside), (x, x_inside) = axes
    padded = window.transposed or (window.mode == "zeros" and window.before != (0, 0)) or window.stride != (1, 1)
    valid = y_inside & x_inside if padded else None
    if valid is not None and bool(valid.all()):
        valid = None
    return Taps(y * size[1] + x, valid)


def flat(x: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
    """x (N, C, ...) in one row, copied only if it must be, and the steps from image to image, channel and place."""
    channels, area = x.shape[1], math.prod(x.shape[2:])
    spread = x.movedim(1, -1)
    if not x.is_contiguous() and spread.is_contiguous():
        return spread.reshape(-1), (channels * area, 1, channels)
    return x.reshape(-1), (channels * area, area, 1)


def pair(value: Any) -> tuple[int, int]:
    """A setting per axis."""
    if isinstance(value, (tuple, list)):
        return (int(value[0]), int(value[-1]))
    return (int(value), int(value))


def _wrapped(at: Tensor, length: int, mode: str) -> Tensor:
    """The place that padding of this mode copies from."""
    if mode == "circular":
        return at % length
    if mode == "reflect":
        at = at.abs()
        return torch.where(at >= length, 2 * (length - 1) - at, at)
    return at.clamp(0, length - 1)
