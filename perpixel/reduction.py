"""Void pixels and means, once for all losses: replace bad inputs first, then mask, then divide. Batches as numbers."""

import torch
from torch import Tensor
from torch.nn import functional as F

_SPREAD = -1640531535  # 2^32 / golden ratio, odd: neighbouring places get unlike factors


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


def fingerprint(*tensors: Tensor) -> Tensor:
    """int64 (N, number of tensors), equal where the images of two batches are equal bit by bit.

    The sum over a tensor's words, times an odd factor that depends on the place, modulo 2^32 each; a change of any one
    word changes it. No wait for the device.
    """
    return torch.stack([_of_rows(tensor) for tensor in tensors], 1)


def _of_rows(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().contiguous()
    words = tensor.view(torch.int16 if tensor.element_size() == 2 else torch.int32).flatten(1)
    place = torch.arange(words.shape[1], device=tensor.device, dtype=torch.int32)
    return (words.to(torch.int32) * (place * _SPREAD * 2 + 1)).sum(1, dtype=torch.int64)
