"""How much of an attribution lies outside the region it explains, and how far away."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from perpixel.attribution.inputs import counted, named_labels
from perpixel.checks import check_integer, check_number, check_option, check_tensor, complain
from perpixel.reduction import labels_on_grid

PARTS = ("absolute", "positive", "negative")


@dataclass(frozen=True, eq=False, repr=False)
class Attribution:
    """What every input value gives to the score of a label on a region, and numbers on where it comes from.

    values: signed, like the images, (N, channels, H, W); the map of a layer method is the same in every channel.
    region: bool (N, H, W), at image size. label: int, or int64 (N,). method: captum's name for it.
    delta: (N,), what the values leave unexplained: their sum minus the score's change from baseline to image (for
        layer methods the sum is that on the layer; samples averaged). None where the method has no such bound.
    layer: the layer of a layer method. score: "logit" or "margin".
    of_images: int64 (N, 1), the `fingerprint` of the images that were explained, None if not known.
    """

    values: Tensor
    region: Tensor
    label: int | Tensor
    method: str
    delta: Tensor | None = None
    layer: str | None = None
    score: str = "logit"
    of_images: Tensor | None = None

    def __repr__(self) -> str:
        layer = f" on {self.layer!r}" if self.layer is not None else ""
        height, width = self.size
        of = f"{named_labels(self.label)} in {counted(len(self.values))} of {height}x{width}"
        lines = [f"Attribution of the {self.score} of {of}, by {self.method}{layer}"]
        if self.values.numel():
            low, high = (float(end) for end in self.values.aminmax())
            lines.append(f"values from {low:.3g} to {high:.3g}")
        if bool(self.region.any()):
            area, share = (float(each.double().nanmean()) for each in (self.region, self.context_share()))
            share_text = "undefined" if math.isnan(share) else f"{share:.1%}"
            lines.append(f"region: {area:.1%} of the pixels; context share, outside it: {share_text} of |values|")
        if self.delta is not None and self.delta.numel():
            lines.append(f"left unexplained (delta): at most {float(self.delta.abs().max()):.3g}")
        return "\n  ".join(lines)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self.values.shape[-2], self.values.shape[-1]

    @property
    def positive(self) -> Tensor:
        """max(values, 0): what speaks for the label."""
        return self.values.clamp(min=0)

    @property
    def negative(self) -> Tensor:
        """min(values, 0): what speaks against it; positive + negative = values."""
        return self.values.clamp(max=0)

    @property
    def pixels(self) -> Tensor:
        """The signed map (N, H, W): summed over the channels; a layer method's map as it is."""
        return self.values[:, 0] if self.layer is not None else self.values.sum(1)

    def context_share(self, exclude_border: float = 0, part: str = "absolute") -> Tensor:
        """`perpixel.attribution.context_share` of the values: (N,)."""
        return context_share(self.values, self.region, exclude_border=exclude_border, part=part)

    def density_ratio(self, exclude_border: float = 0, part: str = "absolute") -> Tensor:
        """`perpixel.attribution.density_ratio` of the values: (N,)."""
        return density_ratio(self.values, self.region, exclude_border=exclude_border, part=part)

    def radial_profile(self, bins: int | Sequence[float] = 10, part: str = "absolute") -> "RadialProfile":
        """`perpixel.attribution.radial_profile` of the values."""
        return radial_profile(self.values, self.region, bins, part=part)


@dataclass(frozen=True, eq=False)
class RadialProfile:
    """Mass outside a region by distance from it, for N examples and B bins; all float64, on the CPU.

    edges (N, B+1), in pixels; bin b holds the distances in (edges[b], edges[b+1]]. distances (N, B): bin centres.
    share (N, B): part of the example's mass outside the region in each bin; cumulative (N, B): its running sum.
    area (N, B): part of the pixels outside, which is the share that evenly spread mass would have.
    r50 (N,): the smallest distance within which half of the outside mass lies; r50_area: that of evenly spread mass.
    NaN where nothing is outside the region, or the region is empty; share, cumulative and r50 also where nothing
    outside has any mass.
    """

    edges: Tensor
    share: Tensor
    area: Tensor
    r50: Tensor
    r50_area: Tensor

    @property
    def distances(self) -> Tensor:
        return (self.edges[:, 1:] + self.edges[:, :-1]) / 2

    @property
    def cumulative(self) -> Tensor:
        return self.share.cumsum(1)


def context_share(values: Tensor, region: Tensor, *, exclude_border: float = 0, part: str = "absolute") -> Tensor:
    """Share of the mass outside the region: Σ_{p outside} m_p / (Σ_{p outside} m_p + Σ_{p inside} m_p), float64 (N,).

    values: (N, H, W), or (N, channels, H, W), where m sums over the channels; m = |v|, max(v, 0) or max(−v, 0) for the
    `part` "absolute", "positive" or "negative". region: bool (N, H, W), brought to the size of the values by nearest.
    exclude_border: pixels outside but no further than this (Euclidean, between pixel centres) count nowhere.
    NaN where there is no mass. ValueError or TypeError for unfit arguments.
    """
    mass, region = _mass(values, region, part)
    far = torch.where(outside(region, exclude_border), mass, 0.0).sum((1, 2))
    return far / (far + torch.where(region, mass, 0.0).sum((1, 2)))


def density_ratio(values: Tensor, region: Tensor, *, exclude_border: float = 0, part: str = "absolute") -> Tensor:
    """Mean mass per pixel outside over that inside the region, float64 (N,); 1 is evenly spread.

    Arguments as in `context_share`. NaN where one side has no pixel, or neither has mass; infinity where only the
    outside has.
    """
    mass, region = _mass(values, region, part)
    sides = (outside(region, exclude_border), region)
    far, near = (torch.where(side, mass, 0.0).sum((1, 2)) / side.sum((1, 2)) for side in sides)
    return far / near


def radial_profile(
    values: Tensor, region: Tensor, bins: int | Sequence[float] = 10, *, part: str = "absolute"
) -> RadialProfile:
    """Mass outside the region by Euclidean distance to its nearest pixel (scipy's distance transform).

    bins: a number of bins of one width, from 0 to the example's farthest pixel; or rising edges, in pixels, for all
    examples (mass beyond the last is in no bin, but part of the whole). Other arguments as in `context_share`.
    """
    mass, region = _mass(values, region, part)
    edges = None if isinstance(bins, int) and not isinstance(bins, bool) else _edges(bins)
    count = check_integer("bins", bins, low=1) if edges is None else len(edges) - 1
    rows = []
    for weight, distance in zip(mass.cpu().numpy(), distances(region).numpy()):
        counted = (distance > 0) & np.isfinite(distance)
        away, held = distance[counted], weight[counted]
        borders = np.linspace(0, away.max() if away.size else np.nan, count + 1) if edges is None else edges
        bin_of = np.searchsorted(borders, away, side="left") - 1
        rows.append((borders, *(_binned(away, part, bin_of, count) for part in (held, np.ones_like(held)))))
    table = [(borders, share, area, r50, even) for borders, (share, r50), (area, even) in rows]
    return RadialProfile(*(torch.from_numpy(np.stack(column)) for column in zip(*table)))


def distances(region: Tensor) -> Tensor:
    """Euclidean distance of every pixel to the nearest of the region, bool (N, H, W) -> float64 (N, H, W), on the CPU.

    Zero inside; infinite where the example's region is empty.
    """
    from scipy.ndimage import distance_transform_edt

    maps = [distance_transform_edt(~m) if m.any() else np.full(m.shape, np.inf) for m in region.cpu().numpy()]
    return torch.from_numpy(np.stack(maps).astype(np.float64))


def _binned(away: np.ndarray, mass: np.ndarray, bin_of: np.ndarray, count: int) -> tuple[np.ndarray, np.float64]:
    """Share of the mass in each bin, and the distance within which half of it lies; NaN without mass."""
    total = mass.sum()
    if total == 0:
        return np.full(count, np.nan), np.float64(np.nan)
    inside = (bin_of >= 0) & (bin_of < count)
    share = np.bincount(bin_of[inside], weights=mass[inside], minlength=count) / total
    order = np.argsort(away, kind="stable")
    running = np.cumsum(mass[order])
    return share, away[order][np.searchsorted(running, running[-1] / 2)]


def mass_of(values: Tensor, part: str) -> Tensor:
    """|values|, max(values, 0) or max(−values, 0) for the `part` "absolute", "positive" or "negative"."""
    check_option("part", part, PARTS)
    return values.abs() if part == "absolute" else (values if part == "positive" else -values).relu()


def outside(region: Tensor, exclude_border: float) -> Tensor:
    """Pixels farther from the region, bool (N, H, W), than `exclude_border` pixels."""
    if check_number("exclude_border", exclude_border, low=0.0) < 1:
        return ~region
    return (distances(region) > exclude_border).to(region.device)


def _mass(values: Tensor, region: Tensor, part: str) -> tuple[Tensor, Tensor]:
    """Mass float64 (N, H, W) and region bool (N, H, W) at its size."""
    values = check_maps("values", values, "(N, H, W) or (N, channels, H, W)")
    if not isinstance(region, Tensor) or region.dtype != torch.bool:
        raise TypeError(complain("region", "a bool tensor (N, H, W)", region, "Pass labels == label."))
    if region.ndim != 3 or len(region) != len(values):
        expected = f"a bool tensor ({len(values)}, H, W)"
        raise ValueError(complain("region", expected, region, "Pass one map per example."))
    mass = mass_of(values.double(), part)
    mass = mass.sum(1) if mass.ndim == 4 else mass
    return mass, labels_on_grid(region, (mass.shape[-2], mass.shape[-1])).to(mass.device)


def check_maps(name: str, values: object, shape: str) -> Tensor:
    """`values`, detached, if they are float and of three or four dimensions, else TypeError or ValueError."""
    if not isinstance(values, Tensor) or values.ndim not in (3, 4):
        error = ValueError if isinstance(values, Tensor) else TypeError
        raise error(complain(name, f"an attribution of shape {shape}", values, "Pass its signed values."))
    return check_tensor(name, values, ndim=values.ndim, shape=shape, floating=True).detach()


def _edges(bins: object) -> np.ndarray:
    expected = "an integer, or at least two rising numbers from 0 on"
    try:
        edges = np.asarray(bins, dtype=np.float64)
    except (TypeError, ValueError):
        raise TypeError(complain("bins", expected, bins, "Pass distances in pixels.")) from None
    if edges.ndim != 1 or len(edges) < 2 or not (np.diff(edges) > 0).all() or edges[0] < 0:
        raise ValueError(complain("bins", expected, bins, "Pass distances in pixels."))
    return edges
