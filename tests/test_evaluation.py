"""Metrics against slow loops written from their definitions; the bootstrap against what it promises."""

import math

import numpy as np
import pytest
import torch
from evaluation_oracles import blobs, slow_boundary_f, slow_confusion
from hypothesis import given
from hypothesis import strategies as st
from model_state import assert_same, snapshot
from scipy.stats import t, ttest_1samp
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from perpixel.evaluation import (
    IMAGES,
    BootstrapInterval,
    bootstrap_images,
    boundary_f_scores,
    class_iou,
    confusion_matrices,
    difference,
    holm,
    mean_iou,
    pixel_accuracy,
    predict_labels,
    ratio,
    ratio_of_sums,
    score_images,
    verdicts,
)
from perpixel.evaluation.statistics import _jackknife_test


@given(seed=st.integers(0, 10_000), classes=st.integers(1, 5))
def test_confusion_and_what_follows_from_it_match_slow_loops(seed, classes):
    predictions, labels = blobs(seed, classes=classes)
    confusion = confusion_matrices(predictions, labels, classes)
    expected = slow_confusion(predictions, labels, classes)
    assert torch.equal(confusion, expected)
    total = expected.sum(0)
    for c in range(classes):
        union = int(total[c].sum() + total[:, c].sum() - total[c, c])
        found = float(class_iou(total)[c])
        assert math.isnan(found) if union == 0 else found == pytest.approx(int(total[c, c]) / union)
    assert float(pixel_accuracy(total)) == pytest.approx(float(total.diagonal().sum() / total.sum()))


def test_metrics_agree_with_torchmetrics_over_several_batches():
    iou = MulticlassJaccardIndex(5, average="none", ignore_index=255, zero_division=math.nan)
    accuracy, total = MulticlassAccuracy(5, average="micro", ignore_index=255), torch.zeros(5, 5, dtype=torch.int64)
    for seed in range(4):
        predictions, labels = blobs(seed, classes=4)  # class 4 never occurs
        iou.update(predictions, labels)
        accuracy.update(predictions, labels)
        total += confusion_matrices(predictions, labels, 5).sum(0)
    torch.testing.assert_close(iou.compute().double(), class_iou(total), equal_nan=True, atol=1e-6, rtol=0)
    assert bool(class_iou(total)[4].isnan())
    assert float(mean_iou(total)) == pytest.approx(float(iou.compute()[:4].mean()))
    assert float(pixel_accuracy(total)) == pytest.approx(float(accuracy.compute()))


def test_all_void_counts_nothing():
    labels = torch.full((1, 4, 4), 255)
    confusion = confusion_matrices(torch.zeros(1, 4, 4, dtype=torch.int64), labels, 2)
    assert int(confusion.sum()) == 0
    assert bool(mean_iou(confusion).isnan().all())
    assert bool(pixel_accuracy(confusion).isnan().all())
    assert bool(boundary_f_scores(torch.zeros(1, 4, 4, dtype=torch.int64), labels, 2).isnan().all())


@given(seed=st.integers(0, 10_000), share=st.sampled_from([0.0, 0.05, 0.1, 0.3]))
def test_boundary_f_matches_the_slow_definition(seed, share):
    predictions, labels = blobs(seed)
    found = boundary_f_scores(predictions, labels, 3, share=share)
    for n in range(len(labels)):
        expected = slow_boundary_f(predictions[n], labels[n], 3, share)
        torch.testing.assert_close(found[n], expected, equal_nan=True)


def test_boundary_f_of_a_shift_depends_on_the_tolerance():
    labels = torch.zeros(1, 40, 40, dtype=torch.int64)
    labels[:, :, 20:] = 1
    shifted = labels.roll(3, 2)
    shifted[:, :, :3] = 0
    diagonal = math.hypot(40, 40)
    assert bool((boundary_f_scores(labels, labels, 2) == 1).all())
    assert bool((boundary_f_scores(shifted, labels, 2, share=3 / diagonal) == 1).all())
    assert bool((boundary_f_scores(shifted, labels, 2, share=2.9 / diagonal) == 0).all())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, y: (p.float(), y), "predictions: expected an integer dtype"),
        (lambda p, y: (p[0], y), "predictions: expected shape"),
        (lambda p, y: (p[:, :5], y), "labels' shape"),
        (lambda p, y: (p + 3, y), r"predictions: expected classes in \[0, 3\)"),
        (lambda p, y: (p, torch.where(y == 0, 7, y)), "7 at position"),
    ],
)
def test_bad_maps_are_refused(change, message):
    with pytest.raises((TypeError, ValueError), match=message):
        confusion_matrices(*change(*blobs(0)), 3)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_scores_of_a_network_are_those_of_its_images_in_their_order():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, stride=2, padding=1), torch.nn.BatchNorm2d(4)).double().train()
    images, labels = torch.rand(5, 3, 14, 18).double(), blobs(7, images=5, classes=4, size=(14, 18))[1]
    far = torch.rand(labels.shape) < 0.3
    before, random = snapshot(model), torch.get_rng_state()
    order = torch.tensor([3, 0, 4, 1, 2])
    batches = [(i, images[i], labels[i], far[i]) for i in order.split(2)]
    scores = score_images(model, batches, 4, boundary_share=0.1)
    assert_same(snapshot(model), before)
    assert torch.equal(random, torch.get_rng_state())
    with torch.no_grad():
        predictions = predict_labels(model.eval(), images)
    expected = slow_confusion(predictions, labels, 4)
    assert torch.equal(scores.confusion, expected)
    assert scores.miou == pytest.approx(float(mean_iou(expected.sum(0))))
    for n in range(5):
        one = torch.stack([v for v in slow_boundary_f(predictions[n], labels[n], 4, 0.1) if not v.isnan()]).mean()
        assert float(scores.boundary[n]) == pytest.approx(float(one))
        counted = far[n] & (labels[n] != 255)
        assert scores.far[n].tolist() == [int((counted & (predictions[n] == labels[n])).sum()), int(counted.sum())]
    assert scores.row("ab").keys() == {
        "miou",
        "pixel_accuracy",
        "boundary_f",
        "accuracy_far_from_head",
        "iou/a",
        "iou/b",
    }
    plain = score_images(model, [(i, images[i], labels[i], None) for i in order.split(2)], 4)
    assert plain.far is None
    assert math.isnan(plain.far_body)
    with pytest.raises(ValueError, match="batches: expected at least one batch"):
        score_images(model, [], 4)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_scores_count_what_a_network_makes_of_its_logits_in_the_end():
    class Post(torch.nn.Conv2d):
        def forward(self, images):
            return super().forward(images).flip(1) if self.turn else super().forward(images)

    model, labels = Post(3, 4, 1), blobs(3, classes=4)[1]
    model.post_processing, model.turn = "turn", True
    images = torch.rand(2, 3, *labels.shape[1:])
    found = score_images(model, [(torch.arange(2), images, labels, None)], 4).confusion
    assert torch.equal(found, slow_confusion(model(images).argmax(1), labels, 4))


def mean_of(values):
    return lambda weights: weights @ values / weights.sum(1)


def test_bootstrap_interval_of_a_mean_is_near_the_textbook_one():
    values = np.random.default_rng(0).normal(2.0, 1.0, 400)
    interval = bootstrap_images(mean_of(values), 400)
    reach = 1.96 * values.std(ddof=1) / 20
    assert interval.value == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - reach, abs=0.2 * reach)
    assert interval.high == pytest.approx(values.mean() + reach, abs=0.2 * reach)
    assert interval.excludes_null
    assert interval == bootstrap_images(mean_of(values), 400)  # seeded
    assert interval != bootstrap_images(mean_of(values), 400, seed=1)


@pytest.mark.slow
def test_bootstrap_intervals_cover_the_truth_about_as_often_as_they_say():
    generator, trials, hits = np.random.default_rng(1), 200, 0
    for _ in range(trials):
        values = generator.exponential(1.0, 60)
        interval = bootstrap_images(mean_of(values), 60, level=0.9, resamples=400)
        hits += interval.low <= 1.0 <= interval.high
    assert 0.82 <= hits / trials <= 0.96


def test_bootstrap_resamples_both_arms_on_the_same_images():
    """Two models that differ by a constant on wildly different images: paired, the difference is certain."""
    easy = np.random.default_rng(0).normal(0, 100, 50)
    interval = bootstrap_images(lambda w: (w @ (easy + 1) - w @ easy) / w.sum(1), 50)
    assert interval.low == pytest.approx(1)
    assert interval.high == pytest.approx(1)


def test_bootstrap_of_the_dataset_iou_sums_confusion_matrices_first():
    matrices = torch.stack([slow_confusion(*blobs(s, images=1), 3)[0] for s in range(12)])
    flat = matrices.flatten(1).double().numpy()
    drawn = np.random.default_rng(5).integers(0, 12, (7, 12))
    weights = np.stack([np.bincount(row, minlength=12) for row in drawn]).astype(float)
    found = mean_iou(torch.from_numpy(weights @ flat).view(-1, 3, 3))
    for row, value in zip(drawn, found):
        assert float(value) == pytest.approx(float(mean_iou(matrices[row].sum(0))))


def test_bootstrap_without_variation_or_value():
    same = bootstrap_images(lambda w: np.zeros(len(w)), 10)
    assert (same.value, same.low, same.high, same.excludes_null) == (0, 0, 0, False)
    nothing = bootstrap_images(lambda w: np.full(len(w), np.nan), 10)
    assert math.isnan(nothing.value)
    assert not nothing.excludes_null


def test_bootstrap_survives_statistics_that_are_undefined_on_some_draws():
    values = np.r_[np.zeros(9), 1.0]
    interval = bootstrap_images(lambda weights: ratio(weights @ values, weights @ (values > 0)), 10)
    assert (interval.value, interval.low, interval.high) == (1, 1, 1)


def test_bootstrap_refuses_bad_arguments():
    with pytest.raises(ValueError, match="images: expected an integer >= 2"):
        bootstrap_images(mean_of(np.ones(1)), 1)
    with pytest.raises(ValueError, match=r"statistic: expected values of shape \(1,\)"):
        bootstrap_images(lambda w: w, 5)
    with pytest.raises(ValueError, match="level"):
        bootstrap_images(mean_of(np.ones(5)), 5, level=1.0)


def slow_holm(p_values, alpha):
    """Which tests Holm's procedure rejects: the smallest first, until one is above alpha over those that are left."""
    rejected, left = set(), sorted(range(len(p_values)), key=p_values.__getitem__)
    while left and p_values[left[0]] <= alpha / len(left):
        rejected.add(left.pop(0))
    return rejected


@given(p_values=st.lists(st.floats(0, 1), max_size=12), alpha=st.sampled_from([0.01, 0.05, 0.2]))
def test_holm_rejects_what_the_procedure_does(p_values, alpha):
    adjusted = holm(p_values)
    assert {i for i, p in enumerate(adjusted) if p <= alpha * (1 - 1e-9)} <= slow_holm(p_values, alpha)
    assert slow_holm(p_values, alpha) <= {i for i, p in enumerate(adjusted) if p <= alpha * (1 + 1e-9)}
    with_unknown = holm([math.nan, *p_values])
    assert math.isnan(with_unknown[0])
    assert with_unknown[1:] == adjusted


def test_p_value_of_a_mean_is_at_most_students_and_ignores_images_without_a_say():
    values = np.random.default_rng(3).normal(0.5, 1.0, 30)
    student = ttest_1samp(values, 0)
    own = bootstrap_images(mean_of(values), 30, resamples=100)
    kurtosis = ((values - values.mean()) ** 4).mean() / values.var() ** 2
    assert own.p_value == pytest.approx(2 * t.sf(abs(student.statistic), min(29, 2 * 29 / (kurtosis - 1))))
    assert own.images == 30
    part, whole = np.r_[values, np.zeros(9)], np.r_[np.ones(30), np.zeros(9)]
    padded = bootstrap_images(ratio_of_sums(part, whole), 39, resamples=100)
    assert (padded.p_value, padded.images) == (pytest.approx(own.p_value), 30)
    shifted = bootstrap_images(mean_of(values + 2), 30, resamples=100, null=2.0)
    assert shifted.p_value == pytest.approx(own.p_value)
    assert shifted.excludes_null == own.excludes_null


def test_certain_differences_of_few_images_are_no_more_certain_than_a_coin_would_be():
    for n in (2, 8, 12):
        found = bootstrap_images(mean_of(np.ones(n)), n, resamples=100)
        assert (found.p_value, found.images) == (2.0 ** (1 - n), n)
    assert bootstrap_images(mean_of(np.zeros(12)), 12, resamples=100).p_value == 1
    alone = bootstrap_images(ratio_of_sums(np.eye(9)[0], np.eye(9)[0]), 9, resamples=100)
    assert (alone.p_value, alone.images) == (1.0, 1)


def interval(value, low, high, p_value, images=40, null=0.0):
    return BootstrapInterval(value, low, high, 0.95, null, p_value, images)


def test_words_claim_only_what_outlasts_its_table():
    table = [
        interval(1, 0.5, 1.5, 0.0001),
        interval(-1, -1.5, -0.5, 0.0002),
        interval(1, 0.1, 2.0, 0.03),  # alone it would do
        interval(1, -0.1, 2.0, 0.0001),  # a p value without its interval does not
        interval(1, 0.5, 1.5, 0.0001, images=IMAGES - 1),
        interval(math.nan, math.nan, math.nan, math.nan),
        interval(0, -1, 1, 0.9),
    ]
    expected = ["more", "less", "more on these images", "undecided", "too few images", "undefined", "undecided"]
    assert verdicts(table) == expected
    assert verdicts(table[2:3], "above") == ["above"]
    assert verdicts([interval(0.9, 0.8, 0.95, 0.001, null=1.0)], less="below") == ["below"]
    assert verdicts([interval(1, 0.5, 1.5, 0.0078, images=8)] * 70) == ["more on these images"] * 70
    assert verdicts([]) == []


def test_tables_without_effects_rarely_claim_one():
    """Differences of ratios of images of very different size, which all have no effect: tables of 20, 24 images."""
    generator, claimed, single, tables = np.random.default_rng(0), 0, 0, 60
    for _ in range(tables):
        found = []
        for _ in range(20):
            size = generator.lognormal(0, 1, 24)
            other = size * generator.uniform(0.5, 1, 24)
            sums = [part * generator.exponential(1, 24) for part in (size, other)]
            statistic = difference(ratio_of_sums(sums[0], size), ratio_of_sums(sums[1], other))
            p, images = _jackknife_test(statistic, 24, 0.0)
            single += p <= 0.05
            found.append(interval(1.0, 0.5, 1.5, p, images))
        claimed += "more" in verdicts(found)
    assert 0.02 <= single / (20 * tables) <= 0.08
    assert claimed / tables <= 0.15
