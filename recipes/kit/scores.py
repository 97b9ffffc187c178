"""Score a network image by image, so that two networks can be compared on any resample of the images."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from perpixel.evaluation import boundary_f_scores, class_iou, confusion_matrices, segmentation_metrics
from perpixel.outputs import dense_logits, logits_at


@dataclass
class Scores:
    """What the comparison needs of every image, in the order of the data set.

    confusion int64 (N, C, C); boundary float64 (N,), NaN without boundaries; far int64 (N, 2), right and counted
    far-body pixels, or None for data without evidence masks; iou (C,) and pixel_accuracy of torchmetrics.
    """

    confusion: Tensor
    boundary: Tensor
    far: Tensor | None
    iou: Tensor
    pixel_accuracy: float

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
        """Share of the far-body pixels labelled right; NaN without evidence masks."""
        return float(self.far[:, 0].sum() / self.far[:, 1].sum()) if self.far is not None else float("nan")

    def row(self, classes: list[str]) -> dict[str, float]:
        """Flat numbers for the metric files."""
        row = {"miou": self.miou, "pixel_accuracy": self.pixel_accuracy, "boundary_f": self.boundary_f}
        if self.far is not None:
            row["far_body"] = self.far_body
        return row | {f"iou/{name}": float(value) for name, value in zip(classes, self.iou)}

    def state(self) -> dict[str, Any]:
        """For a checkpoint file."""
        return dict(vars(self))


class _PerImage(Metric):
    """Rows (index, boundary F, far right, far counted, confusion...) gathered over processes."""

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("rows", default=[], dist_reduce_fx="cat")

    def update(self, rows: Tensor) -> None:
        self.rows.append(rows)

    def compute(self) -> Tensor:
        rows = dim_zero_cat(self.rows)
        return rows[rows[:, 0].argsort()]


def predict(network: nn.Module, images: Tensor, size: torch.Size) -> Tensor:
    """Labels (N, H, W): arg-max of the logits brought to `size`."""
    return logits_at(dense_logits(network(images)).float(), size).argmax(1)


@torch.no_grad()
def evaluate(
    network: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor, Tensor, Tensor | None]],
    *,
    num_classes: int,
    ignore_index: int,
    boundary_share: float,
    device: torch.device,
    autocast: Callable[[], Any],
) -> Scores:
    """Scores of `network` over (indices, images, labels, far-body mask or None); its train flags are put back."""
    training = {module: module.training for module in network.modules()}
    network.eval()
    dataset = segmentation_metrics(num_classes, ignore_index=ignore_index).to(device)
    per_image = _PerImage().to(device)
    with_far = False
    try:
        for indices, images, labels, far in batches:
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            with autocast():
                found = predict(network, images, labels.shape[-2:])
            dataset.update(found, labels)
            confusion = confusion_matrices(found, labels, num_classes, ignore_index=ignore_index)
            boundary = boundary_f_scores(found, labels, num_classes, share=boundary_share, ignore_index=ignore_index)
            counts = torch.zeros(len(labels), 2, dtype=torch.float64, device=device)
            if far is not None:
                with_far = True
                counted = far.to(device) & (labels != ignore_index)
                right = counted & (found == labels)
                counts = torch.stack([right.sum((1, 2)), counted.sum((1, 2))], 1).double()
            means = boundary.nanmean(1, keepdim=True).to(device)
            columns = (indices.to(device)[:, None], means, counts, confusion.flatten(1))
            per_image.update(torch.cat([c.double() for c in columns], 1))
        rows, numbers = per_image.compute().cpu(), dataset.compute()
    finally:
        for module, flag in training.items():
            module.training = flag
    return Scores(
        confusion=rows[:, 4:].long().view(-1, num_classes, num_classes),
        boundary=rows[:, 1],
        far=rows[:, 2:4].long() if with_far else None,
        iou=numbers["iou"].double().cpu(),
        pixel_accuracy=float(numbers["pixel_accuracy"]),
    )


def check_agreement(scores: Scores) -> None:
    """RuntimeError unless torchmetrics and the per-image matrices agree (else images got lost between processes)."""
    own = class_iou(scores.confusion.sum(0))
    if not torch.allclose(own, scores.iou, atol=1e-5, equal_nan=True):
        raise RuntimeError(f"per-image confusion matrices give IoU {own.tolist()}, torchmetrics {scores.iou.tolist()}")
