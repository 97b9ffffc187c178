"""Cross-entropy weighted by what an object owes to its discriminative region (Ganeshan 2017, experiment 2.4)."""

from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from perpixel.checks import check_flag, check_option
from perpixel.fixations import FixationRules
from perpixel.fixations.options import FixationOptions, K, Shift
from perpixel.outputs import class_logits, dense_logits
from perpixel.reduction import masked_mean
from perpixel.weighting.regions import Fill, Region, Regions, activation
from perpixel.weighting.weight_map import WeightMapLoss

Mode = Literal["debt", "independent"]


class DiscriminativeRegionLoss(WeightMapLoss):
    """Cross-entropy in which pixels count by how much they owe to their object's discriminative part.

    An object is the pixels of one label in one image. Its discriminative region is hidden, the model runs again,
    and every other valid pixel p of the object, with label c, has the debt d and the score s

        d_p = max(0, activation_c(p) before − after),    s_p = d_p / (d_p + mean of d over these pixels of the batch);

    pixels of a region have s = 0. "debt": pixels that cannot stand without the discriminative part count more.
    "independent": those that can count more, with 1 − s. From s the weights follow as `WeightMapLoss` says.

    Cost of a refresh: two passes without gradients in evaluation mode, one where the model is in evaluation mode
    already; for "fixation" also `perpixel.fixations`, for "erase" one pass per candidate.

    Args:
        weight: factor with which `attach` adds the term to the plain cross-entropy, >= 0.
        region: "activation", the `share` of the object's pixels with the highest activation of its label; "fixation",
            the fewest cells that hold the `share` of the fixation mass of its label in the image; "erase", of the
            `candidates` cells where the activation is strongest, the one whose hiding costs the rest of the object
            most.
        share: in (0, 1).
        mode: "debt" or "independent".
        every, strength, per_label: see `WeightMapLoss`.
        fill: what hides a region: "mean", the mean colour of its image; "blur", the image blurred; "zero"; a number;
            or a callable that gives images for images.
        separate: hide the regions of one label at a time, one pass for each label of the batch, rather than all at
            once, when a pixel may also suffer from what was hidden of its neighbours.
        cell: side of the cells in pixels of the image. candidates: cells tried by "erase".
        rules, k, shift: of `perpixel.fixations`, for "fixation".
        ignore_index: void label.

    `forward(model, images, logits, labels)` -> scalar; `weight_map(...)` -> (N, H, W).
    """

    name = "discriminative_region"

    def __init__(
        self,
        weight: float = 1.0,
        *,
        region: Region = "activation",
        share: float = 0.1,
        mode: Mode = "debt",
        every: int = 1,
        strength: float = 3.0,
        per_label: bool = False,
        fill: Fill = "mean",
        separate: bool = False,
        cell: int = 16,
        candidates: int = 4,
        rules: str | FixationRules = "modern",
        k: K = 1,
        shift: Shift = "partial",
        ignore_index: int = 255,
    ) -> None:
        super().__init__(weight, strength, per_label, every, ignore_index)
        self.regions = Regions(region, share, fill, cell, candidates, FixationOptions(rules, k, shift))
        self.mode: Mode = check_option("mode", mode, get_args(Mode))
        self.separate = check_flag("separate", separate)

    def scores(
        self, model: nn.Module, images: Tensor, logits: Tensor, labels: Tensor, valid: Tensor, fresh: bool
    ) -> Tensor:
        before = logits if fresh else class_logits(dense_logits(model(images)))
        labels = torch.where(valid, labels, 0)
        own = activation(before, labels)
        debt, rest = torch.zeros_like(own), torch.zeros_like(valid)
        for counted in self._apart(labels, valid):
            region = self.regions.find(model, images, before, labels, counted)
            after = activation(self.regions.without(model, images, region), labels)
            here = counted & ~region
            debt = torch.where(here, (own - after).clamp(min=0), debt)
            rest = rest | here
        scores = debt / (debt + masked_mean(debt, rest).clamp(min=torch.finfo(debt.dtype).tiny))
        return torch.where(rest, scores if self.mode == "debt" else 1 - scores, 0.0)

    def _apart(self, labels: Tensor, valid: Tensor) -> Iterator[Tensor]:
        """The pixels whose regions are hidden together."""
        if not self.separate:
            yield valid
            return
        for label in labels[valid].unique().tolist():
            yield valid & (labels == label)

    def extra_repr(self) -> str:
        shown = ("weight", "regions", "mode", "every", "strength", "per_label", "separate", "ignore_index")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in shown)
