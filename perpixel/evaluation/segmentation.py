"""Segmentation quality image by image: confusion matrices, what follows from their sums, and boundary F-scores."""

import math

import torch
from torch import Tensor

from perpixel.checks import check_integer, check_labels_in_range, check_number, check_tensor, complain
from perpixel.outputs import whole_mask


def _check_maps(predictions: Tensor, labels: Tensor, num_classes: int, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Both as integers (N, H, W)."""
    check_integer("num_classes", num_classes, low=1)
    given = {"predictions": predictions, "labels": labels}
    predictions, labels = (
        check_tensor(name, whole_mask(name, m) if num_classes == 2 else m, ndim=3, shape="(N, H, W)", floating=False)
        for name, m in given.items()
    )
    if predictions.shape != labels.shape:
        remedy = "Bring the logits to the labels' size before taking the arg-max."
        raise ValueError(complain("predictions", f"the labels' shape {tuple(labels.shape)}", predictions, remedy))
    check_labels_in_range(labels, num_classes, ignore_index)
    outside = (predictions < 0) | (predictions >= num_classes)
    if bool(outside.any()):
        came = f"{int(predictions[outside][0])}"
        raise ValueError(complain("predictions", f"classes in [0, {num_classes})", came, "Pass arg-maxes of logits."))
    return predictions.long(), labels.long()


def confusion_matrices(predictions: Tensor, labels: Tensor, num_classes: int, *, ignore_index: int = 255) -> Tensor:
    """One confusion matrix per image: entry (n, i, j) counts the pixels of image n with label i and prediction j.

    predictions, labels: integer (N, H, W) -> int64 (N, C, C). Void pixels count nowhere. A binary network has two
    classes, its prediction is logits > 0; with two, masks of any dtype will do, (N, 1, H, W) as well.
    Matrices of images are kept apart because a data set's score is a function of their sum: any resample of images can
    be scored from them.
    """
    predictions, labels = _check_maps(predictions, labels, num_classes, ignore_index)
    images = torch.arange(len(labels), device=labels.device).view(-1, 1, 1).expand_as(labels)
    cells = (images * num_classes + labels) * num_classes + predictions
    counts = torch.bincount(cells[labels != ignore_index], minlength=len(labels) * num_classes**2)
    return counts.view(-1, num_classes, num_classes)


def class_iou(confusion: Tensor) -> Tensor:
    """Intersection over union per class: (..., C, C) -> float64 (..., C); NaN where a class is in neither map."""
    confusion = confusion.double()
    hits = confusion.diagonal(dim1=-2, dim2=-1)
    return hits / (confusion.sum(-1) + confusion.sum(-2) - hits)


def mean_iou(confusion: Tensor) -> Tensor:
    """Mean of `class_iou` over the classes that occur: (..., C, C) -> float64 (...); NaN if none does."""
    return class_iou(confusion).nanmean(-1)


def pixel_accuracy(confusion: Tensor) -> Tensor:
    """Share of the valid pixels labelled right: (..., C, C) -> float64 (...); NaN where none is valid."""
    confusion = confusion.double()
    return confusion.diagonal(dim1=-2, dim2=-1).sum(-1) / confusion.sum((-2, -1))


def _boundary_points(classes: Tensor, num_classes: int) -> Tensor:
    """Rows (image, class, y, x) of pixels with a 4-neighbour of another class; void (negative) makes no boundary."""
    edge = torch.zeros_like(classes, dtype=torch.bool)
    for here, there in (
        ((slice(None), slice(1, None)), (slice(None), slice(None, -1))),
        ((slice(None), slice(None), slice(1, None)), (slice(None), slice(None), slice(None, -1))),
    ):
        differ = (classes[here] != classes[there]) & (classes[here] >= 0) & (classes[there] >= 0)
        edge[here] |= differ
        edge[there] |= differ
    image, y, x = edge.nonzero().unbind(1)
    return torch.stack([image, classes[image, y, x], y, x], 1)


def boundary_f_scores(
    predictions: Tensor, labels: Tensor, num_classes: int, *, share: float = 0.0075, ignore_index: int = 255
) -> Tensor:
    """Boundary F-score per image and class: harmonic mean of the two shares of boundary within reach of the other's.

    precision_c = share of the predicted boundary pixels of class c no farther from a labelled boundary pixel of class c
    than `share` of the image diagonal; recall_c the other way round; F_c = 2 P R / (P + R). A boundary pixel of c has a
    4-neighbour of another class; void has no boundaries and hides what is predicted in it.

    predictions, labels: as for `confusion_matrices` -> float64 (N, C). 0 where a class has a boundary in one map only,
    NaN where it has none in either. An image's score is the nanmean over classes, a data set's the nanmean of those.
    Source: Csurka, Larlus, Perronnin, "What is a good evaluation measure for semantic segmentation?", BMVC 2013.
    """
    from scipy.spatial import cKDTree

    predictions, labels = _check_maps(predictions, labels, num_classes, ignore_index)
    images, height, width = labels.shape
    reach = check_number("share", share, low=0) * math.hypot(height, width)
    void = labels == ignore_index
    found, truth = (
        _boundary_points(maps.masked_fill(void, -1).cpu(), num_classes).double() for maps in (predictions, labels)
    )
    # Images and classes lie in lanes farther apart than the tolerance, so that one search serves them all.
    lane = height + math.ceil(reach) + 1
    lanes = [p[:, 0] * num_classes + p[:, 1] for p in (found, truth)]
    points = [torch.stack([p[:, 2] + n * lane, p[:, 3]], 1).numpy() for p, n in zip((found, truth), lanes)]
    hits, totals = [], []
    for own, other, n in ((points[0], points[1], lanes[0]), (points[1], points[0], lanes[1])):
        near = torch.zeros(len(own), dtype=torch.float64)
        if len(own) and len(other):
            distance = cKDTree(other).query(own, distance_upper_bound=reach * (1 + 1e-9) + 1e-9)[0]
            near = torch.from_numpy(distance).isfinite().double()
        hits.append(torch.bincount(n.long(), near, minlength=images * num_classes))
        totals.append(torch.bincount(n.long(), minlength=images * num_classes).double())
    precision, recall = (hit / total.clamp(min=1) for hit, total in zip(hits, totals))
    both = precision + recall
    harmonic = 2 * precision * recall / torch.where(both > 0, both, 1.0)
    return torch.where(totals[0] + totals[1] > 0, harmonic, torch.nan).view(images, num_classes)
