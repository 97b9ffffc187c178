"""Points on their way back: the units of one tensor that are followed, each once, and the labels that rest on them."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_DENSE = 4  # places per unit up to which counting in all of them costs less than sorting
_ROWS = 4  # of labels per unit, from which on those of one label are added up


@dataclass(slots=True)
class Units:
    """M units of one tensor (N, C, ...); a rule says where each goes.

    pixel: int64 (M,), image · places + place, row-major. channel: int64 (M,). minus: bool (M,), True where the question
    is what made the unit negative; None if nowhere. source: int64 (M,), sorted: which of the units that were moved each
    comes from; None if the i-th comes from the i-th. part: float64 (M,), its part of their mass; None for all of it.
    distinct: no two are equal.
    """

    pixel: Tensor
    channel: Tensor
    minus: Tensor | None = None
    source: Tensor | None = None
    part: Tensor | None = None
    distinct: bool = False

    def __len__(self) -> int:
        return self.pixel.shape[0]  # len(tensor) takes many times as long

    def at(self, pixel: Tensor, channel: Tensor, *, distinct: bool = False) -> "Units":
        """The same in other places."""
        return Units(pixel, channel, self.minus, self.source, self.part, distinct)

    def asked(self, minus: Tensor | None) -> "Units":
        """The same, asked what made them negative where `minus`; None for nowhere."""
        return Units(self.pixel, self.channel, minus, self.source, self.part)

    def flipped(self, where: Tensor) -> "Units":
        """The same, the question turned over where the mask says so."""
        minus = where if self.minus is None else where ^ self.minus
        return Units(self.pixel, self.channel, minus, self.source, self.part, self.distinct)

    def take(self, index: Tensor, part: Tensor | None = None) -> "Units":
        """The units at `index`, sorted, with this `part` of their mass each; or those that a mask marks."""
        if index.dtype == torch.bool:
            index = index.nonzero().squeeze(1)
        if part is None:
            part = None if self.part is None else self.part[index]
        elif self.part is not None:
            part = part * self.part[index]
        return Units(
            self.pixel.index_select(0, index),
            self.channel.index_select(0, index),
            None if self.minus is None else self.minus.index_select(0, index),
            index if self.source is None else self.source.index_select(0, index),
            part,
            self.distinct and part is None,
        )

    def signs(self, dtype: torch.dtype) -> Tensor | None:
        """+1, or -1 where `minus`, (M,); None if all are +1."""
        return None if self.minus is None else torch.where(self.minus, -1, 1).to(dtype)


@dataclass(slots=True)
class Points:
    """The points on one tensor: P rows of a label on a unit.

    group: int64 (P,), image · classes + label. unit: int64 (P,), which of the units. mass: float64 (P,), output pixels
    that rest on it. While the channel of a unit is still its label, `group` and `unit` are None: a row is a unit.
    """

    units: Units
    mass: Tensor
    group: Tensor | None = None
    unit: Tensor | None = None

    def total(self) -> float:
        """The mass of all points."""
        return float(self.mass.sum())

    def labelled(self, places: int, classes: int) -> "Points":
        """With rows of their own, on a tensor of so many places per image: the channel need not be the label."""
        if self.group is not None:
            return self
        group = self.units.pixel // places * classes + self.units.channel
        return Points(self.units, self.mass, group, torch.arange(group.shape[0], device=group.device))

    def moved(self, units: Units) -> "Points":
        """The points on `units`, which a rule made of this one's."""
        source, part = units.source, units.part
        units = Units(units.pixel, units.channel, units.minus, distinct=units.distinct)
        if source is None:
            return Points(units, self.mass if part is None else self.mass * part, self.group, self.unit)
        if self.group is None or self.unit is None:
            mass = self.mass.index_select(0, source)
            return Points(units, mass if part is None else mass * part)
        if part is not None:
            return self._shared_out(units, source, part)
        place = torch.full((len(self.units),), -1, device=source.device)
        place[source] = torch.arange(source.shape[0], device=source.device)
        unit = place.index_select(0, self.unit)
        rows = (unit >= 0).nonzero().squeeze(1)
        return Points(units, *(kept.index_select(0, rows) for kept in (self.mass, self.group, unit)))

    def _shared_out(self, units: Units, source: Tensor, part: Tensor) -> "Points":
        """Where a unit becomes several, each row becomes as many."""
        count = torch.bincount(source, minlength=len(self.units))
        first = count.cumsum(0) - count
        times = count[self.unit]
        row = torch.repeat_interleave(times)
        nth = torch.arange(row.shape[0], device=row.device) - (times.cumsum(0) - times)[row]
        unit = first[self.unit][row] + nth  # type: ignore[index]
        return Points(units, self.mass[row] * part[unit], self.group[row], unit)  # type: ignore[index]

    def portions(self, size: int) -> Iterator["Points"]:
        """The points on `size` units after the other."""
        if len(self.units) <= size:
            yield self
            return
        for start in range(0, len(self.units), size):
            index = torch.arange(start, min(start + size, len(self.units)), device=self.mass.device)
            yield self.moved(self.units.take(index))

    def heaviest(self, count: int) -> "Points":
        """The `count` rows with the largest mass, the first of equal ones, and the units they rest on."""
        if self.group is None or self.unit is None:
            rows = self.mass.sort(descending=True, stable=True).indices[:count].sort().values
            return self.moved(self.units.take(rows))
        rows = self.mass.sort(descending=True, stable=True).indices[:count].sort().values
        held = torch.zeros(len(self.units), dtype=torch.bool, device=rows.device)
        held[self.unit[rows]] = True
        return Points(self.units, self.mass[rows], self.group[rows], self.unit[rows]).moved(self.units.take(held))


def merged(parts: Sequence[Points], shape: tuple[int, ...], classes: int, *, add_up: bool) -> Points:
    """The points of all parts on a tensor of this shape, equal units as one, sorted by channel and pixel.

    add_up: one row for each label on a unit; without, only where that spares many.
    """
    places = math.prod(shape[2:])
    points = parts[0] if len(parts) == 1 else _joined(parts, places, classes)
    units, pixels = points.units, shape[0] * places
    if units.distinct and not add_up:
        return points
    key, size = units.channel * pixels + units.pixel, shape[1] * pixels
    if units.minus is not None:
        key, size = key * 2 + units.minus, size * 2
    if points.group is None and size <= _DENSE * key.shape[0]:
        counted = torch.bincount(key, points.mass, size)
        key = counted.nonzero().squeeze(1)
        return Points(_at_keys(key, pixels, units.minus is not None), counted.index_select(0, key))
    key, place = _distinct(key, size)
    units = _at_keys(key, pixels, units.minus is not None)
    if points.group is None or points.unit is None:
        return Points(units, torch.bincount(place, points.mass, len(units)))
    unit = place.index_select(0, points.unit)
    if not add_up and unit.shape[0] <= _ROWS * len(units):
        return Points(units, points.mass, points.group, unit)
    size = (int(points.group.max()) + 1) * len(units) if unit.shape[0] else 0
    key, place = _distinct(points.group * len(units) + unit, size)
    group = key // len(units) if len(units) else key
    return Points(units, torch.bincount(place, points.mass, key.shape[0]), group, key - group * len(units))


def _at_keys(key: Tensor, pixels: int, signed: bool) -> Units:
    unit = key >> 1 if signed else key
    channel = unit // pixels
    return Units(unit - channel * pixels, channel, (key & 1).bool() if signed else None, distinct=True)


def _joined(parts: Sequence[Points], places: int, classes: int) -> Points:
    minus = None
    if any(part.units.minus is not None for part in parts):
        none = [torch.zeros_like(part.units.pixel, dtype=torch.bool) for part in parts]
        minus = torch.cat([n if part.units.minus is None else part.units.minus for part, n in zip(parts, none)])
    pixel, channel = (torch.cat([getattr(part.units, name) for part in parts]) for name in ("pixel", "channel"))
    units = Units(pixel, channel, minus)
    if any(part.group is not None for part in parts):
        parts = [part.labelled(places, classes) for part in parts]
    mass = torch.cat([part.mass for part in parts])
    if parts[0].group is None:
        return Points(units, mass)
    rows, before = [], 0
    for part in parts:
        rows.append(part.unit + before)  # type: ignore[operator]
        before += len(part.units)
    return Points(units, mass, torch.cat([part.group for part in parts]), torch.cat(rows))  # type: ignore[misc]


def _distinct(key: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The distinct values of `key`, all below `size`, sorted, and the place of every value among them."""
    if size <= _DENSE * key.shape[0]:
        held = torch.zeros(size, dtype=torch.bool, device=key.device)
        held.index_fill_(0, key, True)
        found = held.nonzero().squeeze(1)
        place = torch.empty(size, dtype=torch.int64, device=key.device)
        place[found] = torch.arange(found.shape[0], device=key.device)
        return found, place.index_select(0, key)
    key, order = key.sort()
    found, run = torch.unique_consecutive(key, return_inverse=True)
    place = torch.empty_like(run)
    place[order] = run
    return found, place
