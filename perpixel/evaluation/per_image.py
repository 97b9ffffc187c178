"""A network scored image by image, so that two networks can be compared on any resample of the images."""

import contextlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from perpixel.borrow import borrowed
from perpixel.checks import complain
from perpixel.evaluation.segmentation import (
    SIZES,
    boundary_f_scores,
    class_iou,
    confusion_matrices,
    false_positive_rate,
    interior_counts,
    object_iou,
    pixel_accuracy,
)
from perpixel.outputs import dense_logits, logits_at, predicted_labels, whole_mask

Batch = tuple[Tensor, Tensor, Tensor, Tensor | None]


@dataclass
class SegmentationScores:
    """What a comparison needs of every image, in the order of their indices.

    confusion int64 (N, C, C); boundary float64 (N,), the mean boundary F-score, NaN without boundaries; far int64
    (N, 2), right and counted pixels of the far masks, or None where there are none. interior int64 (N, 2) and objects
    float64 (N, C, 3, 2): `interior_counts` and `object_iou`, or None in scores that were kept before there were any.
    """

    confusion: Tensor
    boundary: Tensor
    far: Tensor | None
    interior: Tensor | None = None
    objects: Tensor | None = None

    @property
    def iou(self) -> Tensor:
        """Intersection over union per class (C,) over all images."""
        return class_iou(self.confusion.sum(0))

    @property
    def pixel_accuracy(self) -> float:
        """Share of the valid pixels of all images labelled right."""
        return float(pixel_accuracy(self.confusion.sum(0)))

    @property
    def miou(self) -> float:
        """Mean of the classes' IoU over those that occur."""
        return float(self.iou.nanmean())

    @property
    def boundary_f(self) -> float:
        """Mean boundary F-score of the images."""
        return float(self.boundary.nanmean())

    @property
    def far_body(self) -> float:
        """Share of the far pixels labelled right; NaN without far masks."""
        return float(self.far[:, 0].sum() / self.far[:, 1].sum()) if self.far is not None else float("nan")

    @property
    def false_positive_rate(self) -> Tensor:
        """`false_positive_rate` per class (C,) over all images."""
        return false_positive_rate(self.confusion.sum(0))

    @property
    def interior_accuracy(self) -> float:
        """Share of the pixels away from labelled boundaries labelled right; NaN where unknown."""
        return float(self.interior[:, 0].sum() / self.interior[:, 1].sum()) if self.interior is not None else math.nan

    @property
    def size_iou(self) -> Tensor:
        """Mean IoU of small, medium and large objects (3,), of all classes and images; NaN where there are none."""
        if self.objects is None:
            return torch.full((len(SIZES),), math.nan, dtype=torch.float64)
        total, count = self.objects.sum((0, 1)).unbind(-1)
        return total / count

    def row(self, classes: Sequence[str] = ()) -> dict[str, float]:
        """Flat numbers for a metrics file; "iou/NAME" for each of `classes`."""
        row = {"miou": self.miou, "pixel_accuracy": self.pixel_accuracy, "boundary_f": self.boundary_f}
        if self.far is not None:
            row["accuracy_far_from_head"] = self.far_body
        return row | {f"iou/{name}": float(value) for name, value in zip(classes, self.iou)}


def predict_labels(model: nn.Module, images: Tensor, size: tuple[int, int] | torch.Size | None = None) -> Tensor:
    """Labels int64 (N, H, W): arg-max of the model's logits brought to `size` (None: that of the images).

    Of one channel, a binary network's, 1 where it is positive.
    """
    size = images.shape[-2:] if size is None else size
    return predicted_labels(logits_at(dense_logits(model(images)).float(), size))


def score_images(
    model: nn.Module,
    batches: Iterable[Batch],
    num_classes: int,
    *,
    ignore_index: int = 255,
    boundary_share: float = 0.0075,
    device: torch.device | None = None,
    autocast: Callable[[], Any] = contextlib.nullcontext,
) -> SegmentationScores:
    """Scores of a model, borrowed in evaluation mode, over batches of (indices, images, labels, far mask or None).

    indices: integer (N,), the places of the images in the data set; images: float (N, 3, H, W); labels: integer
    (N, H, W), void where `ignore_index`, for num_classes=2, a binary network's too, masks of any dtype; far mask: bool
    (N, H, W) of pixels to score on their own, such as those far from what decides their label. device: None for that of
    the model. Over several processes each scores its share, and all get the scores of the whole.
    ValueError without any batch. Needs torchmetrics.
    """
    try:
        from torchmetrics.aggregation import CatMetric
    except ImportError as error:
        raise ImportError('score_images needs torchmetrics: pip install "perpixel[recipes]"') from error

    if device is None:
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
    # rows of the columns below, gathered over processes
    per_image = CatMetric(nan_strategy="disable").to(device).set_dtype(torch.float64)  # in this order
    with_far = False
    with borrowed(model, device, processed=True):
        for indices, images, labels, far in batches:
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            labels = whole_mask("labels", labels) if num_classes == 2 else labels
            with autocast():
                predictions = predict_labels(model, images, labels.shape[-2:])
            maps = (predictions, labels, num_classes)
            confusion = confusion_matrices(*maps, ignore_index=ignore_index)
            boundary = boundary_f_scores(*maps, share=boundary_share, ignore_index=ignore_index)
            interior = interior_counts(*maps, share=boundary_share, ignore_index=ignore_index)
            objects = object_iou(*maps, ignore_index=ignore_index)
            with_far |= far is not None
            counted = (labels != ignore_index) & (far.to(device) if far is not None else False)
            counts = torch.stack([(counted & (predictions == labels)).sum((1, 2)), counted.sum((1, 2))], 1)
            columns = (indices[:, None], boundary.nanmean(1, keepdim=True), counts, interior, confusion, objects)
            per_image.update(torch.cat([column.to(device).double().flatten(1) for column in columns], 1))
    if not len(rows := per_image.compute()):
        raise ValueError(complain("batches", "at least one batch", "none", "Check the data."))
    rows = rows[rows[:, 0].argsort()].cpu()
    sizes = [1, 1, 2, 2, num_classes**2, num_classes * len(SIZES) * 2]
    _, boundary, far, interior, confusion, objects = rows.split(sizes, 1)
    return SegmentationScores(
        confusion=confusion.long().view(-1, num_classes, num_classes),
        boundary=boundary[:, 0].clone(),
        far=far.long() if with_far else None,
        interior=interior.long(),
        objects=objects.reshape(-1, num_classes, len(SIZES), 2).clone(),
    )
