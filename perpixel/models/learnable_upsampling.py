"""From a coarse grid to the pixels of an image, wherever the grid's cells lie: bilinear at first, then learned."""

import math
from collections.abc import Iterable
from typing import NamedTuple

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


def cells_of(layers: Iterable[nn.Module], start: Cells = Cells()) -> Cells:
    """The cells that convolutions and poolings, one after the other, make of those of `start`; others keep them."""
    stride, offset = start
    for layer in layers:
        if isinstance(layer, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)):
            size, step, padding, dilation = (
                (one if isinstance(one, int) else one[0])
                for one in (layer.kernel_size, layer.stride, layer.padding, getattr(layer, "dilation", 1))
            )
            offset += stride * (dilation * (size - 1) / 2 - padding)
            stride *= step
    return Cells(stride, offset)


class LearnableUpsampling(nn.Module):
    """Maps (N, C, h, w), size (H, W) -> (N, C, H, W): a transposed convolution that starts as bilinear interpolation.

    At first pixel y of the result reads the grid at (y - offset) / stride, between cells in proportion to their
    distance, beyond the outermost cells their value; with offset (stride - 1) / 2 and H = stride · h that is
    F.interpolate(mode="bilinear", align_corners=False), at the borders too (the grid is padded with copies of its
    border, and the result cropped).

    Each channel has a kernel of its own, `weight` (C, 1, k, k) with k = 2 · stride, one less where the offset is a whole
    number (of a stride that is odd, as a rule), and no bias. The original's C × C kernels, zero at first but on the
    diagonal, have C times the weights, and take 3 to 12 times as long for 21 classes on a CPU, for a mixture of
    classes that a 1×1 convolution before it gives as well.

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
