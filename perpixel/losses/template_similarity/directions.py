"""Directions of feature vectors: norms that cannot overflow, unit rows, and thin products over blocks of channels.

The features (N, D, P) are read in blocks of channels through one small float32 (float64 for float64) scratch block: no
normalised copy, no loss of precision in half types, and pixels that do not count cannot leak a NaN. Every vector is
scaled by its largest entry before it is squared.

A vector whose norm is at most 1e-8 (float16: 6e-5), or whose centred norm is at most √eps of its norm (half types:
8 eps), has no direction: its inverse norm is 0.
"""

from collections.abc import Iterator

import torch
from torch import Tensor


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, else float32: the dtype in which sums are taken."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _thresholds(dtype: torch.dtype) -> tuple[float, float]:
    """Smallest norm, and smallest centred norm as a share of the norm, that still has a direction in `dtype`."""
    info, wide = torch.finfo(dtype), torch.finfo(compute_dtype(dtype))
    return max(1e-8, info.tiny), max(wide.eps**0.5, 8 * info.eps if dtype.itemsize == 2 else 0.0)


def channel_blocks(x: Tensor, valid: Tensor, mean: Tensor | None) -> Iterator[tuple[slice, Tensor]]:
    """(channels, block) over x (N, D, P): the block centred by `mean` and zero where not `valid`, reused each time."""
    channels = x.shape[1]
    step = max(channels // 16, 8) if x.device.type == "cpu" else max(channels // 4, 64)
    scratch = torch.empty_like(x[:, :step], dtype=compute_dtype(x.dtype))
    # and-ing the bits with all ones or all zeros drops pixels, NaN included, several times faster than masked_fill_
    bits = torch.int64 if scratch.dtype == torch.float64 else torch.int32
    kept = -valid[:, None].to(bits)
    for start in range(0, channels, step):
        part = slice(start, min(start + step, channels))
        block = scratch[:, : part.stop - part.start]
        if mean is None and x.dtype == scratch.dtype:
            torch.bitwise_and(x[:, part].view(bits), kept, out=block.view(bits))
        else:
            block.copy_(x[:, part])
            if mean is not None:
                block.sub_(mean[:, None])
            block.view(bits).bitwise_and_(kept)
        yield part, block


def _inverse_norm(largest: Tensor, squares: Tensor, mean: Tensor | None, channels: int, dtype: torch.dtype) -> Tensor:
    """1/norm from the largest entry and the squares summed in its units; 0 where the vector has no direction."""
    smallest_norm, smallest_share = _thresholds(dtype)
    norm = squares.sqrt()
    clear = norm * largest > smallest_norm
    if mean is not None:
        whole = (squares + channels * (mean / torch.where(largest > 0, largest, 1.0)) ** 2).sqrt()
        clear = clear & (norm > smallest_share * whole)
    safe = torch.where(clear, norm, 1.0)
    return torch.where(clear, 1.0 / safe / torch.where(clear, largest, 1.0), 0.0)


def pixel_norms(x: Tensor, valid: Tensor, centred: bool) -> tuple[Tensor, Tensor | None]:
    """Inverse norm (N, P) of every pixel's vector, and its mean over the channels if `centred`."""
    inverse, mean, _ = norms_and_products(x, valid, centred, None)
    return inverse, mean


def norms_and_products(
    x: Tensor, valid: Tensor, centred: bool, rows: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor]:
    """`pixel_norms`, and in the same pass the dot products (N, K, P) of the (centred) pixels with rows (K, D)."""
    wide = compute_dtype(x.dtype)
    shape = (x.shape[0], x.shape[2])
    largest, mean = x.new_zeros(shape, dtype=wide), None
    if centred:
        mean = x.new_zeros(shape, dtype=wide)
        for _, block in channel_blocks(x, valid, None):
            mean.add_(block.sum(1), alpha=1.0 / x.shape[1])
    for _, block in channel_blocks(x, valid, mean):
        torch.maximum(largest, block.abs_().amax(1), out=largest)
    unit = torch.where(largest > torch.finfo(wide).tiny, largest, 1.0).reciprocal_()[:, None]
    squares = torch.zeros_like(largest)
    products = largest.new_zeros(x.shape[0], 0 if rows is None else rows.shape[0], x.shape[2])
    for part, block in channel_blocks(x, valid, mean):
        if rows is not None:
            products.baddbmm_(rows[:, part].expand(x.shape[0], -1, -1), block)
        squares += block.mul_(unit).square_().sum(1)
    return _inverse_norm(largest, squares, mean, x.shape[1], x.dtype), mean, products


def unit_rows(rows: Tensor, centred: bool) -> tuple[Tensor, Tensor]:
    """Unit vectors (C, D) of the rows and their inverse norms (C,); a row without direction gives zeros."""
    wide = rows.to(compute_dtype(rows.dtype))
    mean = wide.mean(1) if centred else None
    if mean is not None:
        wide = wide - mean[:, None]
    largest = wide.abs().amax(1)
    scaled = wide / torch.where(largest > torch.finfo(wide.dtype).tiny, largest, 1.0)[:, None]
    inverse = _inverse_norm(largest, scaled.square().sum(1), mean, rows.shape[1], rows.dtype)
    return wide * inverse[:, None], inverse


def products_with(x: Tensor, valid: Tensor, mean: Tensor | None, rows: Tensor) -> Tensor:
    """Dot products (N, K, P) of the (centred) pixels with rows (K, D)."""
    sums = rows.new_zeros(x.shape[0], rows.shape[0], x.shape[2])
    for part, block in channel_blocks(x, valid, mean):
        sums.baddbmm_(rows[:, part].expand(x.shape[0], -1, -1), block)
    return sums


def weighted_sums(x: Tensor, valid: Tensor, mean: Tensor | None, weights: Tensor) -> Tensor:
    """Sums (K, D) over all pixels of weights (N, K, P) times the (centred) pixels."""
    sums = weights.new_empty(weights.shape[1], x.shape[1])
    for part, block in channel_blocks(x, valid, mean):
        sums[:, part] = torch.bmm(weights, block.transpose(1, 2)).sum(0)
    return sums
