"""From a coarse grid to the pixels of an image, wherever the grid's cells lie: bilinear at first, then learned."""

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perpixel.checks import check_integer, check_number


class Cells(NamedTuple):
    """Where the cells of a grid lie: pixel offset + stride · i is at the centre of cell i, of rows and of columns."""

    stride: int = 1
    offset: float = 0.0

    def seen_from(self, finer: "Cells") -> "Cells":
        """The same with the cells of a finer grid as pixels."""
        return Cells(self.stride // finer.stride, (self.offset - finer.offset) / finer.stride)


def cells_of(layers: Iterable[nn.Module]) -> Cells:
    """The cells that convolutions and poolings, one after the other, make of the pixels; other layers keep them."""
    stride, offset = Cells()
    for size, step, padding, _ in _windows(layers):
        offset += stride * ((size - 1) / 2 - padding)
        stride *= step
    return Cells(stride, offset)


def count_cells(layers: Iterable[nn.Module], pixels: int) -> int:
    """How many cells the layers make of an image of so many pixels, along one axis; 0 if it is too small for them."""
    for size, step, padding, ceil in _windows(layers):
        cells = (pixels + 2 * padding - size + (step - 1) * ceil) // step + 1
        if ceil and (cells - 1) * step >= pixels + padding:  # no window begins in the padding behind
            cells -= 1
        if cells <= 0:
            return 0
        pixels = cells
    return pixels


def _windows(layers: Iterable[Any]) -> Iterator[tuple[int, int, int, bool]]:
    """Size, stride, padding and ceil_mode of every window, along one axis."""
    kinds = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
    for layer in (layer for layer in layers if isinstance(layer, kinds)):
        given: Any = (layer.kernel_size, layer.stride, layer.padding, getattr(layer, "dilation", 1))
        size, step, padding, dilation = (one if isinstance(one, int) else one[0] for one in given)
        yield dilation * (size - 1) + 1, step, padding, getattr(layer, "ceil_mode", False)


class LearnableUpsampling(nn.Module):
    """Maps (N, C, h, w), size (H, W) -> (N, C, H, W): a transposed convolution that starts as bilinear interpolation.

    At first pixel y of the result reads the grid at (y - offset) / stride, between cells in proportion to their
    distance, beyond the outermost cells their value; with offset (stride - 1) / 2 and H = stride · h that is
    F.interpolate(mode="bilinear", align_corners=False), at the borders too (the grid is padded with copies of its
    border, and the result cropped).

    Each channel has a kernel of its own, `weight` (C, 1, k, k) with k = 2 · stride, one less where the offset is a
    whole number, and no bias. The original's C × C kernels, zero at first but on the diagonal, have C times the weights
    and the work, and mix the classes of scores that a layer of their own has made just before.

    channels: C. stride: pixels of the result from one cell to the next. offset: the pixel at the centre of cell 0; see
    `cells_of` for that of a layer. Source: Long, Shelhamer and Darrell 2015 (arXiv 1411.4038), section 3.3.
    """

    def __init__(self, channels: int, stride: int, offset: float) -> None:
        super().__init__()
        self.channels = check_integer("channels", channels, low=1)
        self.stride = check_integer("stride", stride, low=1)
        self.offset = check_number("offset", offset)
        centre = self.stride - 1 + self.offset % 1
        self.weight = nn.Parameter(torch.empty(self.channels, 1, *2 * [math.ceil(centre + self.stride)]))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Bilinear interpolation."""
        taps = torch.arange(self.weight.shape[-1], dtype=torch.float64)
        row = (1 - (taps - (self.stride - 1 + self.offset % 1)).abs() / self.stride).clamp(min=0)
        with torch.no_grad():
            self.weight.copy_(row[:, None] * row)

    def forward(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        top, bottom, y = place(self.stride, self.offset, maps.shape[-2], size[0])
        left, right, x = place(self.stride, self.offset, maps.shape[-1], size[1])
        padded = F.pad(maps, (left, right, top, bottom), mode="replicate")
        result = F.conv_transpose2d(padded, self.weight, stride=self.stride, groups=self.channels)
        return result[..., y : y + size[0], x : x + size[1]]

    def extra_repr(self) -> str:
        return f"{self.channels}, stride={self.stride}, offset={self.offset:g}"


def place(stride: int, offset: float, cells: int, size: int) -> tuple[int, int, int]:
    """Cells to add before a grid of `cells` and behind it, and where its transposed convolution is cut to `size`."""
    before = max(0, math.ceil(offset / stride))
    behind = max(0, math.ceil((size - 1 - offset) / stride) - (cells - 1))
    return before, behind, stride - 1 + before * stride - math.floor(offset)


torch.fx.wrap("place")  # its numbers may not be worked out from the sizes that symbolic_trace stands in
