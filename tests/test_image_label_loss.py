"""Which classes are in an image, and nothing else: pooling and loss against loops."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

import perpixel
from perpixel import ImageLabelLoss, image_label_loss
from perpixel.losses import pool_maps

POOLINGS = ("logsumexp", "average", "max")
each_pooling = pytest.mark.parametrize("pooling", POOLINGS)


def slow_pool(values: list[float], pooling: str, r: float) -> float:
    if pooling == "max":
        return max(values)
    if pooling == "average":
        return sum(values) / len(values)
    return math.log(sum(math.exp(r * value) for value in values) / len(values)) / r


def slow_loss(logits: torch.Tensor, labels: torch.Tensor, pooling: str, r: float, exclude: tuple[int, ...]) -> float:
    total, count = 0.0, 0
    for n in range(len(logits)):
        there = set(labels[n].flatten().tolist()) - {255}
        for c in range(logits.shape[1]) if there else ():
            if c not in exclude:
                score = slow_pool(logits[n, c].flatten().tolist(), pooling, r)
                chance = 1 / (1 + math.exp(-score))
                total -= math.log(chance) if c in there else math.log(1 - chance)
                count += 1
    return total / max(count, 1)


@each_pooling
@pytest.mark.parametrize("exclude", [(), (0,), (1, 3)])
def test_loss_against_loops(pooling: str, exclude: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 5, 3, 4, dtype=torch.float64), torch.randint(0, 4, (4, 3, 4))
    labels[0, :2], labels[2] = 255, 255
    found = image_label_loss(logits, labels, pooling=pooling, sharpness=2.5, exclude=exclude)
    assert float(found) == pytest.approx(slow_loss(logits, labels, pooling, 2.5, exclude), rel=1e-10)


@each_pooling
def test_where_a_class_is_has_no_say(pooling: str) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 4, 5, 6), torch.randint(0, 3, (2, 5, 6))
    labels[1, 2] = 255
    other = torch.stack([one.flatten()[torch.randperm(30)].view(5, 6) for one in labels])
    once = torch.full_like(labels, 255)  # each class at a single pixel
    for n in range(2):
        present = sorted(set(labels[n].flatten().tolist()) - {255})
        once[n].view(-1)[: len(present)] = torch.tensor(present)
    expected = image_label_loss(logits, labels, pooling=pooling)
    assert not torch.equal(other, labels)
    assert torch.equal(image_label_loss(logits, other, pooling=pooling), expected)
    assert torch.equal(image_label_loss(logits, once, pooling=pooling), expected)
    small = image_label_loss(logits, once.flatten(1)[:, :4, None], pooling=pooling)  # of another size than the logits
    assert torch.equal(small, expected)


def test_logsumexp_lies_between_average_and_maximum() -> None:
    torch.manual_seed(0)
    maps = torch.randn(2, 3, 6, 7, dtype=torch.float64)
    average, highest = (pool_maps(maps, pooling) for pooling in ("average", "max"))
    pooled = [pool_maps(maps, sharpness=r) for r in (1e-6, 0.5, 4.0, 1e6)]
    torch.testing.assert_close(pooled[0], average, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(pooled[-1], highest, rtol=1e-5, atol=1e-5)
    assert all(bool((one < other).all()) for one, other in pairwise(pooled))
    assert bool(pool_maps(1e4 * maps).isfinite().all())
    torch.testing.assert_close(pool_maps(maps + 3), pool_maps(maps) + 3)


def test_the_gradient_of_each_pooling_goes_where_it_should() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(1, 2, 4, 4, requires_grad=True), torch.ones(1, 4, 4).long()
    for pooling, touched in (("max", 1), ("average", 16), ("logsumexp", 16)):
        (gradient,) = torch.autograd.grad(image_label_loss(logits, labels, pooling=pooling), logits)
        assert int((gradient[0, 1] < 0).sum()) == touched  # present: up
        assert int((gradient[0, 0] > 0).sum()) == touched  # absent: down
        assert int((gradient != 0).sum()) == 2 * touched


def test_an_image_that_is_all_void_does_not_count_and_an_excluded_class_has_no_gradient() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randint(0, 2, (2, 4, 4))
    labels[1] = 255
    found = image_label_loss(logits, labels, exclude=[0])
    torch.testing.assert_close(found, image_label_loss(logits[:1], labels[:1], exclude=[0]))
    (gradient,) = torch.autograd.grad(found, logits)
    assert not bool(gradient[1].any())
    assert not bool(gradient[0, 0].any())
    assert bool(gradient[0, 1:].any())


def test_a_binary_network_learns_whether_there_is_a_foreground() -> None:
    logits, labels = torch.randn(2, 1, 4, 4), torch.zeros(2, 4, 4)
    labels[1, 0, 0] = 1
    scores = pool_maps(logits)[:, 0]
    expected = nn.functional.binary_cross_entropy_with_logits(scores, torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(image_label_loss(logits, labels), expected)
    torch.testing.assert_close(image_label_loss(logits, labels, exclude=[0]), expected)


def test_it_is_a_base_of_attach() -> None:
    torch.manual_seed(0)
    model = perpixel.models.small_fcn(3, width=8)
    images, labels = torch.rand(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8))
    base = ImageLabelLoss(pooling="max", exclude=(0,))
    with perpixel.attach(model, perpixel.TemplateSimilarityLoss(weight=0.1), base=base) as criterion:
        output = model(images)
        criterion(output, labels).backward()
    torch.testing.assert_close(criterion.terms["base"], base(output, labels).detach())
    assert all(p.grad is not None for p in model.parameters())


def test_mistakes_are_named() -> None:
    logits, labels = torch.randn(1, 3, 4, 4), torch.zeros(1, 4, 4).long()
    for options, message in (
        ({"pooling": "mean"}, "pooling: expected one of 'logsumexp', 'average', 'max', got str 'mean'"),
        ({"sharpness": 0.0}, r"sharpness: expected a finite number in \(0"),
        ({"exclude": (3,)}, "exclude: expected an integer >= 0 <= 2, got int 3"),
        ({"exclude": (0, 1, 2)}, "exclude: expected at least one class that counts"),
    ):
        with pytest.raises(ValueError, match=message):
            ImageLabelLoss(**options)(logits, labels)
    for options in ({"pooling": "mean"}, {"sharpness": -1.0}, {"exclude": (-1,)}):
        with pytest.raises(ValueError, match=next(iter(options))):
            ImageLabelLoss(**options)
