"""Against known evidence: how much of a map lies on the pixels that decide, and whether its highest point does."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from perpixel.attribution.measures.context import PARTS, Attribution, check_maps, mass_of
from perpixel.checks import check_option, check_same_device, complain


@dataclass(frozen=True)
class EvidenceShare:
    """share: (N,) of the map's total that lies on the evidence; chance: (N,) of the area that does.

    A map spread evenly has share = chance. NaN: no evidence in the image, no pixel that counts, or a map of zeros.
    """

    share: Tensor
    chance: Tensor

    @property
    def density(self) -> Tensor:
        """share / chance: how many times the density of an even map, (N,)."""
        return self.share / self.chance


@dataclass(frozen=True)
class Pointing:
    """hit: (N,) 1 where the highest value lies on the evidence, else 0; chance: (N,) the area's share on the evidence.

    Where the highest value occurs k times, the share of these k that hit (a constant map hits by chance). NaN: no
    evidence in the image or no pixel that counts. Pointing game: Zhang et al. 2016 (arXiv 1608.00507).
    """

    hit: Tensor
    chance: Tensor

    @property
    def accuracy(self) -> float:
        """Mean of `hit` over the images with evidence."""
        return float(self.hit.nanmean())

    @property
    def expected(self) -> float:
        """Mean of `chance` over the images with evidence: what pointing at random would reach."""
        return float(self.chance.nanmean())


def evidence_share(
    values: Tensor | Attribution,
    evidence: Tensor,
    *,
    part: Literal["absolute", "positive", "negative"] = "absolute",
    where: Tensor | None = None,
) -> EvidenceShare:
    """Σ_{p in evidence} v_p / Σ_p v_p with v = |values|, max(values, 0) or max(-values, 0): each (N,), float64.

    values: (N, H, W); (N, C, H, W), of which v sums over the channels; or an `Attribution`. evidence: bool (N, H, W).
    where: bool (N, H, W), the pixels that count (the context of a region, say), None for all. ValueError for NaN or
    other sizes.
    """
    check_option("part", part, PARTS)
    weight, evidence, where = _checked(_mass(values, part), evidence, where)
    weight = torch.where(where, weight, 0)
    share = torch.where(evidence, weight, 0).sum((1, 2)) / weight.sum((1, 2))  # 0 / 0 is the NaN that is meant
    chance = _chance(evidence, where)
    return EvidenceShare(torch.where(chance.isnan(), torch.nan, share), chance)


def pointing(values: Tensor | Attribution, evidence: Tensor, *, where: Tensor | None = None) -> Pointing:
    """Does the highest value of each map lie on the evidence? (N, C, H, W) is summed over the channels first.

    Arguments and errors as in `evidence_share`.
    """
    values, evidence, where = _checked(values, evidence, where)
    highest = values.masked_fill(~where, -torch.inf).flatten(1).amax(1)[:, None, None]
    top = (values == highest) & where
    hit = (top & evidence).sum((1, 2)).double() / top.sum((1, 2))
    chance = _chance(evidence, where)
    return Pointing(torch.where(chance.isnan(), torch.nan, hit), chance)


def _mass(values: Tensor | Attribution, part: str) -> Tensor:
    """The part of every value, before the channels are summed; what are no numbers is left to be refused."""
    values = values.values if isinstance(values, Attribution) else values
    return mass_of(values, part) if isinstance(values, Tensor) and values.is_floating_point() else values


def _chance(evidence: Tensor, where: Tensor) -> Tensor:
    """Share of the pixels that count which are evidence; NaN where there is no evidence among them."""
    share = evidence.sum((1, 2)).double() / where.sum((1, 2))
    return torch.where(evidence.any(2).any(1), share, torch.nan)


def _checked(values: Tensor | Attribution, evidence: Tensor, where: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    values = as_map("values", values)
    where = torch.ones_like(values, dtype=torch.bool) if where is None else where
    for name, mask in (("evidence", evidence), ("where", where)):
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != values.shape:
            expected = f"a bool tensor (N, H, W) = {tuple(values.shape)}, like the values"
            raise ValueError(complain(name, expected, mask, "Compare integer masks with == 1 first."))
    check_same_device(values=values, evidence=evidence, where=where)
    return values, evidence & where, where


def as_mass(name: str, values: Tensor | Attribution, size: tuple[int, int, int] | None = None) -> Tensor:
    """|values|, summed over channels after that, as `context_share` has it; otherwise `as_map`."""
    return as_map(name, _mass(values, "absolute"), size)


def as_map(name: str, values: Tensor | Attribution, size: tuple[int, int, int] | None = None) -> Tensor:
    """Values (N, C, H, W) or (N, H, W) -> detached float64 (N, H, W), summed over channels; finite; of `size`."""
    values = values.pixels if isinstance(values, Attribution) else values
    shape = "(N, C, H, W) or (N, H, W)" + ("" if size is None else f" with (N, H, W) = {size}, like the images")
    values = check_maps(name, values, shape).double()
    values = values.sum(1) if values.ndim == 4 else values
    if values.numel() == 0 or (size is not None and tuple(values.shape) != tuple(size)):
        raise ValueError(complain(name, f"shape {shape}", values, "One map per image, at the images' size."))
    bad = ~torch.isfinite(values)
    if bool(bad.any()):
        came = f"NaN or infinity at (image, row, column) {tuple(bad.nonzero()[0].tolist())}"
        raise ValueError(complain(name, "finite values", came, "Look at the scores that were attributed."))
    return values
