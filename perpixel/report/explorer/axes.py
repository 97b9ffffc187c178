"""How logits on a grid become full size, as two small matrices, so that the page does just what the network does."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from perpixel.checks import check_option, complain
from perpixel.upsampling import axis_matrices

Upsampling = Literal["bilinear", "bilinear_aligned", "nearest"] | Callable[[Tensor], Tensor]
Size = tuple[int, int]


class Axes(NamedTuple):
    """float64 `rows` (H, h) and `columns` (W, w): values (..., h, w) at full size are rows @ values @ columns.T."""

    rows: Tensor
    columns: Tensor

    def __call__(self, values: Tensor) -> Tensor:
        """(..., h, w) -> (..., H, W) in the dtype of `values`."""
        return self.rows.to(values.dtype) @ values @ self.columns.to(values.dtype).T

    def after(self, finer: "Axes") -> "Axes":
        """This upsampling first, then `finer`."""
        return Axes(finer.rows @ self.rows, finer.columns @ self.columns)


def upsampling_axes(upsampling: Upsampling, grid: Size, size: Size) -> Axes:
    """The two matrices of a mode of `F.interpolate`, or of a callable (1, K, h, w) -> (1, K, H, W).

    ValueError if it is neither, or the callable gives another shape, or is not the product of a linear map of rows and
    one of columns.
    """
    if not callable(upsampling):
        check_option("upsampling", upsampling, ("bilinear", "bilinear_aligned", "nearest"))
        options = {} if upsampling == "nearest" else {"align_corners": upsampling == "bilinear_aligned"}
        mode = upsampling.removesuffix("_aligned")
        return Axes(*axis_matrices(grid, {"size": size, "mode": mode, **options}))
    each_row, each_column = (torch.eye(length, dtype=torch.float64) for length in grid)
    rows = [_called(upsampling, row[:, None].repeat(1, grid[1]), size)[:, 0] for row in each_row]
    columns = [_called(upsampling, column.repeat(grid[0], 1), size)[0] for column in each_column]
    axes = Axes(torch.stack(rows, 1), torch.stack(columns, 1))
    probe = torch.rand(grid, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    off = float((axes(probe) - _called(upsampling, probe, size)).abs().max())
    if not off <= 1e-4:
        expected = "a linear map of rows and columns, as F.interpolate is"
        came = f"one that differs from that by {off:.2g} on numbers in [0, 1]"
        raise ValueError(complain("upsampling", expected, came, "Pass logits and effects at full size instead."))
    return axes


def _called(upsampling: Callable[[Tensor], Tensor], values: Tensor, size: Size) -> Tensor:
    found = upsampling(values[None, None])
    if not isinstance(found, Tensor) or found.shape != (1, 1, *size):
        before, after = (f"(1, 1, {height}, {width})" for height, width in (values.shape, size))
        expected = f"a callable that brings {before} to {after}"
        raise ValueError(complain("upsampling", expected, found, "It must give maps at the size of the image."))
    return found[0, 0].detach().double().cpu()


def taps(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix (outputs, inputs) as the first input of every output, int32, and float64 weights of those from there."""
    used = matrix.abs() > 1e-9
    places = torch.arange(matrix.shape[1])
    first = torch.where(used, places, matrix.shape[1] - 1).amin(1)
    width = int((torch.where(used, places, 0).amax(1) - first).clamp(min=0).max()) + 1
    first = first.clamp(max=matrix.shape[1] - width)
    return first.int(), matrix.gather(1, first[:, None] + torch.arange(width))
