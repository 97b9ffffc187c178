"""Points on their way back: flat arrays, merged where they coincide."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

FEW = 4096  # up to here one sort is cheaper than looking for runs of equal keys first


@dataclass(frozen=True)
class Points:
    """P points on one tensor.

    group: int64 (P,), image · classes + label. unit: int64 (P,), place in the image's part of the tensor, row-major
    (channel, y, x). mass: float64 (P,), output pixels that rest on the point. sign: int64 (P,), +1, or -1 where the
    question is what made the unit negative; None if all are +1.
    """

    group: Tensor
    unit: Tensor
    mass: Tensor
    sign: Tensor | None = None
    distinct: bool = False  # merged already

    def __len__(self) -> int:
        return len(self.unit)

    def at(self, unit: Tensor) -> "Points":
        """The same points on other units."""
        return replace(self, unit=unit, distinct=False)

    def flipped(self, where: Tensor) -> "Points":
        """The same points, the sign turned over where the mask says so."""
        sign = torch.where(where, -1, 1) if self.sign is None else torch.where(where, -self.sign, self.sign)
        return self.signed(sign)

    def signed(self, sign: Tensor) -> "Points":
        """The same points with these signs."""
        return replace(self, sign=sign if bool((sign < 0).any()) else None, distinct=False)

    def take(self, index: Tensor | slice) -> "Points":
        """The points at `index`, or those a mask marks."""
        sign = None if self.sign is None else self.sign[index]
        return Points(self.group[index], self.unit[index], self.mass[index], sign)

    def total(self) -> float:
        """The mass of all points."""
        return float(self.mass.sum())


def merged(parts: Sequence[Points], units: int) -> Points:
    """One point per (group, unit, sign), sorted so, masses added up; `units` is the tensor's size per image."""
    if len(parts) == 1 and parts[0].distinct:
        return parts[0]
    key = torch.cat([(part.group * units + part.unit) * 2 + _negative(part) for part in parts])
    mass = torch.cat([part.mass for part in parts])
    if len(key) > FEW:
        key, mass = _runs(key, mass)
    key, order = key.sort()
    key, mass = _runs(key, mass[order])
    place = key >> 1
    group = place // units
    sign = None if all(part.sign is None for part in parts) else 1 - 2 * (key & 1)
    return Points(group, place - group * units, mass, sign, distinct=True)


def _negative(points: Points) -> Tensor | int:
    return 0 if points.sign is None else (points.sign < 0).long()


def _runs(key: Tensor, mass: Tensor) -> tuple[Tensor, Tensor]:
    """Neighbours with equal keys as one."""
    key, run = torch.unique_consecutive(key, return_inverse=True)
    return (key, mass) if len(key) == len(mass) else (key, mass.new_zeros(len(key)).index_add_(0, run, mass))
