"""Points on their way back: the units of one tensor that are followed, each once, and the labels that rest on them.

Where units are and what rests on them is kept in numpy: these are many small steps, and numpy's cost least.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
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

    pixel: Array
    channel: Array
    minus: Array | None = None
    source: Array | None = None
    part: Array | None = None
    distinct: bool = False

    def __len__(self) -> int:
        return len(self.pixel)

    def at(self, pixel: Array, channel: Array, *, distinct: bool = False) -> "Units":
        """The same in other places."""
        return Units(pixel, channel, self.minus, self.source, self.part, distinct)

    def asked(self, minus: Array) -> "Units":
        """The same, asked what made them negative where `minus`, positive elsewhere."""
        return Units(self.pixel, self.channel, minus if minus.any() else None, self.source, self.part)

    def flipped(self, where: Array) -> "Units":
        """The same, the question turned over where the mask says so."""
        minus = where if self.minus is None else where ^ self.minus
        return Units(self.pixel, self.channel, minus, self.source, self.part, self.distinct)

    def take(self, index: Array, part: Array | None = None) -> "Units":
        """The units at `index`, sorted, with this `part` of their mass each; or those that a mask marks."""
        if index.dtype == np.bool_:
            index = index.nonzero()[0]
        if self.part is not None:
            part = self.part.take(index) if part is None else part * self.part.take(index)
        return Units(
            self.pixel.take(index),
            self.channel.take(index),
            None if self.minus is None else self.minus.take(index),
            index if self.source is None else self.source.take(index),
            part,
            self.distinct and part is None,
        )


@dataclass(slots=True)
class Points:
    """The points on one tensor: P rows of a label on a unit.

    group: int64 (P,), image · classes + label. unit: int64 (P,), which of the units. mass: float64 (P,), output pixels
    that rest on it. While the channel of a unit is still its label, `group` and `unit` are None: a row is a unit.
    """

    units: Units
    mass: Array
    group: Array | None = None
    unit: Array | None = None

    def total(self) -> float:
        """The mass of all points."""
        return float(self.mass.sum())

    def rows(self) -> tuple[Array, Array]:
        """Group and unit of every row, once `labelled`."""
        if self.group is None or self.unit is None:
            raise RuntimeError("points whose channel is their label have no rows; label them first")
        return self.group, self.unit

    def labelled(self, places: int, classes: int) -> "Points":
        """With rows of their own, on a tensor of so many places per image: the channel need not be the label."""
        if self.group is not None:
            return self
        group = self.units.pixel // places * classes + self.units.channel
        return Points(self.units, self.mass, group, np.arange(len(group)))

    def moved(self, units: Units) -> "Points":
        """The points on `units`, which a rule made of this one's."""
        source, part = units.source, units.part
        if source is not None or part is not None:
            units = Units(units.pixel, units.channel, units.minus, distinct=units.distinct)
        if source is None:
            return Points(units, self.mass if part is None else self.mass * part, self.group, self.unit)
        if self.group is None or self.unit is None:
            mass = self.mass.take(source)
            return Points(units, mass if part is None else mass * part)
        if part is not None:
            return self._shared_out(units, source, part)
        place = np.full(len(self.units), -1)
        place[source] = np.arange(len(source))
        unit = place.take(self.unit)
        rows = (unit >= 0).nonzero()[0]
        return Points(units, self.mass.take(rows), self.group.take(rows), unit.take(rows))

    def _shared_out(self, units: Units, source: Array, part: Array) -> "Points":
        """Where a unit becomes several, each row becomes as many."""
        group, of_row = self.rows()
        count = np.bincount(source, minlength=len(self.units))
        first = count.cumsum() - count
        times = count.take(of_row)
        row = np.arange(len(times)).repeat(times)
        unit = np.arange(len(row)) + (first.take(of_row) - times.cumsum() + times).take(row)
        return Points(units, self.mass.take(row) * part.take(unit), group.take(row), unit)

    def portions(self, size: int) -> Iterator["Points"]:
        """The points on `size` units after the other."""
        if len(self.units) <= size:
            yield self
            return
        for start in range(0, len(self.units), size):
            yield self.moved(self.units.take(np.arange(start, min(start + size, len(self.units)))))

    def heaviest(self, count: int) -> "Points":
        """The `count` rows with the largest mass, the first of equal ones, and the units they rest on."""
        rows = np.sort((-self.mass).argsort(kind="stable")[:count])
        if self.group is None or self.unit is None:
            return self.moved(self.units.take(rows))
        held = np.zeros(len(self.units), np.bool_)
        held[self.unit.take(rows)] = True
        kept = Points(self.units, self.mass.take(rows), self.group.take(rows), self.unit.take(rows))
        return kept.moved(self.units.take(held))


def merged(parts: Sequence[Points], shape: tuple[int, ...], classes: int, *, add_up: bool) -> Points:
    """The points of all parts on a tensor of this shape, equal units as one, sorted by channel and pixel.

    add_up: one row for each label on a unit; without, only where that spares many.
    """
    places = math.prod(shape[2:])
    points = parts[0] if len(parts) == 1 else _joined(parts, places, classes)
    units, pixels = points.units, shape[0] * places
    if units.distinct:
        return points
    signed = units.minus is not None
    key, size = units.channel * pixels + units.pixel, shape[1] * pixels
    if units.minus is not None:
        key, size = key * 2 + units.minus, size * 2
    if points.group is None and size <= _DENSE * len(key):
        mass = sums(key, points.mass, size)
        key = mass.nonzero()[0]
        return Points(_units_at(key, pixels, signed), mass.take(key))
    key, place = _distinct(key, size)
    units = _units_at(key, pixels, signed)
    if points.group is None or points.unit is None:
        return Points(units, sums(place, points.mass, len(key)))
    unit = place.take(points.unit)
    if not add_up and len(unit) <= _ROWS * len(units):
        return Points(units, points.mass, points.group, unit)
    size = (int(points.group.max()) + 1) * len(units) if len(unit) else 0
    key, place = _distinct(points.group * len(units) + unit, size)
    group = key // max(len(units), 1)
    return Points(units, sums(place, points.mass, len(key)), group, key - group * len(units))


def _joined(parts: Sequence[Points], places: int, classes: int) -> Points:
    units = [part.units for part in parts]
    minus = None
    if any(some.minus is not None for some in units):
        minus = np.concatenate([np.zeros(len(u), np.bool_) if u.minus is None else u.minus for u in units])
    joined = Units(np.concatenate([u.pixel for u in units]), np.concatenate([u.channel for u in units]), minus)
    if any(part.group is not None for part in parts):
        parts = [part.labelled(places, classes) for part in parts]
    mass = np.concatenate([part.mass for part in parts])
    if parts[0].group is None:
        return Points(joined, mass)
    rows = [part.rows() for part in parts]
    before = np.cumsum([0, *(len(some) for some in units)])
    unit = np.concatenate([of + start for (_, of), start in zip(rows, before)])
    return Points(joined, mass, np.concatenate([group for group, _ in rows]), unit)


def _units_at(key: Array, pixels: int, signed: bool) -> Units:
    unit = key >> 1 if signed else key
    channel = unit // pixels
    return Units(unit - channel * pixels, channel, (key & 1).astype(np.bool_) if signed else None, distinct=True)


def _distinct(key: Array, size: int) -> tuple[Array, Array]:
    """The distinct values of `key`, all below `size`, sorted, and the place of every value among them."""
    if size <= _DENSE * len(key):
        held = np.zeros(size, np.bool_)
        held[key] = True
        found = held.nonzero()[0]
        place = np.empty(size, np.int64)
        place[found] = np.arange(len(found))
        return found, place.take(key)
    order = key.argsort()
    key = key.take(order)
    first = np.empty(len(key), np.bool_)
    first[:1] = True
    np.not_equal(key[1:], key[:-1], out=first[1:])
    place = np.empty(len(key), np.int64)
    place[order] = first.cumsum() - 1
    return key[first], place


def sums(place: Array, mass: Array, size: int) -> Array:
    """The masses at each of `size` places added up, float64."""
    return np.bincount(place, mass, size).astype(np.float64, copy=False)  # of nothing, numpy makes integers
