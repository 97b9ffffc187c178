"""The discriminative region of every object, an object being the pixels of one label in one image."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perpixel.attribution.baselines import NAMES, baseline_images
from perpixel.checks import check_integer, check_number, check_option
from perpixel.fixations import fixations
from perpixel.fixations.options import FixationOptions
from perpixel.outputs import class_logits, dense_logits, logits_at, output_size
from perpixel.reduction import labels_on_grid
from perpixel.weighting.cells import Cells

Region = Literal["activation", "fixation", "erase"]
Fill = str | float | Callable[[Tensor], Tensor]
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Regions:
    """How regions are found and hidden.

    region: "activation", the `share` of an object's pixels with the highest activation of its label (at least one);
        "fixation", the fewest cells that hold the `share` of the fixation mass of its label, on the object or off it;
        "erase", of the `candidates` cells where the activation of its label is strongest, the one whose hiding costs
        the rest of the object most activation.
    cell: side of the cells in pixels of the image. fill: what hides a region: "mean", the mean colour of its image;
        "blur", the image blurred; "zero"; a number; or a callable that gives images for images.
    fixations: how "fixation" follows points.
    """

    region: Region = "activation"
    share: float = 0.1
    fill: Fill = "mean"
    cell: int = 16
    candidates: int = 4
    fixations: FixationOptions = field(default_factory=FixationOptions)

    def __post_init__(self) -> None:
        check_option("region", self.region, get_args(Region))
        check_number("share", self.share, low=0.0, high=1.0, open_low=True, open_high=True)
        if isinstance(self.fill, str):
            check_option("fill", self.fill, NAMES)
        elif not callable(self.fill):
            check_number("fill", self.fill)
        check_integer("cell", self.cell, low=1)
        check_integer("candidates", self.candidates, low=1)

    def find(self, model: nn.Module, images: Tensor, logits: Tensor, labels: Tensor, counted: Tensor) -> Tensor:
        """Bool (N, H, W) over `labels` (N, H, W): the regions of the objects among the pixels `counted`.

        logits: what the model, in the mode it is in, gives for the images, of two classes or more.
        """
        labels = torch.where(counted, labels, 0)
        if self.region == "fixation":
            return self._rested_on(model, images, logits, labels, counted)
        own = activation(logits, labels)
        if self.region == "activation":
            return top_pixels(own, labels, counted, logits.shape[1], self.share)
        return self._erased(model, images, own, labels, counted, logits.shape[1])

    def hide(self, images: Tensor, region: Tensor) -> Tensor:
        """The images without what lies under `region` (N, H, W), which may have another size."""
        mask = F.interpolate(region[:, None].to(images.dtype), images.shape[-2:]) > 0.5
        return torch.where(mask, baseline_images(self.fill, images), images)

    def without(self, model: nn.Module, images: Tensor, region: Tensor) -> Tensor:
        """The model's logits for the images without `region`, of two classes or more."""
        return class_logits(dense_logits(model(self.hide(images, region))))

    def _rested_on(self, model: nn.Module, images: Tensor, logits: Tensor, labels: Tensor, counted: Tensor) -> Tensor:
        start = labels_on_grid(torch.where(counted, labels, -1), output_size(model, images, logits))
        found = fixations(model, images, start=start, strict=True, **vars(self.fixations))
        cells = Cells((images.shape[2], images.shape[3]), self.cell)
        mass = cells.landed(found)
        chosen = heaviest(mass.flatten(0, 1).flatten(1), self.share).view_as(mass)
        return cells.spread(chosen.any(1), labels)

    def _erased(
        self, model: nn.Module, images: Tensor, own: Tensor, labels: Tensor, counted: Tensor, classes: int
    ) -> Tensor:
        cells = Cells((images.shape[2], images.shape[3]), self.cell)
        group = torch.arange(len(labels), device=labels.device)[:, None, None] * classes + labels
        above = torch.where(counted, own - _means(own, group, counted, len(labels) * classes)[group], 0.0).clamp(min=0)
        strength = cells.sums_of_pixels(above, labels, classes).flatten(2).to(own)
        strongest = strength.topk(min(self.candidates, strength.shape[2]), 2)
        dearest = torch.full_like(strength[..., 0], -1.0)
        chosen = torch.zeros_like(strength, dtype=torch.bool)
        for value, cell in zip(strongest.values.unbind(2), strongest.indices.unbind(2), strict=True):
            candidate = torch.zeros_like(chosen).scatter_(2, cell[..., None], (value > 0)[..., None])
            region = cells.spread(candidate.any(1).view(-1, *cells.grid), labels)
            drop = (own - activation(self.without(model, images, region), labels)).clamp(min=0)
            cost = _means(drop, group, counted & ~region, len(labels) * classes).view_as(value)
            better = (cost > dearest) & (value > 0)
            dearest = torch.where(better, cost, dearest)
            chosen = torch.where(better[..., None], candidate, chosen)
        return cells.spread(chosen.any(1).view(-1, *cells.grid), labels)


def activation(logits: Tensor, labels: Tensor) -> Tensor:
    """Every pixel's logit of its own label, float32 or float64 (N, H, W), at the size of `labels`; NaN becomes zero."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return logits_at(wide, labels.shape[-2:]).gather(1, labels[:, None])[:, 0].nan_to_num(nan=0.0)


def top_pixels(values: Tensor, labels: Tensor, counted: Tensor, classes: int, share: float) -> Tensor:
    """Bool (N, H, W): in each image and label the `share` of its `counted` pixels with the highest values.

    Rounded up; of equal values the first in scan order.
    """
    none = len(labels) * classes
    image = torch.arange(len(labels), device=labels.device)[:, None, None]
    group = torch.where(counted, image * classes + labels, none).flatten()
    order = values.flatten().argsort(descending=True, stable=True)
    order = order[group[order].argsort(stable=True)]
    counts = torch.zeros(none + 1, dtype=torch.int64, device=labels.device).index_add_(0, group, torch.ones_like(group))
    first = counts.cumsum(0) - counts
    wanted = (counts.double() * share - _ROUNDING).ceil()  # in float32, 15 % of 100 are more than 15
    wanted[none] = 0
    sorted_group = group[order]
    rank = torch.arange(len(order), device=labels.device) - first[sorted_group]
    region = torch.zeros_like(counted).flatten()
    region[order] = rank < wanted[sorted_group]
    return region.view_as(counted)


def heaviest(mass: Tensor, share: float) -> Tensor:
    """Bool like mass (G, cells): the fewest cells that hold the share of their row's mass, the heaviest first."""
    values, order = mass.sort(dim=1, descending=True, stable=True)
    before = values.cumsum(1) - values
    taken = (before < share * values.sum(1, keepdim=True) * (1 - _ROUNDING)) & (values > 0)
    return torch.zeros_like(taken).scatter_(1, order, taken)


def _means(values: Tensor, group: Tensor, counted: Tensor, groups: int) -> Tensor:
    """Mean of the `counted` values of every group (groups,); zero for an empty one."""
    sums, counts = values.new_zeros(groups), values.new_zeros(groups)
    sums.index_add_(0, group.flatten(), torch.where(counted, values, 0.0).flatten())
    counts.index_add_(0, group.flatten(), counted.flatten().to(values.dtype))
    return sums / counts.clamp(min=1)
