"""What the classes lean on: each hidden at once, beside controls."""

import itertools

import pytest
import torch
from influence_cases import SIZE, images_of, scattered_labels, small, small_case
from torch import Tensor, nn

from perpixel.attribution.influence.class_matrix import ClassMatrix, _jobs
from perpixel.attribution.influence.influence import influence
from perpixel.attribution.influence.patches import connected_segments
from perpixel.attribution.influence.result import Influence


@pytest.fixture
def found() -> Influence:
    return influence(*small_case(), patch=8, baselines="mean")


def slow_class_matrix(
    model: nn.Module, images: Tensor, labels: Tensor, hidden: dict[tuple[int, int], Tensor], base: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean loss and count per (class read, class hidden), one pixel at a time."""
    sums, counts = torch.zeros(4, 4, dtype=torch.float64), torch.zeros(4, 4, dtype=torch.int64)
    with torch.no_grad():
        before = model(images)
        for (n, k), mask in hidden.items():
            after = model(torch.where(mask, base[n], images[n])[None])[0]
            for y, x in itertools.product(range(SIZE[0]), range(SIZE[1])):
                c = int(labels[n, y, x])
                if c != 255 and not mask[y, x]:
                    sums[c, k] += before[n, c, y, x] - after[c, y, x]
                    counts[c, k] += 1
    return sums / counts, counts


@pytest.mark.parametrize("least", [0.0, 0.3])
def test_class_matrix_hides_each_class_at_once(least: float) -> None:
    (model, images), labels = small_case(), scattered_labels()
    found = influence(model, images, patch=5, baselines="mean", batch_size=3)
    matrix = found.class_matrix(labels, least=least)
    hidden = {}
    for n, k in itertools.product(range(2), range(4)):
        mask = torch.zeros(SIZE, dtype=torch.bool)
        for top, left, bottom, right in found.boxes.tolist():
            here = (labels[n, top:bottom, left:right] == k).double().mean()
            if here > least:
                mask[top:bottom, left:right] = True
        if mask.any():
            hidden[n, k] = mask
    base = images.mean((2, 3), keepdim=True)
    values, counts = slow_class_matrix(model, images, labels, hidden, base)
    torch.testing.assert_close(matrix.values, values, equal_nan=True)
    assert torch.equal(matrix.counts, counts)
    assert matrix.values[3].isnan().all()
    assert matrix.values[:, 3].isnan().all()
    assert matrix.images.tolist() == [sum((n, k) in hidden for n in range(2)) for k in range(4)]
    torch.testing.assert_close(matrix.hidden[1], (hidden[0, 1].double().mean() + hidden[1, 1].double().mean()) / 2)
    assert bool((matrix.control_counts.sum(0)[:3] > 0).all())
    torch.testing.assert_close(matrix.excess, matrix.values - matrix.control, equal_nan=True)


def test_class_matrix_of_segments_hides_the_class_itself() -> None:
    (model, images), labels = small_case(), scattered_labels()
    found = influence(model, images, by="segments", segments=connected_segments(labels))
    hidden = {(n, k): labels[n] == k for n in range(2) for k in range(3) if (labels[n] == k).any()}
    values, counts = slow_class_matrix(model, images, labels, hidden, torch.zeros_like(images))
    matrix = found.class_matrix(labels)
    torch.testing.assert_close(matrix.values, values, equal_nan=True)
    assert torch.equal(matrix.counts, counts)


def test_controls_hide_as_many_pixels_and_follow_the_seed(found: Influence) -> None:
    for units in (found.units, influence(small(), images_of(2, SIZE), by="segments").units):
        jobs = list(_jobs(units, scattered_labels(), 4, 255, 0.0, 3, 7))
        for at in range(0, len(jobs), 4):
            image, mask, label, control = jobs[at]
            assert not control
            for other in jobs[at + 1 : at + 4]:
                assert (other[0], other[2], other[3]) == (image, label, True)
                assert int(other[1].sum()) == int(mask.sum())
        assert jobs[-4][2] > 0
        assert any(not torch.equal(jobs[-3][1], other[1]) for other in jobs[-2:])
    labels = scattered_labels()
    one, again, other = (found.class_matrix(labels, seed=seed).control for seed in (0, 0, 1))
    torch.testing.assert_close(one, again, equal_nan=True)
    assert not torch.equal(one.nan_to_num(), other.nan_to_num())
    without = found.class_matrix(labels, controls=0)
    assert without.control.isnan().all()
    assert not without.control_counts.any()
    predicted = found.class_matrix(found.predictions)
    torch.testing.assert_close(found.class_matrix().values, predicted.values, equal_nan=True)


def test_class_matrix_refuses_a_model_that_has_changed() -> None:
    model = small()
    found = influence(model, images_of(1, SIZE), patch=8)
    assert isinstance(found.class_matrix(), ClassMatrix)
    with torch.no_grad():
        model.classifier.weight.mul_(1.5)
    with pytest.raises(RuntimeError, match=r"model: expected the logits of before.*call influence again"):
        found.class_matrix()
