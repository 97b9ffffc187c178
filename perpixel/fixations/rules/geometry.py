"""Where the taps of windows lie in their source, for convolutions and poolings alike, and the order they compete in."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from perpixel.fixations.points import Array

_KEPT = 1 << 18  # taps of all places together up to which they are kept for the next run


@dataclass(slots=True)
class Taps:
    """The taps of P windows: pixel int64 (P, T), image · places + place in the source; valid bool, None if all are."""

    pixel: Array
    valid: Array | None

    def part(self, part: slice) -> "Taps":
        """Those of some windows."""
        return Taps(self.pixel[part], None if self.valid is None else self.valid[part])


@dataclass(frozen=True)
class Window:
    """A kernel's settings; before: padding above and left of the image; mode: what the padding holds.

    by_phase: of a transposed kernel only the taps that can reach a place are looked at, 4 of the 64×64 taps of stride
    32: those of its phase, its place modulo the stride.
    """

    size: tuple[int, int]
    stride: tuple[int, int]
    before: tuple[int, int]
    dilation: tuple[int, int]
    mode: str = "zeros"
    transposed: bool = False
    by_phase: bool = False

    @property
    def is_point(self) -> bool:
        """Whether every unit looks at the pixel in its own place, and nothing else."""
        return self.size == self.stride == (1, 1) and self.before == (0, 0)


class WindowTable:
    """Where the windows of every place of a result lie in its source: worked out once for all places of a small one.

    order: the kernel's taps, preferred ones first. source, result: shapes (N, C, H, W). phases: for every phase, the
    places in `order` of its taps, int64 (phases, T), or None, with `lacking` where it has fewer.
    """

    def __init__(self, window: Window, order: list[int], source: tuple[int, ...], result: tuple[int, ...]) -> None:
        self.window, self.order, self.images = window, order, source[0]
        self.size, self.columns = (source[2], source[3]), result[3]
        self.source_places, self.places = source[2] * source[3], result[2] * result[3]
        self.phases: Array | None = None
        if window.by_phase:
            self.phases, self._lacking = _phases(window, order)
        taps = len(order) if self.phases is None else self.phases.shape[1]
        self._is_point = window.is_point
        self._all: Taps | None = None
        self._whole: Array | None = None
        if not self._is_point and self.places * taps <= _KEPT:
            self._all = self._taps(np.arange(self.places))
            self._whole = None if self._all.valid is None else np.all(self._all.valid, axis=1)

    def taps(self, pixel: Array) -> Taps:
        """Those of the windows of the result's units at `pixel`."""
        if self._is_point:
            return Taps(pixel[:, None], None)
        image = pixel // self.places if self.images > 1 else None
        place = pixel if image is None else pixel - image * self.places
        if self._all is None:
            found = self._taps(place)
        else:
            found = Taps(self._all.pixel.take(place, axis=0), None)
            if self._whole is not None and not self._whole.take(place).all():
                found.valid = self._all.valid.take(place, axis=0)  # type: ignore[union-attr]
        if image is not None:
            found.pixel = found.pixel + (image * self.source_places)[:, None]
        return found

    def phase(self, pixel: Array) -> Array:
        """The phases of the result's units at `pixel`."""
        place = pixel % self.places if self.images > 1 else pixel
        (y, x), (stride, along), (top, left) = np.divmod(place, self.columns), self.window.stride, self.window.before
        return (y + top) % stride * along + (x + left) % along

    def _taps(self, place: Array) -> Taps:
        """What lies outside is not valid, and stands at the pixel of the border next to it."""
        window, size, order = self.window, self.size, np.array(self.order)
        lacking: Array | bool = False
        if self.phases is not None:
            phase = self.phase(place)
            order, lacking = order[self.phases[phase]], self._lacking[phase]
        outs, offsets = np.divmod(place, self.columns), np.divmod(order, window.size[1])
        axes = []
        for axis, (out, offset) in enumerate(zip(outs, offsets)):
            stride, length = window.stride[axis], size[axis]
            if window.transposed:
                at = out[:, None] + (window.before[axis] - offset * window.dilation[axis])
                inside = (at % stride == 0) & (at >= 0) & (at < length * stride)
                at = at // stride
            else:
                at = (out * stride - window.before[axis])[:, None] + offset * window.dilation[axis]
                inside = (at >= 0) & (at < length)
                if window.mode != "zeros":
                    at, inside = _wrapped(at, length, window.mode), np.ones_like(inside)
            axes.append((at.clip(0, length - 1), inside))
        (y, y_inside), (x, x_inside) = axes
        valid = y_inside & x_inside & ~np.asarray(lacking)
        return Taps(y * size[1] + x, None if valid.all() else valid)


def _phases(window: Window, order: list[int]) -> tuple[Array, Array]:
    """`WindowTable.phases`, filled up with the first tap, and where it is."""
    (stride, along), (dilation, across) = window.stride, window.dilation
    y, x = np.divmod(np.array(order), window.size[1])
    phase = y * dilation % stride * along + x * across % along
    taps = [np.flatnonzero(phase == one) for one in range(stride * along)]
    filled = np.zeros((len(taps), max(map(len, taps))), np.int64)
    lacking = np.ones(filled.shape, np.bool_)
    for one, found in enumerate(taps):
        filled[one, : len(found)], lacking[one, : len(found)] = found, False
    return filled, lacking


@cache
def tap_order(size: tuple[int, int], published: bool, fixed: bool) -> list[int]:
    """The taps of a kernel, preferred ones first, so that the first of equal contributions is the one to take."""
    height, width = size
    taps = list(range(height * width))
    if published:
        return taps[::-1]
    cy, cx = (height // 2, width // 2) if fixed else ((height - 1) / 2, (width - 1) / 2)
    return sorted(taps, key=lambda t: ((t // width - cy) ** 2 + (t % width - cx) ** 2, t))


def centre_of(size: tuple[int, int], order: list[int]) -> int:
    """The place in the order of the tap at the kernel's centre."""
    return order.index(size[0] // 2 * size[1] + size[1] // 2)


def pair(value: Any, one: int | None = None) -> tuple[int, int]:
    """A setting per axis; on maps of one dimension `one`, which changes nothing, for the height."""
    if one is not None:
        return one, pair(value)[1]
    if isinstance(value, (tuple, list)):
        return (int(value[0]), int(value[-1]))
    return (int(value), int(value))


def as_map(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(N, C, L) as (N, C, 1, L)."""
    return shape if len(shape) != 3 else (*shape[:2], 1, shape[2])


def _wrapped(at: Array, length: int, mode: str) -> Array:
    """The place that padding of this mode copies from."""
    if mode == "circular":
        return at % length
    if mode == "reflect":
        at = abs(at)
        return np.where(at >= length, 2 * (length - 1) - at, at)
    return at.clip(0, length - 1)
