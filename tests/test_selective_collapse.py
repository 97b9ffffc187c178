"""Why the thesis' selective correlation collapsed to one and the same mIoU (0.325) at every weight from 0.05 to 5.

A result that no longer depends on the weight is what NaN parameters give: arg-max of NaN is class 0, background
everywhere. Pearson's correlation has two ways there: a vector without variance is 0/0, and one with next to none has a
gradient of 1/σ. Averaged over a whole batch such a pixel may drown; among the few that a selective loss keeps it is the
loss. And with nothing left to select, the mean itself is 0/0.
"""

import oracles
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perpixel import template_similarity_loss


def few_selected(spread: float) -> tuple[Tensor, Tensor, Tensor]:
    """A batch in which two pixels are wrong, one of them with a nearly constant feature vector."""
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(1, 16, 4, 4, generator=generator)
    features[0, :, 3, 3] = 0.5 + spread * torch.linspace(-1, 1, 16)
    labels = torch.arange(16).view(1, 4, 4) % 2
    logits = 4.0 * F.one_hot(labels, 2).permute(0, 3, 1, 2).float()
    for pixel in ((1, 0), (3, 3)):
        logits[0, :, pixel[0], pixel[1]] = logits[0, :, pixel[0], pixel[1]].flip(0)
    return features, logits, labels


def gradient(loss, features: Tensor, *rest: Tensor) -> Tensor:
    features = features.detach().clone().requires_grad_()
    loss(features, *rest, similarity="correlation", selective=True).backward()
    return features.grad


def test_literal_gradient_grows_without_bound_and_ends_in_nan() -> None:
    steepest = [gradient(oracles.template_similarity, *few_selected(s)).abs().max().item() for s in (1e-1, 1e-3, 1e-5)]
    assert steepest[2] > 50 * steepest[1] > 2500 * steepest[0]
    assert gradient(oracles.template_similarity, *few_selected(0.0)).isnan().any()


@pytest.mark.parametrize("spread", [1e-1, 1e-2, 1e-3, 1e-4, 1e-6, 1e-8, 0.0])
def test_ours_is_bounded(spread: float) -> None:
    ours = gradient(template_similarity_loss, *few_selected(spread))
    assert ours.isfinite().all()
    assert ours[0, :, 3, 3].norm() <= 1 / 3.4e-4 / 2  # 1/(√eps |f|), |f| = 2, over two pixels: at most
    if spread <= 1e-4:  # no variance beyond rounding's reach: no direction, no gradient
        assert (ours[0, :, 3, 3] == 0).all()
    assert ours[0, :, 1, 0].norm() > 0  # the other wrong pixel still learns


def train(loss, weight: float, steps: int = 25) -> tuple[float, bool]:
    """Fine-tunes a 1×1 layer under a classifier; pixel 0 is dead (a rectified zero vector) and mislabelled."""
    torch.manual_seed(0)
    inputs = torch.randn(2, 12, 6, 6)
    inputs[0, :, 0, 0] = 0
    below = nn.Sequential(nn.Conv2d(12, 24, 1, bias=False), nn.ReLU())
    head = nn.Conv2d(24, 3, 1)
    with torch.no_grad():
        labels = head(below(inputs)).argmax(1)
    labels[0, 0, 0] = (labels[0, 0, 0] + 1) % 3
    labels[:, 5] = (labels[:, 5] + 1) % 3
    optimizer = torch.optim.SGD([*below.parameters(), *head.parameters()], lr=0.05, momentum=0.9)
    for _ in range(steps):
        features = below(inputs)
        logits = head(features)
        term = loss(features, logits.detach(), labels, similarity="correlation", selective=True)
        optimizer.zero_grad()
        (F.cross_entropy(logits, labels) + weight * term).backward()
        optimizer.step()
    with torch.no_grad():
        logits = head(below(inputs))
    return (logits.argmax(1) == labels).float().mean().item(), bool(logits.isnan().any())


@pytest.mark.parametrize("weight", [0.05, 0.5, 5.0])
def test_training_survives_where_the_literal_loss_collapses(weight: float) -> None:
    literal_accuracy, literal_is_nan = train(oracles.template_similarity, weight, steps=2)
    accuracy, is_nan = train(template_similarity_loss, weight)
    plain, _ = train(template_similarity_loss, 0.0)
    assert literal_is_nan
    assert literal_accuracy < 0.6
    assert not is_nan
    assert accuracy >= plain - 0.1
