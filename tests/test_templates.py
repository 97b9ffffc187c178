"""Peaks and running templates."""

import copy

import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from perpixel import TemplateSimilarityLoss, template_similarity_loss
from perpixel.losses.template_similarity.templates import class_counts, peak_positions


@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.integers(0, 10**6))
def test_peaks_are_the_first_highest_own_pixels(n: int, c: int, h: int, w: int, seed: int) -> None:
    torch.manual_seed(seed)
    logits = torch.randint(-2, 3, (n, c, h, w)).double()
    logits[torch.rand_like(logits) < 0.1] = -torch.inf
    labels = torch.randint(0, c + 1, (n, h, w))
    valid = labels < c
    flat = torch.where(valid, labels, 0).flatten(1)
    peaks, best = peak_positions(logits.flatten(2), flat, valid.flatten(1))
    counts = class_counts(flat, valid.flatten(1), c)
    literal = oracles.peak_pixels(logits, labels, c)
    assert set(counts.nonzero().flatten().tolist()) == set(literal)
    for k, (i, y, x) in literal.items():
        assert peaks[k] == i * h * w + y * w + x
        assert best[k] == logits[i, k, y, x]


def batch(seed: int, n: int = 2) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(seed)
    labels = torch.randint(0, 3, (n, 4, 5))
    labels[0, 0, :2] = 255
    return torch.randn(n, 6, 4, 5).double(), torch.randn(n, 4, 4, 5).double(), labels


def test_a_bad_batch_shows_in_its_loss_and_not_in_the_running_templates() -> None:
    loss = TemplateSimilarityLoss(running_momentum=0.5)
    features, logits, labels = batch(0)
    loss(features, logits, labels)
    before = loss.running.templates.clone()
    assert loss(torch.full_like(features, torch.nan), logits, labels).isnan()
    torch.testing.assert_close(loss.running.templates, before)
    assert loss(features, logits, labels).isfinite()


def test_running_templates_follow_their_formula() -> None:
    loss = TemplateSimilarityLoss(running_momentum=0.75, template="mean")
    expected: dict[int, torch.Tensor] = {}
    for step in range(4):
        features, logits, labels = batch(step)
        if step == 1:
            labels[labels == 2] = 0  # a class may be missing from a batch
        features.requires_grad_()
        value = loss(features, logits, labels)
        for c in range(3):
            rows = features.detach().movedim(1, -1)[labels == c]
            if len(rows):
                unit = torch.nn.functional.normalize(torch.nn.functional.normalize(rows, dim=1).mean(0), dim=0)
                expected[c] = unit if c not in expected else 0.75 * expected[c] + 0.25 * unit
        for c, template in expected.items():
            torch.testing.assert_close(loss.running.templates[c], template)
        current = loss.running.templates.clone()
        same = template_similarity_loss(features, logits, labels, template=lambda *_, t=current: t)
        torch.testing.assert_close(value, same)
        value.backward()
        assert features.grad.isfinite().all()
    assert loss.running.seen.tolist() == [4, 4, 3, 0]
    assert (loss.running.templates[3] == 0).all()


def test_running_templates_survive_a_checkpoint_and_rest_in_eval() -> None:
    loss = TemplateSimilarityLoss(running_momentum=0.9)
    for step in range(3):
        loss(*batch(step))
    state = loss.state_dict()
    assert set(state) == {"running.templates", "running.seen"}
    fresh = TemplateSimilarityLoss(running_momentum=0.9)
    fresh.load_state_dict(state)
    assert torch.equal(fresh(*batch(7)), loss(*batch(7)))
    for a, b in zip(fresh.state_dict().values(), loss.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    before = {k: v.clone() for k, v in loss.state_dict().items()}
    loss.eval()
    loss(*batch(8))
    assert all(torch.equal(v, before[k]) for k, v in loss.state_dict().items())
    unseen = TemplateSimilarityLoss(running_momentum=0.9).eval()
    assert torch.equal(unseen(*batch(8)), template_similarity_loss(*batch(8)))
    with pytest.raises(ValueError, match="running templates"):
        loss.train()(torch.randn(2, 7, 4, 5), *batch(0)[1:])


def test_sharing_may_be_switched_later_and_copies_go_on_with_it() -> None:
    loss = TemplateSimilarityLoss()
    loss.share_templates = True
    copied = copy.deepcopy(loss)
    assert copied.share_templates
    assert copied._ranks is not loss._ranks
    with pytest.raises(TypeError, match="share_templates"):
        loss.share_templates = 1
    values = batch(0)
    torch.testing.assert_close(loss(*values), template_similarity_loss(*values))  # one process
