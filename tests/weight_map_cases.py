"""The losses with a weight map of their own, and a net and batches that their tests share."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from attach_cases import Net, batch
from torch import Tensor, nn

from perpixel import TemplateSimilarityLoss
from perpixel.weighting import DiscriminativeRegionLoss, FixationWeightedLoss, WeightMapLoss

STRENGTH = 3.0
LOSSES: dict[str, Callable[..., WeightMapLoss]] = {
    "evidence": lambda **how: FixationWeightedLoss(mode="evidence", cell=4, strength=STRENGTH, **how),
    "evidence per label": lambda **how: FixationWeightedLoss(cell=4, strength=STRENGTH, per_label=True, **how),
    "unsupported": lambda **how: FixationWeightedLoss(mode="unsupported", cell=4, strength=STRENGTH, **how),
    "debt": lambda **how: DiscriminativeRegionLoss(strength=STRENGTH, **how),
    "independent, fixation": lambda **how: DiscriminativeRegionLoss(
        region="fixation", mode="independent", cell=4, fill="blur", strength=STRENGTH, **how
    ),
    "debt, erase": lambda **how: DiscriminativeRegionLoss(
        region="erase", separate=True, cell=4, candidates=2, strength=STRENGTH, **how
    ),
}


class StubLoss(WeightMapLoss):
    """Scores that depend on images, labels and the model, so that a stale map shows; counts its refreshes."""

    name = "stub"

    def __init__(
        self,
        weight: float = 1.0,
        strength: float = STRENGTH,
        per_label: bool = False,
        every: int = 1,
        ignore_index: int = 255,
    ) -> None:
        super().__init__(weight, strength, per_label, every, ignore_index)
        self.refreshes = 0

    def scores(
        self, model: nn.Module, images: Tensor, logits: Tensor, labels: Tensor, valid: Tensor, fresh: bool
    ) -> Tensor:
        self.refreshes += 1
        assert not model.training
        assert not torch.is_grad_enabled()
        noise = torch.rand(())  # draws random numbers, as a model may
        return torch.where(valid, stub_scores(model, images, labels) + 0 * noise, torch.nan)


def stub_scores(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    shift = next(model.parameters()).detach().flatten()[0]
    return ((images.mean(1) + shift) * 3 + labels * 0.3).sigmoid()


def weights_of(scores: Tensor, labels: Tensor, strength: float = 2.0) -> Tensor:
    """The weight map by its formula."""
    raw = 1 + strength * scores
    return torch.where(labels == 255, 0.0, raw / raw[labels != 255].mean())


# how a term is made, and the head it is attached with
TERMS: dict[str, tuple[Callable[..., Any], str | None]] = {
    "template similarity, head named": (TemplateSimilarityLoss, "classifier"),
    "template similarity, head found": (TemplateSimilarityLoss, None),
    **{name: (make, None) for name, make in LOSSES.items()},
}
EVERY_TERM = pytest.mark.parametrize(("make", "head"), TERMS.values(), ids=TERMS)


def problem(dtype: torch.dtype = torch.float32, n: int = 2, size: int = 16) -> tuple[Any, ...]:
    """model, images, logits, labels, of which the first row is void."""
    model = Net().to(dtype)
    images, labels = batch(n, size, dtype=dtype)
    return model, images, model(images)["out"], labels


def check_map(weights: Tensor, labels: Tensor, strength: float = STRENGTH) -> None:
    """(N, H, W), no gradient, finite, 0 at void, mean 1 over valid pixels, within the bounds."""
    valid = labels != 255
    assert weights.shape == labels.shape
    assert weights.is_floating_point()
    assert not weights.requires_grad
    assert torch.isfinite(weights).all()
    assert not weights[~valid].any()
    if valid.any():
        torch.testing.assert_close(weights[valid].double().mean().item(), 1.0, rtol=0, atol=1e-5)
        assert weights[valid].min() >= 1 / (1 + strength) - 1e-5
        assert weights[valid].max() <= 1 + strength + 1e-5
