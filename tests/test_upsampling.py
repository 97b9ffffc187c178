"""The matrices by which `F.interpolate` resizes, against itself; and when channels go together in memory."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from perpixel.memory_format import channels_last_is_faster, memory_format
from perpixel.upsampling import axis_matrices, axis_matrix

GRID = (5, 7)
OPTIONS: list[dict[str, Any]] = [
    {"size": (11, 16)},
    {"size": 9, "mode": "nearest-exact"},
    {"size": (3, 20), "mode": "area"},
    {"size": (13, 15), "mode": "bilinear"},
    {"size": (13, 15), "mode": "bilinear", "align_corners": True},
    {"size": (2, 3), "mode": "bilinear", "antialias": True},
    {"size": [12, 13], "mode": "bicubic", "align_corners": False},
    {"scale_factor": 2.3, "mode": "bilinear"},
    {"scale_factor": (2, 1.7), "mode": "bilinear", "recompute_scale_factor": True},
    {"size": None, "scale_factor": 3, "mode": "nearest"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_rows_and_columns_are_what_interpolate_does(options: dict[str, Any]) -> None:
    maps = torch.randn(2, 3, *GRID, dtype=torch.float64)
    rows, columns = axis_matrices(GRID, options)
    torch.testing.assert_close(rows @ maps @ columns.T, F.interpolate(maps, **options))
    torch.testing.assert_close(rows.sum(1), torch.ones(len(rows), dtype=torch.float64))


def test_one_axis() -> None:
    expected = torch.tensor([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]], dtype=torch.float32)
    found = axis_matrix(2, size=4, mode="bilinear", dtype=torch.float32)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert torch.equal(axis_matrix(1, size=3, mode="bilinear", antialias=True), torch.ones(3, 1).double())
    torch.testing.assert_close(axis_matrix(2, scale_factor=2, mode="bilinear").float(), expected)


def test_channels_go_together_in_large_batches_on_the_cpu() -> None:
    images = torch.zeros(2, 3, 100, 100)
    if torch.backends.mkldnn.is_available():
        assert channels_last_is_faster(images)
    assert not channels_last_is_faster(images, 1)
    assert not channels_last_is_faster(images.double())
    assert memory_format(images) == torch.contiguous_format
    assert memory_format(images.contiguous(memory_format=torch.channels_last)) == torch.channels_last
    assert memory_format(images[:, :1]) == torch.contiguous_format
