"""Which of a window's inputs a point moves to: the strongest contributions."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from perpixel.fixations.points import Units
from perpixel.fixations.rules.step import Conventions, K, Share

ELEMENTS = 1 << 18  # contributions looked at at once: few enough to stay in a core's cache
_FEW = 8  # up to here taking the highest k times costs less than sorting


@dataclass(slots=True)
class Chosen:
    """What was chosen: for each, its window (None: one for each in turn), tap and channel of the group, and its part of
    the mass (None: all); score (P,): the highest of each window, to look for NaN in."""

    window: Tensor | None
    tap: Tensor
    channel: Tensor
    part: Tensor | None
    score: Tensor

    def of(self, values: Tensor) -> Tensor:
        """`values` (P, ...) of the windows."""
        return values if self.window is None else values.index_select(0, self.window)

    def tap_of(self, values: Tensor) -> Tensor:
        """`values` (P, T) of the windows at the taps."""
        values = self.of(values)
        return (values if values.shape[1] == 1 else values.gather(1, self.tap[:, None])).view(-1)

    def move(self, units: Units, pixel: Tensor, channel: Tensor, value: Tensor | None = None) -> Units:
        """The units they were chosen for, where they go; asked what made the `value` there what it is, if given."""
        found = units if self.window is None else units.take(self.window, self.part)
        found = found.at(pixel, channel)
        if value is None:
            return found
        minus = value < 0
        return found.asked(minus if bool(minus.any()) else None)


class Products(Protocol):
    """What P windows give, contributions or inputs, (P, T, C); computed no further than asked for."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """P, T and C."""

    def whole(self) -> Tensor:
        """All of it, for the caller to write over."""

    def sums(self) -> Tensor:
        """Added up over the taps, (P, C), for the caller to write over."""

    def of(self, channel: Tensor) -> Tensor:
        """The channels (P, K) of every window, (P, T, K)."""


@dataclass(frozen=True)
class Given:
    """What is computed already."""

    given: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        count, length, channels = self.given.shape
        return count, length, channels

    def whole(self) -> Tensor:
        return self.given

    def sums(self) -> Tensor:
        return self.given.squeeze(1) if self.given.shape[1] == 1 else self.given.sum(1)

    def of(self, channel: Tensor) -> Tensor:
        return self.given.gather(2, channel[:, None, :].expand(-1, self.given.shape[1], -1))


def choose_in_slices(count: int, elements: int, choose_some: Callable[[slice], Chosen]) -> Chosen:
    """What is chosen for `count` windows of so many `elements`, looked at in slices."""
    size = max(1, ELEMENTS // max(elements, 1))
    if size >= count:
        return choose_some(slice(0, count))
    starts = range(0, count, size)
    found = [choose_some(slice(start, start + size)) for start in starts]
    window = None
    if any(some.window is not None for some in found):
        every = [torch.arange(some.tap.shape[0], device=some.tap.device) for some in found]
        parts = [each if some.window is None else some.window for some, each in zip(found, every)]
        window = torch.cat([part + start for start, part in zip(starts, parts)])
    part = None if found[0].part is None else torch.cat([some.part for some in found])  # type: ignore[misc]
    tap, channel, score = (torch.cat([getattr(some, name) for some in found]) for name in ("tap", "channel", "score"))
    return Chosen(window, tap, channel, part, score)


def choose(
    products: Products,
    minus: Tensor | None,
    valid: Tensor | None,
    conventions: Conventions,
    k: K,
    fixed: int | None = None,
) -> Chosen:
    """The strongest of what P windows give, at the `fixed` tap if there is one.

    By channels: those with the largest sum over the taps, and the best tap in each. By elements: the largest ones.
    Of equal ones the first, in the order of the taps, then of the channels; the published way takes the last channel.
    Its padding competes as 0; otherwise only `valid` (P, T) taps do, and a window without any has no choice. Where
    `minus` (P,), what is smallest is looked for.
    """
    count, length, channels = products.shape
    signs = None if minus is None else torch.where(minus, -1.0, 1.0)
    invalid = None if valid is None or conventions.published else ~valid
    if conventions.elements or channels == 1:
        place, part, score = _highest(_competing(products.whole(), signs, invalid).view(count, -1), k)
        tap, channel = (place, torch.zeros_like(place)) if channels == 1 else (place // channels, place % channels)
    else:
        sums = products.sums()
        sums = sums if signs is None else sums.mul_(signs[:, None])
        channel, part, score = _highest(sums, k, last=conventions.published)
        if length == 1 or fixed is not None:
            tap = torch.zeros_like(channel)
        else:
            given = _competing(products.of(channel), signs, invalid).transpose(1, 2)
            tap = highest_place(given.flatten(0, 1)).view(channel.shape)
    if fixed is not None:
        tap = torch.full_like(tap, fixed)
        if invalid is not None:
            tap = valid.to(torch.uint8).argmax(1)[:, None].expand_as(tap)  # type: ignore[union-attr]
    has = None if invalid is None else ~invalid.all(1, keepdim=True)
    if part is None and (has is None or bool(has.all())):
        return Chosen(None, tap.view(-1), channel.view(-1), None, score)
    keep = torch.ones_like(tap, dtype=torch.bool) if part is None else part > 0
    keep = keep if has is None else keep & has
    window = torch.arange(count, device=tap.device)[:, None].expand_as(keep)[keep]
    return Chosen(window, tap[keep], channel[keep], None if part is None else part[keep], score)


def _competing(given: Tensor, signs: Tensor | None, invalid: Tensor | None) -> Tensor:
    """`given` (P, T, K), written over: signed, and -inf at taps that do not compete."""
    if signs is not None:
        given = given.mul_(signs[:, None, None])
    return given if invalid is None else given.masked_fill_(invalid[:, :, None], -torch.inf)


def highest_place(scores: Tensor) -> Tensor:
    """The first place of the highest of each row of scores (P, C); NaN counts as highest."""
    if scores.device.type == "cpu":  # numpy's takes a tenth of the time
        return torch.from_numpy(scores.numpy().argmax(1))
    return scores.argmax(1)


def _highest(scores: Tensor, k: K, last: bool = False) -> tuple[Tensor, Tensor | None, Tensor]:
    """The k highest of scores (P, C), which are written over: their places (P, k), parts (P, k) of the mass or None for
    k = 1, and the highest (P, 1). Of equal ones the first, or the last."""
    if last:
        scores = scores.flip(1)
    place = highest_place(scores)[:, None]
    ranked, part = scores.gather(1, place), None
    high = ranked
    if isinstance(k, Share) or k > _FEW:
        ranked, place = scores.sort(dim=1, descending=True, stable=True)
    elif k > 1:
        places, ranks = [place], [ranked]
        while len(places) < min(k, scores.shape[1]):
            scores.scatter_(1, places[-1], -torch.inf)
            places.append(highest_place(scores)[:, None])
            ranks.append(scores.gather(1, places[-1]))
        ranked, place = torch.cat(ranks, 1), torch.cat(places, 1)
    if k != 1:
        keep = ranked.isfinite()
        if isinstance(k, Share):
            kept = torch.where(keep, ranked, 0)
            keep = keep & (kept.cumsum(1) - kept < k.share * kept.sum(1, keepdim=True))
            count = max(int(keep.sum(1).max()), 1)
        else:
            count = k
        place, ranked, keep = place[:, :count], ranked[:, :count], keep[:, :count]
        part = torch.where(keep, ranked, 0).clamp(min=0).double()
        part[:, :1] = torch.where(part.sum(1, keepdim=True) > 0, part[:, :1], 1.0)
        part = part / part.sum(1, keepdim=True)
    return (scores.shape[1] - 1 - place if last else place), part, high
