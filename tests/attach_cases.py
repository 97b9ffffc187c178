"""A small network and steps that the tests of attaching share."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from perpixel import TemplateSimilarityLoss
from perpixel.attach.criterion import Feedback, attach
from perpixel.outputs import dense_logits

CLASSES = 4


class Net(nn.Module):
    """Stride 2, batch norm, an auxiliary head of the same shape as the classifier; dict output like torchvision's."""

    def __init__(self, aux: bool = False, reentrant: bool | None = None) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.neck = nn.Conv2d(8, 8, 3, padding=1)
        self.classifier = nn.Conv2d(8, CLASSES, 1)
        self.aux_classifier = nn.Conv2d(8, CLASSES, 1) if aux else None
        self.reentrant = reentrant

    def _neck(self, x: Tensor) -> Tensor:
        return F.relu(self.neck(x))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = self.body(images)
        y = self._neck(x) if self.reentrant is None else checkpoint(self._neck, x, use_reentrant=self.reentrant)
        out = {"out": _up(self.classifier(y), images)}
        if self.aux_classifier is not None:
            out["aux"] = _up(self.aux_classifier(x), images)
        return out


class ThroughNumpy(Net):
    """What torch does not see."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return super().forward(torch.from_numpy(np.ascontiguousarray(images.numpy())))


class Whole(nn.Module):
    """The whole network in one checkpoint."""

    def __init__(self, net: nn.Module, reentrant: bool) -> None:
        super().__init__()
        self.net, self.reentrant = net, reentrant

    def forward(self, images: Tensor) -> Any:
        return checkpoint(self.net, images, use_reentrant=self.reentrant)


def segformer(labels: int = CLASSES) -> nn.Module:
    """transformers' SegFormer, tiny and with random weights."""
    transformers = pytest.importorskip("transformers")
    config = transformers.SegformerConfig(
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[2, 1],
        hidden_sizes=[8, 8],
        patch_sizes=[7, 3],
        strides=[4, 2],
        num_attention_heads=[1, 1],
        mlp_ratios=[2, 2],
        decoder_hidden_size=8,
        num_labels=labels,
    )
    return transformers.SegformerForSemanticSegmentation(config)


def _up(logits: Tensor, images: Tensor) -> Tensor:
    return F.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False)


def batch(
    n: int = 2, size: int = 16, classes: int = CLASSES, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    images = torch.randn(n, 3, size, size, dtype=dtype)
    labels = torch.randint(0, classes, (n, size, size))
    labels[:, 0] = 255
    return images, labels


def attached(model: Any, *terms: Any, **how: Any) -> tuple[Any, Tensor, Tensor, Feedback]:
    """model, images, labels, criterion."""
    return model, *batch(), attach(model, *terms, **how)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def hooks(model: nn.Module) -> Iterator[object]:
    """Every hook on every layer."""
    ways = ("_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", *ways)
    for layer in model.modules():
        for kind in kinds:
            yield from getattr(layer, kind).values()


def assert_one_line_works(model: nn.Module, images: Tensor, labels: Tensor, *, below: str, **how: Any) -> Feedback:
    """The term's own gradient reaches `below`, every part is named, outputs stay bitwise the same, no hook stays."""
    model.eval()
    with torch.no_grad():
        bare = dense_logits(model(images))
        own_hooks = list(hooks(model))  # some libraries keep hooks of their own
        criterion = attach(model, TemplateSimilarityLoss(weight=0.5), **how)
        output = model(images)
        assert torch.equal(dense_logits(output), bare)
        criterion(output, labels)
    model.train()
    loss = criterion(model(images), labels)
    loss.backward()
    assert set(criterion.terms) - {"aux"} == {"base", "template_similarity"}
    parts = criterion.terms
    by_hand = parts["base"] + 0.5 * parts.get("aux", 0.0) + 0.5 * parts["template_similarity"]
    torch.testing.assert_close(criterion.total, by_hand)
    torch.testing.assert_close(loss.detach(), criterion.total)
    criterion.base = _no_base
    model.zero_grad()
    criterion(model(images), labels).backward()
    weight = model.get_parameter(below)
    assert weight.grad is not None
    assert torch.isfinite(weight.grad).all()
    assert weight.grad.abs().sum() > 0
    model.eval()
    with torch.no_grad():
        attached = dense_logits(model(images))
        criterion.remove()
        assert torch.equal(dense_logits(model(images)), attached)
    assert list(hooks(model)) == own_hooks
    return criterion


def _no_base(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.sum() * 0.0


def step(
    model: nn.Module, criterion: Feedback, images: Tensor, labels: Tensor, of: nn.Module | None = None
) -> dict[str, Tensor]:
    """Gradients of one step, by the names they have in `of`, where the model is a wrapper."""
    model.zero_grad()
    criterion(model(images), labels).backward()
    return gradients(of or model)


def assert_holds_nothing(criterion: Feedback) -> None:
    kept = criterion._recorder.kept
    for one in (kept.last, kept.before):
        assert one.call is one.output is None
        assert not one.records
        assert not one.outside
    assert not kept.tied
    assert not kept.made_of


def reference(
    model: nn.Module, images: Tensor, labels: Tensor, make: Callable[[], Any] = TemplateSimilarityLoss
) -> dict[str, Tensor]:
    """Gradients of an ordinary eager step with the term, on a copy."""
    copied = copy.deepcopy(model)
    return step(copied, attach(copied, make()), images, labels)


def assert_same(gradients: dict[str, Tensor], expected: dict[str, Tensor], **tolerance: float) -> None:
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], **tolerance, msg=lambda m, name=name: f"{name}: {m}")
