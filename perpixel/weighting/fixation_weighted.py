"""Cross-entropy weighted by where the labels' fixations land (Ganeshan 2017, chapter 2, turned into feedback)."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from perpixel.checks import check_integer, check_option
from perpixel.fixations import FixationRules, Fixations, fixations
from perpixel.fixations.options import FixationOptions, K, Shift
from perpixel.outputs import logits_at, output_size
from perpixel.reduction import labels_on_grid
from perpixel.weighting.cells import Cells
from perpixel.weighting.weight_map import WeightMapLoss

Mode = Literal["evidence", "unsupported"]
Start = Literal["labels", "prediction"]


class FixationWeightedLoss(WeightMapLoss):
    """Cross-entropy in which pixels count more by what `perpixel.fixations` says of them; a term for `attach`.

    All valid pixels are traced back to the image. In square cells of the image, with A the pixels of a cell that were
    traced, E the mass of all labels that lands there, and A_c, E_c those of label c in the cells around:

        "evidence"     s = max(0, E − A) / E: the share of a cell's mass that other cells' pixels must have sent; pixels
                       that other pixels' labels rest on count more.
        "unsupported"  s = max(0, 1 − E_c / A_c) for c the pixel's label: pixels with less evidence of their own label
                       around them than there are pixels of it count more.

    From s the weights follow as `WeightMapLoss` says: mean 1, in [1/(1 + strength), 1 + strength].

    Args:
        weight: factor with which `attach` adds the term to the plain cross-entropy, >= 0.
        mode: "evidence" or "unsupported".
        rules, k, shift: how points are followed; see `perpixel.fixations`.
        every: refresh the map at every `every`-th step; see `WeightMapLoss` for what holds in between.
        strength: how much more a pixel with s = 1 weighs than one with s = 0, >= 0.
        per_label: every label keeps its total weight; see `WeightMapLoss`.
        start: trace the channel of the true label ("labels"), or of the highest logit ("prediction"). Void pixels are
            never traced.
        cell: side of the cells in pixels of the image; the stride of the network's features is a good choice.
        reach: cells within `reach` rows and columns are around a cell, for "unsupported".
        ignore_index: void label.

    `forward(model, images, logits, labels)` -> scalar; `weight_map(...)` -> (N, H, W). Raises what `fixations` raises;
    for a model with an operation that points could not be followed through, NotImplementedError at the first call.
    """

    name = "fixation_weighted"

    def __init__(
        self,
        weight: float = 1.0,
        *,
        mode: Mode = "evidence",
        rules: str | FixationRules = "modern",
        k: K = 1,
        shift: Shift = "partial",
        every: int = 1,
        strength: float = 3.0,
        per_label: bool = False,
        start: Start = "labels",
        cell: int = 8,
        reach: int = 1,
        ignore_index: int = 255,
    ) -> None:
        super().__init__(weight, strength, per_label, every, ignore_index)
        self.mode: Mode = check_option("mode", mode, get_args(Mode))
        self.fixations = FixationOptions(rules, k, shift)
        self.start: Start = check_option("start", start, get_args(Start))
        self.cell = check_integer("cell", cell, low=1)
        self.reach = check_integer("reach", reach, low=0)

    def scores(
        self, model: nn.Module, images: Tensor, logits: Tensor, labels: Tensor, valid: Tensor, fresh: bool
    ) -> Tensor:
        size = output_size(model, images, logits)
        traced = labels_on_grid(torch.where(valid, labels, -1), size)
        if self.start == "prediction":
            traced = torch.where(traced < 0, traced, logits_at(logits, size).argmax(1))
        found = fixations(model, images, start=traced, strict=True, **vars(self.fixations))
        cells = Cells((images.shape[2], images.shape[3]), self.cell)
        if self.mode == "evidence":
            return cells.spread(_evidence(cells, found, traced), labels)
        scores = _unsupported(cells, found, traced, self.reach)
        return cells.spread_by_label(scores, torch.where(valid, labels, 0))

    def extra_repr(self) -> str:
        shown = ("weight", "mode", "fixations", "every", "strength", "per_label", "start", "cell", "ignore_index")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in shown)


def _evidence(cells: Cells, found: Fixations, traced: Tensor) -> Tensor:
    """(N, gh, gw)."""
    image, _, _, y, x = found.points.unbind(1)
    landed = cells.sums(image, y, x, found.mass, found.images)
    own = cells.counts(torch.where(traced < 0, 1, 0), 2)[:, 0]
    return (landed - own).clamp(min=0) / landed.clamp(min=1e-12)


def _unsupported(cells: Cells, found: Fixations, traced: Tensor, reach: int) -> Tensor:
    """(N, C, gh, gw); one where no pixel of the label is around."""
    own = cells.counts(torch.where(traced < 0, found.classes, traced), found.classes + 1)[:, :-1]
    landed, own = (
        nn.functional.avg_pool2d(m, 2 * reach + 1, 1, reach, divisor_override=1) for m in (cells.landed(found), own)
    )
    return (1 - landed / own.clamp(min=0.5)).clamp(min=0)
