"""The effect of every unit on every pixel and class, and what can be read off it without another forward pass."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from perpixel.attribution.influence.class_matrix import ClassMatrix, class_matrix
from perpixel.attribution.influence.passes import Passes
from perpixel.attribution.influence.patches import Patches, Segments
from perpixel.attribution.influence.upsampling import Upsampling, precise
from perpixel.attribution.inputs import (
    SCORES,
    check_label,
    check_region,
    counted,
    labels_for,
    region_for,
)
from perpixel.checks import check_flag, check_integer, check_number, check_option, complain
from perpixel.outputs import predicted_labels

_CHUNK = 1 << 22  # numbers worked on at once
_SMALL = 1 << 18  # numbers of one class: up to here adding up all is faster than looking for zero weights
Label = int | Tensor


@dataclass(frozen=True)
class Evidence:
    """The smallest set of units that holds a share of the positive influence.

    units: bool (N, gh, gw), or (N, segments). order: for every image their numbers, the strongest first.
    reached: (N,), the share that they hold, NaN where nothing is positive (the set is empty then).
    """

    units: Tensor
    order: tuple[tuple[int, ...], ...]
    reached: Tensor

    @property
    def counts(self) -> Tensor:
        """How many units each image needs, int64 (N,)."""
        return self.units.flatten(1).sum(1)


@dataclass(frozen=True, eq=False, repr=False)
class Influence:
    """What `influence` returns.

    values: (N, units, C, h, w), logit as it is minus logit with the unit hidden, on the grid; NaN where an image has
        fewer segments than another. Units are the patches, row by row, or the segments.
    logits: (N, C, h, w), of the images as they are, float32 or float64. units: where the units lie. file: where
        `values` are kept if not in memory. The model and the images are kept too: `class_matrix` runs them again.

    Scores are float32 (float64 where the logits are) on the device of `values`, positive where the unit speaks for the
    label. label: an int, or ints (N,). region: bool (N, H, W) or (H, W) at the size of the images or of the output;
    None: where the unperturbed prediction is the label. score: "logit", the sum over the region, or "margin", minus the
    best other class at every pixel, which need not be the same with the unit hidden: no linear function, it takes an
    upsampling of the region for every unit. As `RegionTarget` has it, with the same errors. Of a binary network C is 2,
    and the margin is twice the logit.
    """

    values: Tensor
    logits: Tensor
    units: Patches | Segments
    passes: Passes
    file: Path | None = None

    @property
    def grid(self) -> tuple[int, ...]:
        """(gh, gw) patches, or (segments,)."""
        return self.units.grid

    @property
    def boxes(self) -> Tensor:
        """Int64 (patches, 4), or (N, segments, 4): top, left, bottom, right of each unit, the last two excluded."""
        return self.units.boxes

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self.units.image

    @property
    def upsampling(self) -> Upsampling:
        """How logits on the grid become full size."""
        return self.passes.upsampling

    @cached_property
    def predictions(self) -> Tensor:
        """The labels predicted for the images as they are: int64 (N, H, W)."""
        full = (self.upsampling(logits) for logits in self.logits.split(1))
        return torch.cat([predicted_labels(logits) for logits in full])

    def __repr__(self) -> str:
        count, units, classes, *grid = self.values.shape
        (height, width), (low, high) = self.size, (float(end) for end in self.logits.aminmax())
        patches = isinstance(self.units, Patches)
        kind = f"{'x'.join(map(str, self.grid))} patches" if patches else f"up to {units} segments"
        lines = [
            f"Influence of {kind} on {classes} classes, in {counted(count)} of {height}x{width}",
            f"logits from {low:.3g} to {high:.3g}, on a grid of {grid[0]}x{grid[1]}",
            f"values: {self.values.nbytes / 1e6:.3g} MB of {self.values.dtype} in {self.file or self.values.device}",
        ]
        return "\n  ".join(lines)

    def of(self, label: Label, region: Tensor | None = None, score: str = "logit", *, pixels: bool = False) -> Tensor:
        """The loss of the region's score with each unit hidden: (N, gh, gw), or (N, segments).

        Equals captum's `Occlusion` on `RegionTarget(model, label, region, score)`, whose map repeats it over the pixels
        and takes means where windows overlap: that is `pixels=True`, (N, H, W).
        """
        check_flag("pixels", pixels)
        effect, _ = self._effect(label, region, score)
        return self.units.pixels(effect) if pixels else self.units.shaped(effect)

    def on_pixel(self, y: int, x: int, label: Label | None = None, score: str = "logit") -> Tensor:
        """The loss of the label's logit at one pixel of the images with each unit hidden: (N, gh, gw) or (N, segments).

        label: None for the one predicted there, in each image.
        """
        check_option("score", score, SCORES)
        height, width = self.size
        y, x = check_integer("y", y, low=0, high=height - 1), check_integer("x", x, low=0, high=width - 1)
        place = self.values.new_zeros(height, width, dtype=torch.bool)
        place[y, x] = True
        weights = self.upsampling.weights(place)
        rows, columns = _extent(weights != 0)
        weights = weights[rows, columns]
        before = (self.logits[:, :, rows, columns].to(weights.dtype) * weights).sum((2, 3))
        if label is None:
            label = before.argmax(1)
        labels = labels_for(check_label(label), self.logits)
        effects = []
        for image, own in enumerate(labels.tolist()):
            if score == "logit":
                effects.append(self._weighted(image, own, weights, rows, columns))
                continue
            change = self.values[image][:, :, rows, columns].to(weights.dtype)
            after = before[image] - (change * weights).sum((2, 3))
            effects.append(_margin(before[image], own) - _margin(after.T, own))
        return self.units.shaped(self._rounded(effects))

    def evidence(
        self, label: Label, region: Tensor | None = None, share: float = 0.5, score: str = "logit"
    ) -> Evidence:
        """The smallest set of units whose positive influence adds up to `share` of all positive influence of an image.

        Of equal ones the first; single effects, so two units that stand in for one another may both be missing.
        """
        share = check_number("share", share, low=0.0, high=1.0, open_low=True)
        effect, _ = self._effect(label, region, score)
        positive = effect.to(precise(self.values.device)).nan_to_num().clamp(min=0)
        ranked, order = positive.sort(dim=1, descending=True, stable=True)
        total, held = positive.sum(1, keepdim=True), ranked.cumsum(1)
        needed = (held - ranked < share * total) & (ranked > 0)
        units = torch.zeros_like(needed).scatter(1, order, needed)
        reached = torch.where(units, positive, 0).sum(1) / total[:, 0]
        lists = tuple(tuple(o[n].tolist()) for o, n in zip(order, needed))
        return Evidence(self.units.shaped(units), lists, reached)

    def touching(self, region: Tensor) -> Tensor:
        """Which units share a pixel with the region, bool (N, H, W) or (H, W): bool (N, gh, gw) or (N, segments)."""
        region = check_region(region)
        if tuple(region.shape[-2:]) != self.size or (region.ndim == 3 and len(region) != len(self.values)):
            expected = f"the images' size, {(len(self.values), *self.size)} or {self.size}"
            raise ValueError(complain("region", expected, region, "Bring it there by nearest neighbour."))
        region = region.expand(len(self.values), *self.size)
        return self.units.shaped(self.units.share(region.cpu()).to(self.values.device) > 0)

    def context_only(
        self, label: Label, region: Tensor | None = None, score: str = "logit", *, fill: float = 0.0
    ) -> Tensor:
        """`of`, with `fill` for the units that touch the region: what lies outside the region does to it.

        A unit that touches it hides part of the region itself. The region at the images' size.
        """
        effect, found = self._effect(label, region, score)
        return self.units.shaped(effect).masked_fill(self.touching(found), fill)

    def context_share(self, label: Label, region: Tensor | None = None, score: str = "logit") -> Tensor:
        """Σ |influence| of the units that do not touch the region over that of all: (N,), NaN where all is zero.

        A random network has a share too: compare with one.
        """
        effect, found = self._effect(label, region, score)
        effect = effect.nan_to_num().abs()
        outside = effect.masked_fill(self.touching(found).flatten(1), 0.0)
        return outside.sum(1) / effect.sum(1)

    def class_matrix(
        self,
        labels: Tensor | None = None,
        *,
        ignore_index: int = 255,
        least: float = 0.0,
        controls: int = 1,
        seed: int = 0,
    ) -> ClassMatrix:
        """How much the classes lean on one another: hides each class of each image at once, in passes of their own.

        values[c, k]: mean over the pixels of class c that stay visible, in all images, of the loss of their own logit
        when the units of class k are hidden together. Effects of single units do not add up, so this takes
        (1 + controls) forward passes per image and class in it.

        labels: int (N, H, W) at the images' size, of two classes masks of any dtype; None: the prediction. least: a
        unit is of class k where more than this share of its pixels is labelled k; 0: any pixel. controls: how often as
        many pixels are hidden at random places instead (units in random order, the last one cut); seed: of that choice.
        RuntimeError if the model no longer gives the logits that it gave.
        """
        labels = self.predictions if labels is None else labels
        return class_matrix(self.passes, self.units, self.logits, labels, ignore_index, least, controls, seed)

    def _effect(self, label: Label, region: Tensor | None, score: str) -> tuple[Tensor, Tensor]:
        """The loss of each image's score (N, units), and the regions (N, H, W); all checked."""
        check_option("score", score, SCORES)
        labels = labels_for(check_label(label), self.logits)
        predicted = self.predictions if region is None else None
        if predicted is not None:
            region = predicted == labels[:, None, None]
        output = self.logits.new_empty(()).expand(*self.logits.shape[:2], *self.upsampling.output)
        region = region_for(check_region(region), output, labels, self.size, predicted=predicted)
        if score == "logit":
            return self._logit_effects(labels, region), region
        effects = [self._margin_effect(n, label, region[n]) for n, label in enumerate(labels.tolist())]
        return self._rounded(effects), region

    def _logit_effects(self, labels: Tensor, region: Tensor) -> Tensor:
        weights = self.upsampling.weights(region)
        if self.values[:, :, 0].numel() <= _SMALL:
            found = self.values[torch.arange(len(labels), device=labels.device), :, labels].to(weights.dtype)
            return (found.flatten(2) @ weights.flatten(1)[:, :, None])[:, :, 0].to(self.logits.dtype)
        effects = []
        for image, label in enumerate(labels.tolist()):
            rows, columns = _extent(weights[image] != 0)
            effects.append(self._weighted(image, label, weights[image, rows, columns], rows, columns))
        return self._rounded(effects)

    def _rounded(self, effects: list[Tensor]) -> Tensor:
        return torch.stack(effects).to(self.logits.dtype)

    def _weighted(self, image: int, label: int, weights: Tensor, rows: slice, columns: slice) -> Tensor:
        """Σ weights · values of one class over the part of the grid given: (units,)."""
        values = self.values[image, :, label, rows, columns]
        step = max(_CHUNK // max(weights.numel(), 1), 1)
        return torch.cat([part.to(weights.dtype).flatten(1) @ weights.flatten() for part in values.split(step)])

    def _margin_effect(self, image: int, label: int, region: Tensor) -> Tensor:
        """Loss of the margin in each unit, every unit's grid upsampled around the region: (units,)."""
        upsampling, before = self.upsampling, self.logits[image]
        size = (int(region.shape[0]), int(region.shape[1]))
        rows, columns = _extent(region)
        inside = region[rows, columns].flatten().nonzero()[:, 0]
        step = max(_CHUNK // (len(before) * region[rows, columns].numel()), 1)

        def margin(grid: Tensor) -> Tensor:
            full = upsampling.part(grid, size, rows, columns).flatten(2).index_select(2, inside)
            return _margin(full.transpose(0, 1), label).to(precise(full.device)).sum(1)

        after = [margin(before - part) for part in self.values[image].split(step)]
        return margin(before[None]) - torch.cat(after)


def _margin(logits: Tensor, label: int) -> Tensor:
    """Logits (C, ...) -> the one of `label` minus the greatest other."""
    other = torch.arange(len(logits), device=logits.device) != label
    return logits[label] - logits[other].amax(0)


def _extent(filled: Tensor) -> tuple[slice, slice]:
    """Rows and columns of the smallest box outside of which the map (h, w) is False."""
    rows, columns = filled.any(1).nonzero().flatten(), filled.any(0).nonzero().flatten()
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
