"""A network scored image by image, so that two networks can be compared on any resample of the images."""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from perpixel.borrow import borrowed
from perpixel.checks import complain
from perpixel.evaluation.segmentation import boundary_f_scores, class_iou, confusion_matrices, pixel_accuracy
from perpixel.outputs import dense_logits, logits_at, predicted_labels, whole_mask

Batch = tuple[Tensor, Tensor, Tensor, Tensor | None]


@dataclass
class SegmentationScores:
    """What a comparison needs of every image, in the order of their indices.

    confusion int64 (N, C, C); boundary float64 (N,), the mean boundary F-score, NaN without boundaries; far int64
    (N, 2), right and counted pixels of the far masks, or None where there are none.
    """

    confusion: Tensor
    boundary: Tensor
    far: Tensor | None

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
    # rows (index, boundary F, far right, far counted, confusion...) gathered over processes
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
            with_far |= far is not None
            counted = (labels != ignore_index) & (far.to(device) if far is not None else False)
            counts = torch.stack([(counted & (predictions == labels)).sum((1, 2)), counted.sum((1, 2))], 1)
            columns = (indices[:, None], boundary.nanmean(1, keepdim=True), counts, confusion.flatten(1))
            per_image.update(torch.cat([column.to(device).double() for column in columns], 1))
    if not len(rows := per_image.compute()):
        raise ValueError(complain("batches", "at least one batch", "none", "Check the data."))
    rows = rows[rows[:, 0].argsort()].cpu()
    return SegmentationScores(
        confusion=rows[:, 4:].long().view(-1, num_classes, num_classes),
        boundary=rows[:, 1],
        far=rows[:, 2:4].long() if with_far else None,
    )
