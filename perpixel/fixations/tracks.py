"""Points for k = 1 on the CPU: those on equal units end on equal units, so each unit is followed once, in numpy."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from perpixel.fixations.points import Points

Array = np.ndarray[Any, Any]
_FEW = 48  # up to here following equal units costs less than finding them
_DENSE = 4  # units per track up to which counting costs less than sorting


@dataclass(slots=True)
class Tracks:
    """M units on one tensor (N, C, ...).

    pixel: int64 (M,), image · places per image + place. channel: int64 (M,). mass: float64 (M,), output pixels that
    rest on the unit. minus: bool (M,), where the question is what made the unit negative; None if nowhere. id: int64
    (M,), what `Tape` knows the unit by; None while the channel is still the label. distinct: no two are equal.
    """

    pixel: Array
    channel: Array
    mass: Array
    minus: Array | None = None
    id: Array | None = None
    distinct: bool = False

    def __len__(self) -> int:
        return len(self.pixel)

    def at(self, pixel: Array, channel: Array, minus: Array | None) -> "Tracks":
        """The same tracks on other units."""
        return Tracks(pixel, channel, self.mass, minus if minus is not None and minus.any() else None, self.id)

    def take(self, index: Array) -> "Tracks":
        """The tracks at `index`."""
        return Tracks(
            self.pixel.take(index),
            self.channel.take(index),
            self.mass.take(index),
            None if self.minus is None else self.minus.take(index),
            None if self.id is None else self.id.take(index),
            self.distinct,
        )

    def signs(self, dtype: Any) -> Array | None:
        """+1, or -1 where `minus`; None if all are +1."""
        return None if self.minus is None else np.where(self.minus, dtype.type(-1), dtype.type(1))


class Tape:
    """Which units became one: leads from every start to the unit its trace passes at any node."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self._group: Array | None = None  # image · classes + label of every start
        self._mass: Array = np.zeros(0)
        self._merges: list[tuple[Array, Array]] = []  # the ids of units, and the ids they became
        self._next = 0

    @property
    def merges(self) -> int:
        """How many there were so far."""
        return len(self._merges)

    def begin(self, tracks: Tracks, area: int) -> None:
        """From here on the channel is not the label any more."""
        if tracks.id is None:
            self._group, self._mass = self._groups(tracks, area), tracks.mass
            self._next = len(tracks)
            tracks.id = np.arange(self._next)

    def merged(self, parts: Sequence[Tracks], channels: int, pixels: int) -> Tracks:
        """The parts, on a tensor of so many channels and pixels, as one; equal units as one."""
        tracks = parts[0] if len(parts) == 1 else _joined(parts)
        if tracks.distinct or len(tracks) <= _FEW:
            return tracks
        key = tracks.channel * pixels + tracks.pixel  # by channel, so that its weights are read once
        if tracks.minus is not None:
            key = key * 2 + tracks.minus
        elif tracks.id is None and channels * pixels <= _DENSE * len(tracks):
            mass = np.bincount(key, tracks.mass)
            key = mass.nonzero()[0]
            channel = key // pixels
            return Tracks(key - channel * pixels, channel, mass.take(key), distinct=True)
        order = key.argsort(kind="stable")
        key = key.take(order)
        new = np.empty(len(key), np.bool_)
        new[:1] = True
        np.not_equal(key[1:], key[:-1], out=new[1:])
        first = new.nonzero()[0]
        result = tracks.take(order.take(first))
        result.distinct = True
        if len(first) == len(key):
            return result
        result.mass = np.add.reduceat(tracks.mass.take(order), first)
        if tracks.id is not None:
            result.id = np.arange(self._next, self._next + len(first))
            self._merges.append((tracks.id.take(order), new.cumsum() + (self._next - 1)))
            self._next += len(first)
        return result

    def points(self, tracks: Tracks, area: int, merges: int | None = None) -> Points:
        """The points that `tracks`, as they were after so many merges, stand for; not merged, not sorted."""
        if tracks.id is None:
            group, mass = self._groups(tracks, area), tracks.mass
        else:
            place = np.full(self._next, -1)
            place[tracks.id] = np.arange(len(tracks))
            for old, new in reversed(self._merges[:merges]):
                place[old] = place.take(new)
            place = place[: len(self._mass)]
            passes = (place >= 0).nonzero()[0]
            group, mass = self._group.take(passes), self._mass.take(passes)  # type: ignore[union-attr]
            tracks = tracks.take(place.take(passes))
        sign = None if tracks.minus is None else torch.from_numpy(1 - 2 * tracks.minus.astype(np.int64))
        unit = tracks.channel * area + tracks.pixel % area
        return Points(torch.from_numpy(group), torch.from_numpy(unit), torch.from_numpy(mass), sign)

    def _groups(self, tracks: Tracks, area: int) -> Array:
        return tracks.pixel // area * self.classes + tracks.channel


def _joined(parts: Sequence[Tracks]) -> Tracks:
    minus = None
    if any(part.minus is not None for part in parts):
        minus = np.concatenate([np.zeros(len(p), np.bool_) if p.minus is None else p.minus for p in parts])
    return Tracks(
        np.concatenate([part.pixel for part in parts]),
        np.concatenate([part.channel for part in parts]),
        np.concatenate([part.mass for part in parts]),
        minus,
        np.concatenate([part.id for part in parts]),
    )
