"""Deletion and insertion curves: an order of patches, the scores as they are taken away, and the area to a control."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from perpixel.attribution.faithfulness.region_scores import RegionScores
from perpixel.checks import check_option, complain

_TIES = 0x71E5  # seed of the order among equal values; the random orders have seeds of their own


@dataclass(frozen=True)
class Curve:
    """The scores of N images while their patches are removed (deletion) or put back (insertion), best-ranked first.

    fraction: (N, K) from 0 to 1: share of the patches removed, or put back; the K points differ by rounding only.
    scores: name -> (N, K). random: name -> (S, N, K), the same for S random orders, one per seed.
    controls: name of another order -> name of a score -> (N, K).

    Deletion starts at the image and ends at the baseline, insertion the other way round. Score names: "logit" and
    "margin" are means over the region, "iou" compares the label's mask in the whole map with that of the image.
    """

    kind: Literal["deletion", "insertion"]
    fraction: Tensor
    scores: Mapping[str, Tensor]
    random: Mapping[str, Tensor]
    controls: Mapping[str, Mapping[str, Tensor]]

    def ends(self, score: str = "logit") -> tuple[Tensor, Tensor]:
        """The score of the image as it is, and with everything removable removed: each (N,)."""
        curve = self.scores[_name(score, self.scores)]
        first, last = curve[:, 0], curve[:, -1]
        return (first, last) if self.kind == "deletion" else (last, first)

    def area(self, score: str = "logit", order: str = "attribution") -> Tensor:
        """∫ score d(fraction), trapezoids: (N,); for order="random" (S, N)."""
        curve = self._curve(score, order)
        return torch.trapezoid(curve, self.fraction.expand(curve.shape), dim=-1)

    def gain(self, score: str = "logit", order: str = "random") -> Tensor:
        """Signed area between the attribution's curve and that of another order, positive where the attribution wins.

        Winning is a curve below the other in deletion and above it in insertion. (N,), in units of the score; the
        random orders count by their mean.
        """
        other = self.area(score, order)
        other = other.mean(0) if order == "random" else other
        difference = self.area(score) - other
        return difference if self.kind == "insertion" else -difference

    def relative_gain(self, score: str = "logit", order: str = "random") -> Tensor:
        """`gain` over |score of the image - score with all removed|: (N,), NaN where these two are equal."""
        return self.gain(score, order) / self._span(score).abs()

    def beaten(self, score: str = "logit") -> Tensor:
        """Share of the random orders with a worse area than the attribution's, equal ones count half: (N,)."""
        own, others = self.area(score), self.area(score, "random")
        worse = others > own if self.kind == "deletion" else others < own
        share = (worse + 0.5 * (others == own)).to(own.dtype).mean(0)
        return torch.where(own.isnan(), torch.nan, share)

    def band(self, score: str = "logit", low: float = 0.0, high: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, lower and upper quantile over the random orders (0 and 1: least and greatest): each (N, K)."""
        curves = self.random[_name(score, self.random)]
        return curves.mean(0), curves.quantile(low, 0), curves.quantile(high, 0)

    def normalised(self, score: str = "logit", order: str = "attribution") -> Tensor:
        """Curves scaled so that the image is 1 and everything removed is 0: (N, K), random (S, N, K).

        NaN where removing everything changes nothing. Where it raises the score, a falling curve is a rising score;
        `gain` and `relative_gain` keep their sign then.
        """
        _, empty = self.ends(score)
        return (self._curve(score, order) - empty[:, None]) / self._span(score)[:, None]

    def _curve(self, score: str, order: str) -> Tensor:
        check_option("order", order, ("attribution", "random", *self.controls))
        held = {"attribution": self.scores, "random": self.random, **self.controls}[order]
        return held[_name(score, held)]

    def _span(self, score: str) -> Tensor:
        """Score of the image minus that with all removed; NaN where that is no more than rounding."""
        full, empty = self.ends(score)
        rounding = 16 * torch.finfo(torch.float32).eps * torch.maximum(full.abs(), empty.abs())
        return torch.where((full - empty).abs() > rounding, full - empty, torch.nan)


def _name(score: str, held: Mapping[str, Tensor]) -> str:
    return str(check_option("score", score, held))


@dataclass(frozen=True)
class Cells:
    """What is removed together. number: (H, W), the cell of every pixel; removable: bool (N, H, W)."""

    number: Tensor
    count: int
    removable: Tensor

    @classmethod
    def of(cls, patch: tuple[int, int], removable: Tensor) -> "Cells":
        """A grid of patches (height, width) from the upper left corner; the last ones are cut off by the border."""
        rows, columns = (torch.arange(n, device=removable.device) // p for n, p in zip(removable.shape[-2:], patch))
        width = int(columns[-1]) + 1
        return cls(rows[:, None] * width + columns, (int(rows[-1]) + 1) * width, removable)

    def total(self, values: Tensor) -> Tensor:
        """(N, H, W) -> (N, cells): the sum over the removable pixels of every cell."""
        kept = torch.where(self.removable, values, 0).flatten(1)
        number = self.number.flatten().expand_as(kept)
        return kept.new_zeros(len(kept), self.count).scatter_add_(1, number, kept)

    def mean(self, values: Tensor) -> Tensor:
        """(N, H, W) -> (N, cells): the mean over the removable pixels of every cell, 0 where there is none."""
        return self.total(values) / self.total(self.removable.to(values.dtype)).clamp(min=1)

    @cached_property
    def used(self) -> Tensor:
        """bool (N, cells): cells with at least one removable pixel."""
        return self.total(self.removable.double()) > 0

    def rank(self, worth: Tensor) -> Tensor:
        """(N, cells) -> int32 ranks, 0 = highest `worth`; equal ones in a fixed random order, unused cells last."""
        ties = random_key(self.count, _TIES, worth.device).argsort()
        shuffled = worth.masked_fill(~self.used, -torch.inf)[:, ties]
        order = ties[shuffled.argsort(dim=1, descending=True, stable=True)]
        place = torch.arange(self.count, dtype=torch.int32, device=order.device).expand_as(order)
        return torch.empty_like(place, memory_format=torch.contiguous_format).scatter_(1, order, place)

    def reversed(self, rank: Tensor) -> Tensor:
        """The same order from the other end; unused cells stay last."""
        last = self.used.sum(1, keepdim=True, dtype=rank.dtype) - 1
        return torch.where(self.used, last - rank, rank)


def random_key(count: int, seed: int, device: torch.device) -> Tensor:
    """Independent uniform numbers, the same for every image of a batch and on every device."""
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(device)


def removal_curves(
    scores: RegionScores, orders: Mapping[str, Tensor], cells: Cells, *, steps: int, seeds: tuple[int, ...]
) -> tuple[Curve, Curve]:
    """Deletion and insertion curves of every order in `orders` (name -> worth (N, cells)), "attribution" among them.

    Insertion, best first, is deletion, worst first, read backwards; a random order's insertion is thus the deletion of
    its reverse, and its passes serve both: (2 · orders + seeds) · (steps - 1) + 2 passes per image.
    """
    units = cells.used.sum(1)
    if bool((units == 0).any()):
        came = f"no pixel outside the region in image {int((units == 0).nonzero()[0])}"
        raise ValueError(complain("region", "some pixels to remove", came, "Pass freeze_object=False."))
    steps = min(steps, int(units.max()))
    at = torch.arange(steps + 1, device=units.device)
    counts = (2 * at * units[:, None] + steps) // (2 * steps)  # (N, steps + 1): gone at each point, from none to all
    fraction = counts / units[:, None]
    ranked = [cells.rank(worth) for worth in orders.values()]
    backward = [cells.reversed(rank) for rank in ranked]
    keys = [random_key(cells.count, seed, units.device).expand(len(units), -1) for seed in seeds]
    ranks = torch.stack([*ranked, *backward, *(cells.rank(key) for key in keys)])
    found = _removal_scores(scores, ranks, counts, cells)
    given, reverse, random = found.split([len(ranked), len(ranked), len(seeds)])
    deletion = _curve("deletion", fraction, given, random, tuple(orders))
    insertion = _curve("insertion", 1 - fraction.flip(1), reverse.flip(2), random.flip(2), tuple(orders))
    return deletion, insertion


def _removal_scores(scores: RegionScores, ranks: Tensor, counts: Tensor, cells: Cells) -> Tensor:
    """(O, N, K, scores): of every image with the first `counts` (N, K) cells of every order `ranks` (O, N, cells) gone.

    One pass per picture; the ends, where nothing or all is gone, are the same for all orders and are scored once.
    """
    orders, (n, points) = len(ranks), counts.shape
    ends = torch.cartesian_prod(torch.zeros(1).long(), torch.arange(n), torch.tensor([0, points - 1]))
    inner = torch.cartesian_prod(torch.arange(orders), torch.arange(n), torch.arange(1, points - 1))
    order, image, point = torch.cat([ends, inner]).to(ranks.device).unbind(1)

    def gone(rows: slice) -> Tensor:
        places = ranks[order[rows], image[rows]][:, cells.number.flatten()]
        removed = places < counts[image[rows], point[rows]][:, None]
        return removed.view(-1, *cells.number.shape) & cells.removable[image[rows]]

    found = scores.hiding(image, gone, "curves")
    outer, middle = found[: 2 * n].view(n, 2, -1), found[2 * n :].view(orders, n, points - 2, found.shape[-1])
    outer = outer.expand(orders, *outer.shape)
    return torch.cat([outer[:, :, :1], middle, outer[:, :, 1:]], 2)


def _curve(
    kind: Literal["deletion", "insertion"], fraction: Tensor, found: Tensor, random: Tensor, orders: tuple[str, ...]
) -> Curve:
    def named(scores: Tensor) -> dict[str, Tensor]:
        return {name: scores[..., i] for i, name in enumerate(RegionScores.names)}

    by_order = {order: named(scores) for order, scores in zip(orders, found)}
    return Curve(kind, fraction.to(found.dtype), by_order.pop("attribution"), named(random), by_order)
