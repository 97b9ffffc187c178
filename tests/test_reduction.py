"""Masked reductions and labels on the grid."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from perpixel.reduction import labels_on_grid, masked_mean, masked_sum


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 20), st.integers(1, 20))
def test_labels_on_grid_picks_the_pixels_of_nearest_interpolation(height: int, width: int, h: int, w: int) -> None:
    labels = torch.arange(2 * height * width).view(2, height, width)
    expected = F.interpolate(labels[:, None].double(), size=(h, w), mode="nearest")[:, 0].long()
    assert torch.equal(labels_on_grid(labels, (h, w)), expected)


def test_masked_values_have_no_say() -> None:
    values = torch.tensor([1.0, torch.nan, 3.0, torch.inf], requires_grad=True)
    mask = torch.tensor([True, False, True, False])
    masked_mean(values, mask).backward()
    assert values.grad.tolist() == [0.5, 0, 0.5, 0]
    assert masked_sum(values, mask, weights=torch.tensor([2.0, torch.nan, 1.0, torch.nan])) == 5
    assert masked_mean(values, mask, weights=torch.tensor([3.0, 9.0, 1.0, 9.0])).item() == pytest.approx(1.5)
    assert masked_mean(values, torch.zeros_like(mask)) == 0
