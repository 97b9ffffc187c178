"""Which of a window's inputs a point moves to: taps, their order, and the strongest contributions."""

from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from perpixel.fixations.points import Points
from perpixel.fixations.rules.geometry import Taps
from perpixel.fixations.rules.step import K, Share, Way

BLOCK = 64  # of a row of scores; long enough for a vectorised maximum
ELEMENTS = 1 << 18  # contributions looked at at once: few enough to stay in a core's cache


@dataclass(frozen=True)
class Chosen:
    """What was chosen: for each, the place of its point, tap and channel of the group, and its part of the mass."""

    point: Tensor
    tap: Tensor
    channel: Tensor
    part: Tensor | None  # None: all of it
    score: Tensor  # (P, ...), to look for NaN in


def tap_order(size: tuple[int, int], way: Way, fixed: bool) -> list[int]:
    """The taps of a kernel, preferred ones first, so that the first of equal contributions is the one to take."""
    return _order(size, way.published, fixed)


@cache
def _order(size: tuple[int, int], published: bool, fixed: bool) -> list[int]:
    height, width = size
    taps = list(range(height * width))
    if published:
        return taps[::-1]
    cy, cx = (height // 2, width // 2) if fixed else ((height - 1) / 2, (width - 1) / 2)
    return sorted(taps, key=lambda t: ((t // width - cy) ** 2 + (t % width - cx) ** 2, t))


def centre_of(size: tuple[int, int], order: list[int]) -> int:
    """The place in the order of the tap at the kernel's centre."""
    return order.index(size[0] // 2 * size[1] + size[1] // 2)


def by_elements(way: Way, channels: int) -> bool:
    """Whether single contributions are ranked, not channels."""
    return way.elements or channels == 1


def is_fixed(way: Way, dilation: tuple[int, int]) -> bool:
    """Whether points keep their place here."""
    return way.shift == "none" or (way.shift == "partial" and max(dilation) > 1)


class Given(Protocol):
    """What P windows give, contributions or inputs, (P, T, C); computed no further than asked for."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """P, T and C."""

    def whole(self) -> Tensor:
        """All of it."""

    def sums(self) -> Tensor:
        """Added up over the taps, (P, C)."""

    def at(self, channel: Tensor) -> Tensor:
        """The channels (P, K) of every window, (P, T, K)."""


@dataclass(frozen=True)
class Plain:
    """What is computed already."""

    given: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        count, length, channels = self.given.shape
        return count, length, channels

    def whole(self) -> Tensor:
        return self.given

    def sums(self) -> Tensor:
        return self.given[:, 0] if self.given.shape[1] == 1 else self.given.sum(1)

    def at(self, channel: Tensor) -> Tensor:
        return self.given.gather(2, channel[:, None, :].expand(-1, self.given.shape[1], -1))


def choose(given: Given, points: Points, taps: Taps, way: Way, k: K, fixed: int | None) -> Chosen:
    """The strongest of what P windows give, at the `fixed` tap if there is one.

    By channels: those with the largest sum over the taps, and the best tap in each. By elements: the largest ones.
    Of equal ones the first, in the order of the taps, then of the channels; the published way takes the last channel.
    Its padding competes as 0; otherwise only valid taps do, and a window without any has no choice. Points with sign
    -1 look for what is smallest.
    """
    count, length, channels = given.shape
    valid = None if way.published else taps.valid
    if by_elements(way, channels):
        place, part, score = _best(_competing(given.whole(), points, valid).reshape(count, -1), k, last=False)
        tap, channel = place // channels, place % channels
    else:
        sums = given.sums()
        channel, part, score = _best(sums if points.sign is None else sums * points.sign[:, None], k, way.published)
        if length == 1 or fixed is not None:
            tap = torch.zeros_like(channel)
        else:
            tap = _competing(given.at(channel), points, valid).argmax(1)
    if fixed is not None:
        tap = torch.full_like(tap, fixed)
        if valid is not None:
            tap = valid.to(torch.uint8).argmax(1)[:, None].expand_as(tap)
    point = torch.arange(count, device=tap.device)
    if part is None and valid is None:
        return Chosen(point, tap[:, 0], channel[:, 0], None, score)
    keep = torch.ones_like(tap, dtype=torch.bool) if part is None else part > 0
    if valid is not None:
        keep = keep & valid.any(1, keepdim=True)
    point = point[:, None].expand_as(keep)[keep]
    return Chosen(point, tap[keep], channel[keep], None if part is None else part[keep], score)


def _competing(given: Tensor, points: Points, valid: Tensor | None) -> Tensor:
    if points.sign is not None:
        given = given * points.sign[:, None, None]
    return given if valid is None else given.masked_fill(~valid[:, :, None], -torch.inf)


def moved(points: Points, chosen: Chosen, unit: Tensor, values: Tensor | None) -> Points:
    """The points on the chosen units; where the value there is negative, so is the question from now on."""
    group, mass = points.group[chosen.point], points.mass[chosen.point]
    if chosen.part is not None:
        mass = mass * chosen.part
    result = Points(group, unit, mass)
    return result if values is None else result.signed(torch.where(values < 0, -1, 1))


def first_highest(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The highest of each row of scores (P, C) and its first place, both (P, 1); NaN counts as highest."""
    count, length = scores.shape
    if scores.numel() < 1 << 15 or length < 2 * BLOCK or length % BLOCK or scores.device.type != "cpu":
        high, place = scores.max(1, keepdim=True)
        return high, place
    blocks = scores.reshape(count, -1, BLOCK)  # a maximum without its place is many times faster
    columns = blocks.amax(1)
    high, column = columns.max(1, keepdim=True)
    block = blocks.gather(2, column[:, :, None].expand(-1, length // BLOCK, 1))[:, :, 0].max(1, keepdim=True).indices
    place = block * BLOCK + column
    several = ((columns == high).sum(1) != 1).nonzero().squeeze(1)
    if len(several):
        place[several] = scores[several].max(1, keepdim=True).indices
    return high, place


def _best(scores: Tensor, k: K, last: bool) -> tuple[Tensor, Tensor | None, Tensor]:
    """The k highest of scores (P, C): places (P, k), parts (P, k) of the mass or None for k = 1, the highest score."""
    if last:
        scores = scores.flip(1)
    if k == 1:
        high, place = first_highest(scores)
        part = None
    else:
        ranked, place = scores.sort(dim=1, descending=True, stable=True)
        high = ranked[:, :1]
        keep = ranked.isfinite()
        if isinstance(k, Share):
            total = torch.where(keep, ranked, 0).sum(1, keepdim=True)
            before = torch.where(keep, ranked, 0).cumsum(1) - torch.where(keep, ranked, 0)
            keep = keep & (before < k.share * total)
        else:
            place, ranked, keep = place[:, :k], ranked[:, :k], keep[:, :k]
        part = torch.where(keep, ranked, 0).clamp(min=0).double()
        total = part.sum(1, keepdim=True)
        part[:, :1] = torch.where(total > 0, part[:, :1], 1.0)
        part = part / part.sum(1, keepdim=True)
    return (scores.shape[1] - 1 - place if last else place), part, high
