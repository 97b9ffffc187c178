"""All scores of a region from one forward pass: logit, margin, IoU of the whole map, share of the region that stays."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from perpixel.attribution.captum.target import RegionTarget
from perpixel.attribution.inputs import dense
from perpixel.attribution.progress import progress
from perpixel.borrow import borrowed
from perpixel.outputs import class_logits, logits_at
from perpixel.reduction import labels_on_grid


class RegionScores:
    """Scores of perturbed images against the unperturbed ones: `scores(images (B, ...), original (B,)) -> (B, 4)`.

    logit, margin: `RegionTarget`'s scores over the region's number of pixels.
    iou: of the pixels predicted as the label in the whole map with those in the unperturbed prediction; NaN where the
    label is not predicted in the unperturbed image at all. kept: share of the region predicted as the label.

    label: int64 (N,); region: bool (N, H, W) at image size (one at the output's size is brought there, nearest); both
    frozen. before: (N, 4), the scores of the unperturbed images; predicted: bool (N, H, W), where they have the label.
    images, baseline: (N, channels, H, W), what is shown and what hides it; batch: pictures per forward pass.
    """

    names = ("logit", "margin", "iou", "kept")

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        label: int | Tensor,
        region: Tensor | None,
        baseline: Tensor,
        batch: int,
        show_progress: bool = False,
    ) -> None:
        label, region = RegionTarget(model, label, region).freeze(images, batch).arguments(images)
        height, width = images.shape[-2:]
        self.model, self.images, self.baseline, self.batch = model, images, baseline, batch
        self.show_progress = show_progress
        self.label = label.to(images.device)
        self.region = labels_on_grid(region, (height, width)).to(images.device)
        self.predicted = torch.empty_like(self.region)
        parts = []
        for part in torch.arange(len(images), device=images.device).split(batch):
            own, other, self.predicted[part] = self._readout(images[part], part)
            parts.append(self._summed(own, other, self.predicted[part], part))
        self.before = torch.cat(parts)

    def __call__(self, images: Tensor, original: Tensor) -> Tensor:
        parts = zip(images.split(self.batch), original.split(self.batch))
        return torch.cat([self._summed(*self._readout(part, rows), rows) for part, rows in parts])

    def hiding(self, original: Tensor, hidden: Callable[[slice], Tensor], name: str) -> Tensor:
        """Scores (J, 4) of the images `original` (J,) with the baseline where `hidden(rows)`, bool (B, H, W), is.

        name: of the progress bar.
        """
        parts = []
        starts = range(0, len(original), self.batch)
        for start in progress(starts, self.show_progress, f"faithfulness, {name}"):
            rows = slice(start, start + self.batch)
            image = original[rows]
            picture = torch.where(hidden(rows)[:, None], self.baseline[image], self.images[image])
            parts.append(self(picture, image))
        return torch.cat(parts)

    def column(self, name: str) -> int:
        """Where the score of this name stands."""
        return self.names.index(name)

    def _summed(self, own: Tensor, other: Tensor, found: Tensor, original: Tensor) -> Tensor:
        region, predicted = self.region[original], self.predicted[original]
        size = region.flatten(1).sum(1)
        logit = torch.where(region, own, 0).flatten(1).sum(1) / size
        margin = torch.where(region, own - other, 0).flatten(1).sum(1) / size
        both, either = (mask.flatten(1).sum(1).to(own.dtype) for mask in (found & predicted, found | predicted))
        iou = torch.where(predicted.flatten(1).any(1), both / either, torch.nan)
        kept = (found & region).flatten(1).sum(1) / size
        return torch.stack([logit, margin, iou, kept], 1)

    def _readout(self, images: Tensor, original: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logit of the label, best other logit and where the label is predicted: (B, H, W)."""
        with borrowed(self.model, images.device):
            logits = class_logits(dense(self.model(images), images))
        logits = logits_at(logits.float() if logits.dtype != torch.float64 else logits, self.region.shape[-2:])
        label = self.label[original][:, None, None, None].expand(-1, 1, *logits.shape[-2:])
        own = logits.gather(1, label)[:, 0]
        other = logits.scatter(1, label, -torch.inf).amax(1)
        return own, other, logits.argmax(1) == label[:, 0]
