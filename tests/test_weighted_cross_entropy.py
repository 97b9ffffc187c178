"""Weighted cross-entropy against its formula and nn.CrossEntropyLoss."""

import oracles
import pytest
import torch
from torch.nn import functional as F

from perpixel import weighted_cross_entropy


def batch(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    labels = torch.randint(0, 4, (2, 3, 5))
    labels[0, 0] = 255
    return torch.randn(2, 4, 3, 5, dtype=dtype), labels, torch.rand(2, 3, 5, dtype=dtype)


def test_equals_its_formula_in_value_and_gradient() -> None:
    logits, labels, weights = batch()
    leaf, twin = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    ours, literal = weighted_cross_entropy(leaf, labels, weights), oracles.weighted_cross_entropy(twin, labels, weights)
    ours.backward()
    literal.backward()
    torch.testing.assert_close((ours, leaf.grad), (literal, twin.grad))


def test_constant_weights_give_cross_entropy_and_scale_does_not_matter() -> None:
    logits, labels, weights = batch()
    plain = F.cross_entropy(logits, labels, ignore_index=255)
    torch.testing.assert_close(weighted_cross_entropy(logits, labels, torch.full_like(weights, 3.0)), plain)
    weighted = weighted_cross_entropy(logits, labels, weights)
    torch.testing.assert_close(weighted_cross_entropy(logits, labels, weights * 1e6), weighted)


def test_no_weight_is_an_attached_zero() -> None:
    logits, labels, weights = batch()
    logits[0, 0, 0, 0] = torch.nan
    logits.requires_grad_()
    loss = weighted_cross_entropy(logits, labels, torch.zeros_like(weights))
    loss.backward()
    assert loss == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("content", [torch.nan, torch.inf, -torch.inf])
def test_what_has_no_weight_has_no_say_unless_the_weight_learns(content: float) -> None:
    logits, labels, weights = batch()
    labels[1, 1, 2] = 0
    weights[1, 1, 2] = 0.0
    bad = logits.clone()
    bad[1, :2, 1, 2] = content
    found = []
    for leaf in (logits.requires_grad_(), bad.requires_grad_()):
        loss = weighted_cross_entropy(leaf, labels, weights)
        loss.backward()
        found.append((loss.detach(), leaf.grad))
    torch.testing.assert_close(found[1], found[0])
    learnt = weights.requires_grad_()
    (slope,) = torch.autograd.grad(weighted_cross_entropy(logits, labels, learnt), learnt)
    assert slope[1, 1, 2] != 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight_map": torch.ones(2, 3, 4)}, "weight_map"),
        ({"weight_map": torch.full((2, 3, 5), -1.0)}, "weight_map.*non-negative"),
        ({"weight_map": torch.full((2, 3, 5), torch.nan)}, "weight_map.*non-negative"),
    ],
)
def test_bad_input_is_named(change: dict, message: str) -> None:
    logits, labels, weights = batch()
    with pytest.raises((TypeError, ValueError), match=message):
        weighted_cross_entropy(**{"logits": logits, "labels": labels, "weight_map": weights, **change})
