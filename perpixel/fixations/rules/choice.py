"""Which of a window's inputs a point moves to: the strongest contributions."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from perpixel.fixations.points import Array, Units
from perpixel.fixations.rules.step import Conventions, Count, Share
from perpixel.fixations.rules.values import Block, beside, highest, host, signed

ELEMENTS = 1 << 18  # contributions looked at at once: few enough to stay in a core's cache
_FEW = 8  # up to here taking the highest k times costs less than sorting


@dataclass(slots=True)
class Chosen:
    """What was chosen: for each, its window (None: one for each in turn), tap and channel of the group, and its part of
    the mass (None: all); score (P,): the highest of each window, to look for NaN in."""

    window: Array | None
    tap: Array
    channel: Array
    part: Array | None
    score: Array

    def of(self, values: Array) -> Array:
        """`values` (P, ...) of the windows."""
        return values if self.window is None else values.take(self.window, axis=0)

    def tap_of(self, values: Array) -> Array:
        """`values` (P, T) of the windows at the taps."""
        length = values.shape[1]
        if length == 1:
            return self.of(values[:, 0])
        first = np.arange(0, values.size, length) if self.window is None else self.window * length
        return values.ravel().take(first + self.tap)

    def move(self, units: Units, pixel: Array, channel: Array, value: Array | None = None) -> Units:
        """The units they were chosen for, where they go; asked what made the `value` there what it is, if given."""
        found = units if self.window is None else units.take(self.window, self.part)
        found = found.at(pixel, channel)
        return found if value is None else found.asked(value < 0)


class Products(Protocol):
    """What P windows give, contributions or inputs, (P, T, C); computed no further than asked for."""

    shape: tuple[int, int, int]

    def whole(self) -> Block:
        """All of it, for the caller to write over."""

    def sums(self) -> Block:
        """Added up over the taps, (P, C), for the caller to write over."""

    def of(self, channel: Array) -> Array:
        """The channels (P, K) of every window, (P, K, T), for the caller to write over."""


class Given:
    """What is computed already: (P, T), of one channel each."""

    def __init__(self, given: Array) -> None:
        self.given, self.shape = given[:, :, None], (*given.shape, 1)

    def whole(self) -> Array:
        """(P, T, 1)."""
        return self.given

    def sums(self) -> Array:
        """(P, 1)."""
        return self.given.sum(1)

    def of(self, channel: Array) -> Array:
        """(P, 1, T)."""
        return self.given.transpose(0, 2, 1)


def choose_in_slices(count: int, elements: int, choose_some: Callable[[slice], Chosen]) -> Chosen:
    """What is chosen for `count` windows of so many `elements`, looked at in slices."""
    size = max(1, ELEMENTS // max(elements, 1))
    if size >= count:
        return choose_some(slice(0, count))
    starts = range(0, count, size)
    found = [choose_some(slice(start, start + size)) for start in starts]
    window = None
    if any(some.window is not None for some in found):
        parts = [np.arange(len(some.tap)) if some.window is None else some.window for some in found]
        window = np.concatenate([part + start for start, part in zip(starts, parts)])
    part = None if found[0].part is None else np.concatenate([some.part for some in found])
    tap, channel, score = (np.concatenate([getattr(c, name) for c in found]) for name in ("tap", "channel", "score"))
    return Chosen(window, tap, channel, part, score)


def choose(
    products: Products,
    minus: Array | None,
    valid: Array | None,
    conventions: Conventions,
    k: Count,
    fixed: int | None = None,
) -> Chosen:
    """The strongest of what P windows give, at the `fixed` tap if there is one.

    By channels: those with the largest sum over the taps, and the best tap in each. By elements: the largest ones.
    Of equal ones the first, in the order of the taps, then of the channels; the published way takes the last channel.
    Its padding competes as 0; otherwise only `valid` (P, T) taps do, and a window without any has no choice. Where
    `minus` (P,), what is smallest is looked for.
    """
    count, length, channels = products.shape
    invalid = None if conventions.published or valid is None else ~valid
    if conventions.elements or channels == 1:
        given = signed(products.whole(), minus)
        if invalid is not None:
            given[beside(invalid, given)] = -np.inf
        place, part, score = _highest(given.reshape(count, -1), k)
        tap, channel = (place, np.zeros(place.shape, np.int64)) if channels == 1 else np.divmod(place, channels)
    else:
        channel, part, score = _highest(signed(products.sums(), minus), k, last=conventions.published)
        tap = np.zeros(channel.shape, np.int64)
        if length > 1 and fixed is None:
            of_channel = signed(products.of(channel), minus)
            if invalid is not None:
                np.copyto(of_channel, -np.inf, where=invalid[:, None])
            tap = of_channel.argmax(2)
    if fixed is not None:
        tap = np.full_like(tap, fixed)
        if invalid is not None:
            tap[:] = invalid.argmin(1)[:, None]
    some = None if invalid is None else ~np.all(invalid, axis=1)
    if part is None and (some is None or some.all()):
        return Chosen(None, tap[:, 0], channel[:, 0], None, score)
    keep = np.ones_like(tap, np.bool_) if part is None else part > 0
    if some is not None:
        keep &= some[:, None]
    window = np.arange(count)[:, None].repeat(keep.shape[1], 1)[keep]
    return Chosen(window, tap[keep], channel[keep], None if part is None else part[keep], score)


def _highest(scores: Block, k: Count, *, last: bool = False) -> tuple[Array, Array | None, Array]:
    """The k highest of scores (P, C), which are written over: their places (P, k), parts (P, k) of the mass or None for
    k = 1, and the highest (P,). Of equal ones the first, or the last."""
    place, high = highest(scores, last=last)
    if k == 1:
        return place[:, None], None, high
    if isinstance(k, Share) or k > _FEW:
        given = torch.as_tensor(scores)
        ordered = (given.flip(1) if last else given).sort(dim=1, descending=True, stable=True)
        ranks, places = host(ordered.values), host(ordered.indices)
        places = scores.shape[1] - 1 - places if last else places
    else:
        found, window = [(place, high)], np.arange(len(place))
        while len(found) < min(k, scores.shape[1]):
            scores[beside(window, scores), beside(found[-1][0], scores)] = -np.inf
            found.append(highest(scores, last=last))
        places, ranks = (np.stack(of, 1) for of in zip(*found))
    finite = np.isfinite(ranks)
    ranks = np.where(finite, ranks, 0)
    if isinstance(k, Share):
        finite &= ranks.cumsum(1) - ranks < k.share * ranks.sum(1, keepdims=True)
        k = max(int(finite.sum(1).max()), 1)
    part = np.where(finite, ranks, 0)[:, :k].clip(min=0).astype(np.float64)
    part[:, 0] = np.where(part.sum(1) > 0, part[:, 0], 1.0)
    return places[:, :k], part / part.sum(1, keepdims=True), high
