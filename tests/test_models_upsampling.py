"""Learnable upsampling starts as bilinear interpolation, wherever the cells lie; where layers put cells."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from perpixel.models.learnable_upsampling import Cells, LearnableUpsampling, cells_of, count_cells


@pytest.mark.parametrize("stride", [1, 2, 4, 8, 16, 32, 3])
def test_it_starts_as_bilinear_interpolation_borders_too(stride: int) -> None:
    maps = torch.randn(2, 3, 4, 5)
    upsampling = LearnableUpsampling(3, stride, (stride - 1) / 2)
    expected = F.interpolate(maps, scale_factor=stride, mode="bilinear", align_corners=False)
    torch.testing.assert_close(upsampling(maps, (4 * stride, 5 * stride)), expected, rtol=1e-5, atol=1e-6)


def slowly(maps: Tensor, stride: int, offset: float, size: tuple[int, int]) -> Tensor:
    """Pixel by pixel from its four cells; beyond the outermost cells their value."""
    result = maps.new_zeros(*maps.shape[:2], *size)
    for y in range(size[0]):
        for x in range(size[1]):
            at = [min(max((p - offset) / stride, 0), n - 1) for p, n in zip((y, x), maps.shape[2:])]
            for row in range(maps.shape[2]):
                for column in range(maps.shape[3]):
                    weight = max(0, 1 - abs(at[0] - row)) * max(0, 1 - abs(at[1] - column))
                    result[:, :, y, x] += weight * maps[:, :, row, column]
    return result


@given(
    stride=st.integers(1, 9),
    offset=st.floats(-20, 20).map(lambda x: round(2 * x) / 2) | st.floats(-9, 9),
    cells=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    size=st.tuples(st.integers(1, 14), st.integers(1, 14)),
)
def test_pixels_read_the_grid_where_its_cells_lie(
    stride: int, offset: float, cells: tuple[int, int], size: tuple[int, int]
) -> None:
    maps = torch.randn(1, 2, *cells, dtype=torch.float64)
    upsampling = LearnableUpsampling(2, stride, offset).double()
    upsampling.reset_parameters()
    torch.testing.assert_close(upsampling(maps, size), slowly(maps, stride, offset, size), rtol=1e-9, atol=1e-9)


def test_every_class_learns_a_kernel_of_its_own() -> None:
    upsampling, maps = LearnableUpsampling(3, 4, 1.5), torch.randn(2, 3, 4, 4, requires_grad=True)
    upsampling(maps, (15, 13))[:, 1].square().sum().backward()
    assert upsampling.weight.grad is not None
    assert [bool(of.any()) for of in upsampling.weight.grad] == [False, True, False]
    assert maps.grad is not None
    assert [bool(of.any()) for of in maps.grad.transpose(0, 1)] == [False, True, False]


LAYERS = {
    "convolution": (nn.Conv2d(1, 1, 7, stride=2, padding=3),),
    "dilated": (nn.Conv2d(1, 1, 3, stride=2, dilation=2, padding=1),),
    "rounding up": (nn.MaxPool2d(3, 2, ceil_mode=True), nn.MaxPool2d(2, 2, ceil_mode=True)),
    "padded, rounding up": (nn.MaxPool2d(3, 2, padding=1, ceil_mode=True),),
    "several": (nn.Conv2d(1, 1, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(1, 1, 5, padding=2)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_cells_are_counted_and_placed_as_the_layers_do(name: str) -> None:
    layers = LAYERS[name]
    stride, offset = cells_of(layers)
    for pixels in range(1, 60):
        x = torch.zeros(1, 1, pixels, 64)
        try:
            for layer in layers:
                x = layer(x)
        except RuntimeError:
            x = x[:, :, :0]
        assert count_cells(layers, pixels) == x.shape[2]
    image = torch.rand(1, 1, 128, 128, requires_grad=True)
    result = image
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.ones_(layer.weight)
        if isinstance(layer, nn.MaxPool2d):
            layer = nn.AvgPool2d(layer.kernel_size, layer.stride, layer.padding, ceil_mode=layer.ceil_mode)
        result = layer(result)
    for place in (4, 5):
        (gradient,) = torch.autograd.grad(result[0, 0, place].sum(), image, retain_graph=True)
        rows = gradient[0, 0].abs().sum(1).nonzero()
        assert float(rows[0] + rows[-1]) / 2 == offset + stride * place  # the middle of all that have a part in it


def test_cells_as_seen_from_finer_ones() -> None:
    assert Cells(32, 15.5).seen_from(Cells(16, 7.5)) == Cells(2, 0.5)
    assert Cells(32, 12.5).seen_from(Cells(16, -91.5)) == Cells(2, 6.5)
