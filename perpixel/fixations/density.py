"""Maps and shares from fixations: density, outliers, mass on the object."""

import math

import torch
from torch import Tensor

NEAR, FEW = 0.02, 0.05  # Ganeshan 2017, section 2.4: fewer than 5 % of the points within 2 % of the diagonal


def outliers(group: Tensor, y: Tensor, x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bool (P,): points with fewer than 5 % of their group's points (themselves counted) within 2 % of the diagonal.

    A search in sorted points per image row within reach: O(P log P) for a given size.
    """
    if len(y) == 0:
        return torch.zeros_like(y, dtype=torch.bool)
    height, width = size
    reach = NEAR * math.hypot(height, width)
    rows = int(reach)
    line, step = width + 2, (width + 2) * (height + 2 * rows)  # keys of rows and groups never run into each other
    key = group * step + (y + rows) * line + x
    order = key.sort().values
    near = torch.zeros_like(y)
    for offset in range(-rows, rows + 1):
        span = int(math.sqrt(reach * reach - offset * offset))
        row = key - x + offset * line
        low, high = row + (x - span).clamp(min=0), row + (x + span).clamp(max=width - 1)
        near += torch.searchsorted(order, high, right=True) - torch.searchsorted(order, low)
    of_group = torch.unique(group, return_inverse=True, return_counts=True)
    return near < FEW * of_group[2][of_group[1]]


def density(
    group: Tensor, y: Tensor, x: Tensor, mass: Tensor, groups: int, size: tuple[int, int], sigma: float
) -> Tensor:
    """Masses blurred by a Gaussian cut at the border, float32 (groups, H, W); each map sums to its mass."""
    height, width = size
    found, place = torch.unique(group, return_inverse=True)
    maps = mass.new_zeros(len(found) * height * width)
    maps.index_add_(0, place * (height * width) + y * width + x, mass)
    maps = maps.view(-1, 1, height, width)
    for axis, length in ((2, height), (3, width)):
        offset = torch.arange(length, device=mass.device, dtype=mass.dtype)
        kernel = torch.exp(-0.5 * ((offset[:, None] - offset) / sigma) ** 2)
        kernel = kernel / kernel.sum(0)  # every point's column adds up to one
        maps = kernel @ maps if axis == 2 else maps @ kernel.T
    result = torch.zeros(groups, height, width, device=mass.device)
    result[found] = maps[:, 0].float()
    return result


def inside(group: Tensor, y: Tensor, x: Tensor, mass: Tensor, classes: int, labels: Tensor) -> Tensor:
    """Share of each group's mass at pixels of its label; labels (N, H, W) -> float64 (N, classes), NaN without mass."""
    image, label = group // classes, group % classes
    total = mass.new_zeros(labels.shape[0] * classes).index_add_(0, group, mass)
    hit = mass * (labels[image, y, x] == label)
    return (mass.new_zeros(len(total)).index_add_(0, group, hit) / total).view(-1, classes)
