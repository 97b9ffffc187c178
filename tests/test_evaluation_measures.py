"""False positives, interiors and objects by size against slow loops written from their definitions."""

import math
from collections import deque

import numpy as np
import pytest
import torch
from evaluation_oracles import blobs, slow_boundary, slow_confusion
from hypothesis import given
from hypothesis import strategies as st

from perpixel.evaluation import (
    COMPARED,
    METRICS,
    SIZES,
    SegmentationScores,
    compare_scores,
    confusion_matrices,
    false_positive_rate,
    interior_counts,
    mean_false_positive_rate,
    mean_score,
    object_iou,
    score_images,
)

IOU_OF_SIZE = [f"IoU of {size} objects" for size in SIZES]


@given(seed=st.integers(0, 10_000), classes=st.integers(1, 5))
def test_false_positive_rate_matches_a_loop_over_pixels(seed, classes):
    predictions, labels = blobs(seed, classes=classes)
    found = false_positive_rate(confusion_matrices(predictions, labels, classes + 1))  # the last class never occurs
    for n in range(len(labels)):
        for c in range(classes + 1):
            false = sum(
                1 for p, y in zip(predictions[n].flatten(), labels[n].flatten()) if p == c and y not in (c, 255)
            )
            others = sum(1 for y in labels[n].flatten() if y not in (c, 255))
            assert math.isnan(found[n, c]) if others == 0 else float(found[n, c]) == pytest.approx(false / others)


def test_one_more_false_positive_never_lowers_the_mean_rate():
    labels = torch.zeros(1, 4, 4, dtype=torch.int64)
    labels[:, 2:] = 1
    predictions = labels.clone()
    predictions[0, 2, 0] = 0
    fewer = mean_false_positive_rate(confusion_matrices(predictions, labels, 3))
    predictions[0, 3, 0] = 2  # of a class that is nowhere
    more = mean_false_positive_rate(confusion_matrices(predictions, labels, 3))
    assert float(fewer) == pytest.approx((1 / 8 + 0 + 0) / 3)
    assert float(more) == pytest.approx((1 / 8 + 0 + 1 / 16) / 3)
    assert bool(mean_false_positive_rate(torch.zeros(3, 3)).isnan())


@given(seed=st.integers(0, 10_000), share=st.sampled_from([0.0, 0.05, 0.1, 0.2, 2.0]))
def test_interior_matches_distances_to_every_boundary_pixel(seed, share):
    predictions, labels = blobs(seed)
    found = interior_counts(predictions, labels, 3, share=share)
    reach = share * math.hypot(*labels.shape[1:])
    for n in range(len(labels)):
        truth = labels[n].masked_fill(labels[n] == 255, -1)
        edges = [point for c in range(3) for point in slow_boundary(truth, c)]
        inside = [
            (y, x)
            for y, x in np.ndindex(*truth.shape)
            if truth[y, x] >= 0 and all(math.dist((y, x), edge) > reach for edge in edges)
        ]
        assert found[n].tolist() == [sum(int(predictions[n, y, x] == truth[y, x]) for y, x in inside), len(inside)]


def test_interior_of_one_class_alone_is_all_of_it_and_void_is_none():
    labels = torch.ones(1, 5, 6, dtype=torch.int64)
    labels[0, 0] = 255
    assert interior_counts(labels.clamp(max=1), labels, 2).tolist() == [[24, 24]]
    assert interior_counts(labels.clamp(max=1), torch.full_like(labels, 255), 2).tolist() == [[0, 0]]


def slow_pieces(classes_map):
    """Sets of pixels: flood fill over 4-neighbours of one class, none of -1."""
    left, pieces = {(y, x) for y, x in np.ndindex(*classes_map.shape) if classes_map[y, x] >= 0}, []
    while left:
        queue, piece = deque([left.pop()]), set()
        while queue:
            y, x = queue.popleft()
            piece.add((y, x))
            for near in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if near in left and classes_map[near] == classes_map[y, x]:
                    left.remove(near)
                    queue.append(near)
        pieces.append((int(classes_map[y, x]), piece))
    return pieces


def slow_object_iou(prediction, truth, classes, bounds):
    void = truth == 255
    prediction, truth = prediction.masked_fill(void, -1), truth.masked_fill(void, -1)
    out, predicted = torch.zeros(classes, 3, 2, dtype=torch.float64), slow_pieces(prediction)
    for c, piece in slow_pieces(truth):
        overlapping = [one for k, one in predicted if k == c and one & piece]
        hit = set().union(*overlapping) & piece
        false = {p for one in overlapping for p in one if int(truth[p]) != c}
        share = len(piece) / truth.numel()
        size = 0 if share < bounds[0] else 1 if share < bounds[1] else 2
        out[c, size] += torch.tensor([len(hit) / len(piece | false), 1.0])
    return out


@given(seed=st.integers(0, 10_000), bounds=st.sampled_from([(0.02, 0.2), (0.05, 0.05), (0.0, 1.0)]))
def test_object_iou_matches_flood_fill_and_sets(seed, bounds):
    predictions, labels = blobs(seed, images=3)
    found = object_iou(predictions, labels, 4, bounds=bounds)
    for n in range(len(labels)):
        torch.testing.assert_close(found[n], slow_object_iou(predictions[n], labels[n], 4, bounds))
    assert torch.equal(
        found, torch.cat([object_iou(predictions[[n]], labels[[n]], 4, bounds=bounds) for n in range(3)])
    )


def test_object_iou_of_cases_one_can_count():
    labels = torch.zeros(1, 20, 30, dtype=torch.int64)
    labels[0, 2:4, 2:4] = 1  # 4 of 600 pixels: medium
    labels[0, 10, 10] = 1  # 1 pixel: small
    predictions = labels.clone()
    predictions[0, 2:4, 4] = 1  # two pixels too many
    predictions[0, 10, 10] = 0  # missed
    predictions[0, 15:, 15:] = 1  # counts against no object of class 1
    objects = object_iou(predictions, labels, 2)[0]
    assert objects[1].tolist() == [[0.0, 1.0], [pytest.approx(4 / 6), 1.0], [0.0, 0.0]]
    background = (595 - 2 - 75) / (595 + 1)
    assert objects[0].tolist() == [[0.0, 0.0], [0.0, 0.0], [pytest.approx(background), 1.0]]
    assert object_iou(predictions, torch.full_like(labels, 255), 2).sum() == 0
    with pytest.raises(ValueError, match="bounds: expected the smaller share first"):
        object_iou(predictions, labels, 2, bounds=(0.2, 0.1))


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_scores_hold_the_measures_of_every_image_and_metrics_are_functions_of_any_draw():
    torch.manual_seed(0)
    model = torch.nn.Conv2d(3, 3, 3, padding=1)
    images, labels = torch.rand(6, 3, 13, 17), blobs(1, images=6)[1]
    scores = score_images(model, [(torch.arange(6), images, labels, None)], 3, boundary_share=0.05)
    with torch.no_grad():
        predictions = model(images).argmax(1)
    assert torch.equal(scores.interior, interior_counts(predictions, labels, 3, share=0.05))
    assert torch.equal(scores.objects, object_iou(predictions, labels, 3))
    drawn = [0, 0, 3, 5, 5, 5]
    weights = np.bincount(drawn, minlength=6)[None].astype(float)
    right, counted = scores.interior[drawn].sum(0).tolist()
    assert METRICS["interior accuracy"](scores, weights) == pytest.approx(right / counted)
    for number, name in enumerate(IOU_OF_SIZE):
        total, count = scores.objects[drawn].sum((0, 1))[number].tolist()
        assert METRICS[name](scores, weights) == pytest.approx(total / count if count else math.nan, nan_ok=True)
    rate = mean_false_positive_rate(slow_confusion(predictions[drawn], labels[drawn], 3).sum(0))
    assert METRICS["false-positive rate"](scores, weights) == pytest.approx(float(rate))
    assert mean_score("interior accuracy", [scores]) == pytest.approx(100 * scores.interior_accuracy)
    rates = scores.false_positive_rate
    assert mean_score("false-positive rate", [scores]) == pytest.approx(100 * float(rates.nanmean()))
    whole = [mean_score(name, [scores]) / 100 for name in IOU_OF_SIZE]
    assert scores.size_iou.tolist() == pytest.approx(whole, nan_ok=True)


def test_scores_kept_before_there_were_interiors_and_objects_have_none():
    matrices = torch.stack([torch.eye(2, dtype=torch.int64)] * 3)
    scores = SegmentationScores(matrices, torch.ones(3), None)
    assert math.isnan(scores.interior_accuracy)
    assert bool(scores.size_iou.isnan().all())
    found = compare_scores([scores], [scores], metrics=list(METRICS), resamples=100)
    assert [one.metric for one in found] == ["mIoU", "pixel accuracy", "boundary F", "false-positive rate"]


def test_a_lower_false_positive_rate_is_what_helps():
    def scores(false, seed):
        wrong = false + np.random.default_rng(seed).integers(0, 3, 40)
        matrices = torch.tensor([[[100 - int(w), int(w)], [0, 100]] for w in wrong])
        return SegmentationScores(matrices, torch.full((40,), math.nan), None)

    many, few = ([scores(false, seed) for seed in range(5)] for false in (20, 5))
    for control, loss, words in ((many, few, ("helped", "helped")), (few, many, ("hurt", "hurt"))):
        found = compare_scores(control, loss, metrics=["mIoU", "false-positive rate"], resamples=200)
        assert tuple(one.verdict for one in found) == words
        assert found[1].interval.value * found[0].interval.value < 0
        assert f"Better in {5 if words[0] == 'helped' else 0} of 5 seeds." in found[1].describe_seeds()
    single = compare_scores(many[:1], few[:1], metrics=["false-positive rate"], resamples=200)[0]
    assert single.verdict == "better on these images"
    assert single.describe("loss").endswith("the loss is better on these images.")
    assert tuple(METRICS)[:4] == COMPARED
    with pytest.raises(ValueError, match="metrics: expected one of 'mIoU'"):
        compare_scores(many, few, metrics=["iou"])
