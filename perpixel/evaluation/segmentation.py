"""Segmentation quality image by image: confusion matrices and their sums; outline, meaning, objects."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

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


def false_positive_rate(confusion: Tensor) -> Tensor:
    """Share of the pixels of other classes predicted as the class: (..., C, C) -> float64 (..., C).

    FP / (FP + TN), over pixels, one class against all others; lower is better. NaN where no pixel is of another class.
    """
    confusion = confusion.double()
    hits, own = confusion.diagonal(dim1=-2, dim2=-1), confusion.sum(-1)
    return (confusion.sum(-2) - hits) / (own.sum(-1, keepdim=True) - own)


def mean_false_positive_rate(confusion: Tensor) -> Tensor:
    """Mean of `false_positive_rate` over the classes: (..., C, C) -> float64 (...); NaN if it is undefined for all.

    Classes that are in neither map count with their 0, so that one more false positive never lowers the mean.
    """
    return false_positive_rate(confusion).nanmean(-1)


def _edges(classes: Tensor) -> Tensor:
    """Pixels (N, H, W) with a 4-neighbour of another class; void (negative) makes no boundary."""
    edge = torch.zeros_like(classes, dtype=torch.bool)
    for here, there in (
        ((slice(None), slice(1, None)), (slice(None), slice(None, -1))),
        ((slice(None), slice(None), slice(1, None)), (slice(None), slice(None), slice(None, -1))),
    ):
        differ = (classes[here] != classes[there]) & (classes[here] >= 0) & (classes[there] >= 0)
        edge[here] |= differ
        edge[there] |= differ
    return edge


def _boundary_points(classes: Tensor, num_classes: int) -> Tensor:
    """Rows (image, class, y, x) of `_edges`."""
    image, y, x = _edges(classes).nonzero().unbind(1)
    return torch.stack([image, classes[image, y, x], y, x], 1)


def _reach(share: float, height: int, width: int) -> float:
    """A share of the image diagonal in pixels, a little more, so that a distance of just that is within reach."""
    return check_number("share", share, low=0) * math.hypot(height, width) * (1 + 1e-9) + 1e-9


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
    reach = _reach(share, height, width)
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
            distance = cKDTree(other).query(own, distance_upper_bound=reach)[0]
            near = torch.from_numpy(distance).isfinite().double()
        hits.append(torch.bincount(n.long(), near, minlength=images * num_classes))
        totals.append(torch.bincount(n.long(), minlength=images * num_classes).double())
    precision, recall = (hit / total.clamp(min=1) for hit, total in zip(hits, totals))
    both = precision + recall
    harmonic = 2 * precision * recall / torch.where(both > 0, both, 1.0)
    return torch.where(totals[0] + totals[1] > 0, harmonic, torch.nan).view(images, num_classes)


def interior_counts(
    predictions: Tensor, labels: Tensor, num_classes: int, *, share: float = 0.0075, ignore_index: int = 255
) -> Tensor:
    """Valid pixels farther than `share` of the image diagonal from every labelled boundary: right ones, and all.

    predictions, labels: as for `confusion_matrices` -> int64 (N, 2). Their quotient, summed over images first, is the
    interior accuracy: what the network calls things, whatever it makes of their outline, of which `boundary_f_scores`
    with the same `share` tells. Boundaries are those of that score: between two classes, so an image without any is all
    interior. Distances are Euclidean, between pixel centres. The complement of the trimap of Kohli, Ladicky, Torr,
    "Robust higher order potentials for enforcing label consistency", IJCV 2009.
    """
    predictions, labels = _check_maps(predictions, labels, num_classes, ignore_index)
    inside = (labels != ignore_index) & ~near_boundary(labels, share=share, ignore_index=ignore_index)
    return torch.stack([(inside & (predictions == labels)).sum((1, 2)), inside.sum((1, 2))], 1)


def near_boundary(labels: Tensor, *, share: float = 0.0075, ignore_index: int = 255) -> Tensor:
    """Where a labelled boundary, as of `interior_counts`, is within `share` of the image diagonal: bool (N, H, W).

    labels: integer (N, H, W).
    """
    labels = check_tensor("labels", labels, ndim=3, shape="(N, H, W)", floating=False)
    height, width = labels.shape[1:]
    reach = _reach(share, height, width)
    edge = _edges(labels.masked_fill(labels == ignore_index, -1))
    far, near = min(math.floor(reach), width), torch.zeros_like(edge)
    before = pad(pad(edge, (far, far)).cumsum(2, dtype=torch.int32), (1, 0))  # how many stand left of a column
    for rows in range(min(math.floor(reach), height - 1) + 1):  # a disk is a stack of rows
        half = min(math.floor(math.sqrt(reach**2 - rows**2)), far)
        left, right = far - half, far + half + 1
        found = before[..., right : right + width] > before[..., left : left + width]
        near[:, rows:] |= found[:, : height - rows]
        near[:, : height - rows] |= found[:, rows:]
    return near


SIZES = ("small", "medium", "large")


def _pieces(classes: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The 4-connected pieces of one value in (N, H, W), numbered over all images, and a place in each, (P,)."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    starts = np.ones(classes.shape, dtype=bool)
    starts[:, :, 1:] = classes[:, :, 1:] != classes[:, :, :-1]
    runs = starts.cumsum(dtype=np.int32).reshape(classes.shape) - 1  # of one value, within a row
    touch = (classes[:, 1:] == classes[:, :-1]) & (starts[:, 1:] | starts[:, :-1])  # once for any two runs
    pair = runs[:, 1:][touch], runs[:, :-1][touch]
    bonds = coo_array((np.ones(len(pair[0]), dtype=bool), pair), shape=(int(starts.sum()),) * 2)
    count, piece = connected_components(bonds, directed=False)
    place = np.zeros(count, dtype=np.int64)
    place[piece] = np.flatnonzero(starts)
    return piece[runs], place


def object_iou(
    predictions: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    bounds: tuple[float, float] = (1 / 300, 3 / 100),
    ignore_index: int = 255,
) -> Tensor:
    """Objects of each class and SIZES per image: the sum of their IoU, and how many there are.

    predictions, labels: as for `confusion_matrices` -> float64 (N, C, 3, 2). The mean IoU of the small objects of a
    data set is the quotient of the sums over images (and over the classes asked about). An object is a 4-connected
    piece of one class in the labels, small where it covers less than bounds[0] of the image, large from bounds[1] on:
    the 32^2 and 96^2 pixels of COCO (Lin et al., ECCV 2014) as shares of its images of 640 x 480. What is predicted
    for it are the 4-connected pieces of its class in the prediction that overlap it; its IoU is the overlap over the
    object with all of their pixels that are labelled otherwise, from 0 (missed) to 1. Pieces that overlap no object
    count against none: `false_positive_rate` knows them. One that overlaps several counts against each.
    Void pixels are in no object and in no piece.
    """
    predictions, labels = _check_maps(predictions, labels, num_classes, ignore_index)
    low, high = (check_number("bounds", bound, low=0, high=1) for bound in bounds)
    if low > high:
        raise ValueError(complain("bounds", "the smaller share first", bounds, "Turn them round."))
    images, height, width = labels.shape
    void = labels == ignore_index
    truth, guess = (maps.masked_fill(void, -1).cpu().numpy() for maps in (labels, predictions))
    (objects, places), (pieces, others) = _pieces(truth), _pieces(guess)
    right, count, found = (truth == guess) & (truth >= 0), len(places), len(others)
    pair = objects[right].astype(np.int64) * found + pieces[right]
    pair = np.unique(pair[np.diff(pair, prepend=-1) != 0])  # few are left to sort
    wrong = np.bincount(pieces[truth != guess], minlength=found)
    area, hits = (np.bincount(where, minlength=count) for where in (objects.ravel(), objects[right]))
    iou = hits / (area + np.bincount(pair // found, wrong[pair % found], minlength=count))
    size = (area >= low * height * width).astype(np.int64) + (area >= high * height * width)
    cell = (places // (height * width) * num_classes + truth.ravel()[places]) * len(SIZES) + size
    known, cells = truth.ravel()[places] >= 0, images * num_classes * len(SIZES)  # void is no object
    sums = [np.bincount(cell[known], weights, minlength=cells) for weights in (iou[known], np.ones(known.sum()))]
    return torch.from_numpy(np.stack(sums, 1)).view(images, num_classes, len(SIZES), 2)
