"""Training with a weight map changes what labels rest on: same start and same batches as the control."""

import copy

import pytest
import torch
from torch import Tensor, nn

from perpixel import fixations
from perpixel.attach.criterion import attach
from perpixel.data import SyntheticEvidence
from perpixel.models import small_fcn
from perpixel.weighting import DiscriminativeRegionLoss, FixationWeightedLoss, WeightMapLoss

Pictures = tuple[Tensor, Tensor, Tensor]


def pictures(count: int, split: str) -> Pictures:
    """Images, labels and evidence of one pair of creatures that only their heads tell apart."""
    data = SyntheticEvidence(
        count,
        size=(48, 64),
        pairs=1,
        hidden_head=0.0,
        context_pair=False,
        local_pair=False,
        creatures=(1, 2),
        split=split,  # type: ignore[arg-type]
    )
    samples = [data[i] for i in range(count)]
    image, labels, evidence = (torch.stack([sample[part] for sample in samples]) for part in range(3))
    return image - 0.5, labels, evidence


def train(
    model: nn.Module, data: Pictures, term: WeightMapLoss | None, steps: int, rate: float, seed: int
) -> nn.Module:
    """Cross-entropy alone, or the term alone; the same batches for a seed."""
    images, labels, _ = data
    optimizer = torch.optim.Adam(model.train().parameters(), lr=rate)
    order = torch.Generator().manual_seed(seed)
    nothing = None if term is None else lambda logits, labels: logits.sum() * 0.0
    with attach(model, *([] if term is None else [term]), base=nothing) as criterion:
        for _ in range(steps):
            chosen = torch.randint(0, len(images), (8,), generator=order)
            optimizer.zero_grad()
            criterion(model(images[chosen]), labels[chosen]).backward()
            optimizer.step()
    return model


def share_on_evidence(model: nn.Module, held_out: Pictures) -> float:
    """Of the mass of the creatures' pixels, followed through every layer."""
    images, labels, evidence = held_out
    fix = fixations(model, images, start=labels.masked_fill(labels == 0, -1))
    image, _, _, y, x = fix.points.unbind(1)
    return float((fix.mass * evidence[image, y, x]).sum() / fix.mass.sum())


@pytest.mark.slow
def test_training_moves_the_fixations() -> None:
    """Each term alone, without the plain cross-entropy, at a strength that lets weights differ by a factor of 21.

    "debt" draws the mass onto the evidence, "independent" and "unsupported" draw it away; both region terms leave every
    label its total weight, so that it is the place that does it. What "evidence" does is positive in most runs but
    small, hence compared with its opposite only. 120 steps: with 80 "unsupported" has moved no further than its bound.
    """
    held_out, data = pictures(64, "val"), pictures(200, "train")
    torch.manual_seed(0)
    start = train(small_fcn(3, width=16), data, None, 500, 3e-3, seed=0)
    fixation = {"shift": "full", "strength": 20.0, "cell": 4}
    terms = {
        "control": None,
        "evidence": FixationWeightedLoss(mode="evidence", **fixation),
        "unsupported": FixationWeightedLoss(mode="unsupported", **fixation),
        "debt": DiscriminativeRegionLoss(mode="debt", strength=20.0, per_label=True),
        "independent": DiscriminativeRegionLoss(mode="independent", strength=20.0, per_label=True),
    }
    shares = {
        name: share_on_evidence(train(copy.deepcopy(start), data, term, 120, 5e-4, seed=101), held_out)
        for name, term in terms.items()
    }
    moved = {name: share - shares["control"] for name, share in shares.items()}
    assert moved["debt"] > 0.02
    assert moved["independent"] < -0.005
    assert moved["unsupported"] < -0.005
    assert moved["evidence"] > moved["unsupported"] + 0.01
