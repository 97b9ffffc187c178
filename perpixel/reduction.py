"""Void pixels and means, once for all losses: replace bad inputs first, then mask, then divide."""

import torch
from torch import Tensor
from torch.nn import functional as F


def valid_mask(labels: Tensor, ignore_index: int) -> Tensor:
    """Bool tensor like `labels`: True where the pixel counts."""
    return labels != ignore_index


def labels_on_grid(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Labels (N, H, W) -> (N, h, w): the very pixels that `F.interpolate(mode="nearest")` picks."""
    if tuple(labels.shape[-2:]) == tuple(size):
        return labels
    rows, columns = (
        F.interpolate(torch.arange(n, device=labels.device, dtype=torch.float32)[None, None], size=m, mode="nearest")
        .long()
        .flatten()
        for n, m in zip(labels.shape[-2:], size, strict=True)
    )
    return labels.index_select(-2, rows).index_select(-1, columns)


def masked_sum(values: Tensor, mask: Tensor, *, weights: Tensor | None = None) -> Tensor:
    """Sum of (weights times) `values` where `mask`; what lies outside, NaN too, has no say in value or gradient."""
    values = torch.where(mask, values, 0.0)
    if weights is not None:
        values = values * torch.where(mask, weights, 0.0)
    return values.sum()


def masked_mean(values: Tensor, mask: Tensor, *, weights: Tensor | None = None) -> Tensor:
    """Sum of `masked_sum` over the sum of the weights (1 each by default) where `mask`; zero where nothing counts."""
    total = (mask if weights is None else torch.where(mask, weights, 0.0)).sum().to(values.dtype)
    return masked_sum(values, mask, weights=weights) / torch.where(total > 0, total, 1.0)
