"""From class maps to labels by a fixed rule, and what they are worth against the true ones, image by image."""

from dataclasses import dataclass

import torch
from torch import Tensor

from perpixel.evaluation import confusion_matrices


@dataclass(frozen=True)
class Rule:
    """Labels from class maps: the class whose map reaches the largest share of its maximum in the image.

    Only classes compete that are in the image: known, or those with a positive score. What is below zero speaks against
    a class, and is no share. background: has the share `threshold` everywhere (20 % in CAM, Zhou et al. 2016, section
    3.2); None: there is none, and where no map is positive the highest wins.
    """

    background: int | None
    threshold: float

    def shares(self, maps: Tensor, present: Tensor) -> Tensor:
        """Maps (N, C, H, W), present bool (N, C) -> in [0, 1]."""
        positive = maps.relu()
        peaks = positive.amax((2, 3), keepdim=True)
        shares = torch.where(present[..., None, None], positive / peaks.clamp(min=1e-12), 0.0)
        if self.background is not None:
            shares[:, self.background] = self.threshold
        return shares

    def labels(self, maps: Tensor, present: Tensor) -> Tensor:
        """Int64 (N, H, W)."""
        best, labels = self.shares(maps, present).max(1)
        return torch.where(best > 0, labels, maps.argmax(1))

    def is_sure(self, maps: Tensor, present: Tensor, margin: float) -> Tensor:
        """Bool (N, H, W): where the best share is at least `margin` above the next."""
        first, second = self.shares(maps, present).topk(2, 1).values.unbind(1)
        return first - second >= margin


@dataclass
class MapScores:
    """What a comparison needs of every image: N images, C classes, NaN where a class is not in an image.

    confusion int64 (N, C, C), of the labels. Without any rule, of the maps alone, float64 (N, C): half, the share of
    the other valid pixels whose value is at least that of the upper half of the class's own pixels (false positives at
    half recall); peak, 1 where the map's maximum lies on the class (pointing game, Zhang et al. 2016). scores float32,
    present bool (N, C): those of the images.
    """

    confusion: Tensor
    half: Tensor
    peak: Tensor
    scores: Tensor
    present: Tensor

    @classmethod
    def joined(cls, parts: list["MapScores"]) -> "MapScores":
        """Of all images."""
        return cls(*(torch.cat(columns) for columns in zip(*(vars(part).values() for part in parts))))


def score_maps(maps: Tensor, scores: Tensor, labels: Tensor, rule: Rule, ignore_index: int) -> MapScores:
    """Class maps (N, C, H, W) and scores (N, C) of images against their true labels (N, H, W)."""
    images, classes = scores.shape
    confusion = confusion_matrices(rule.labels(maps, scores > 0), labels, classes, ignore_index=ignore_index)
    half, peak = torch.full((2, images, classes), torch.nan, dtype=torch.float64)
    present = present_classes(labels, classes)
    for n, c in present.nonzero().tolist():
        if c == rule.background:
            continue
        values, own = maps[n, c], labels[n] == c
        others = values[(labels[n] != ignore_index) & ~own]
        peak[n, c] = float(own.flatten()[values.argmax()])
        if len(others):
            half[n, c] = (others >= values[own].sort().values[own.sum() // 2]).double().mean()
    return MapScores(confusion, half, peak, scores, present)


def present_classes(labels: Tensor, classes: int) -> Tensor:
    """Labels (N, H, W) -> bool (N, C): which are in an image."""
    return torch.stack([(labels == c).flatten(1).any(1) for c in range(classes)], 1)
