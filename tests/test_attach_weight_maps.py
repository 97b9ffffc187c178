"""Terms with a weight map of their own, attached: what they are given, alone and beside others."""

import gc
import weakref
from typing import Any

import pytest
import torch
from attach_cases import CLASSES, Net, attached, batch, hooks
from torch import Tensor, nn
from torch.nn import functional as F
from weight_map_cases import StubLoss

from perpixel import TemplateSimilarityLoss
from perpixel.attach.criterion import attach
from perpixel.weighting import FixationWeightedLoss


class Seen(StubLoss):
    """Keeps what it was given."""

    def forward(self, model: nn.Module, images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        self.inputs = model, images, logits, labels
        return super().forward(model, images, logits, labels)


class TwoHeads(Net):
    """Adds up two classifiers, as LRASPP does: no layer's output is the logits."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = self.body(images)
        logits = self.classifier(self._neck(x)) + self.aux_classifier(x)
        return {"out": F.interpolate(logits, size=images.shape[-2:], mode="bilinear")}


def test_a_term_is_given_the_model_the_images_the_logits_and_the_labels() -> None:
    model, term = Net(), Seen()
    images, labels = batch(3)
    output = None
    for wrapped in (model, torch.optim.swa_utils.AveragedModel(model), torch.compile(model, backend="eager")):
        with attach(wrapped, term, ignore_index=7) as criterion:
            output = wrapped(images)
            criterion(output, labels.masked_fill(labels == 255, 7))
        assert type(term.inputs[0]) is Net
        assert term.inputs[1] is images
        assert term.inputs[2] is output["out"]
        assert torch.equal(term.inputs[3], labels)  # void as the term expects it
        assert not list(hooks(wrapped))


class Asks(nn.Module):
    """Images come by another name and place."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, size: Any = None, pixel_values: Any = None, *, mask: Any = None) -> dict[str, Tensor]:
        images = pixel_values if isinstance(pixel_values, Tensor) else size
        return self.net(images["pixels"] if isinstance(images, dict) else images)


@pytest.mark.parametrize("how", ["positional", "keyword", "second", "among others", "in a mapping"])
def test_images_are_found_wherever_they_are_passed(how: str) -> None:
    model, term = Asks(), Seen()
    images, labels = batch()
    criterion = attach(model, term)
    output = {
        "positional": lambda: model(images),
        "keyword": lambda: model(pixel_values=images),
        "second": lambda: model((16, 16), images),
        "among others": lambda: model(labels, mask=labels[:, None], pixel_values=images),
        "in a mapping": lambda: model({"labels": labels, "pixels": images}),
    }[how]()
    assert torch.isfinite(criterion(output, labels))
    assert term.inputs[1] is images


def test_images_are_those_before_any_hook_on_the_model_changed_them() -> None:
    model, term = Net(), Seen()
    images, labels = batch()
    model.register_forward_pre_hook(lambda _, inputs: (inputs[0] / 2,))  # runs again when a term runs the model
    attach(model, term)(model(images), labels)
    assert term.inputs[1] is images


def test_the_logits_are_those_the_model_returned() -> None:
    model, term = Net(), Seen()
    images, labels = batch()
    criterion = attach(model, term)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            output = model(images)
            criterion(F.interpolate(output["out"], size=(32, 32), mode="bilinear"), labels)
            assert term.inputs[2] is output["out"]
            output = model(images)
            criterion((output["out"],), labels)
            assert term.inputs[2] is output["out"]


@pytest.mark.parametrize("mode", ["evidence", "unsupported"])
def test_no_head_is_needed(mode: Any) -> None:
    model, images, labels, criterion = attached(TwoHeads(aux=True), FixationWeightedLoss(mode=mode, cell=4))
    assert len(list(hooks(model))) == 3  # before and after the model, and how the first is called
    for _ in range(2):
        criterion(model(images), labels).backward()
    assert set(criterion.terms) == {"base", "fixation_weighted"}
    assert criterion.head is None
    assert criterion.attached
    both = attach(model, FixationWeightedLoss(), TemplateSimilarityLoss())
    with pytest.raises(ValueError, match="head: expected one layer"):
        both(model(images), labels)
    assert torch.isfinite(criterion(model(images), labels)) if criterion.attached else True
    criterion.remove()
    assert not list(hooks(model))
    with pytest.raises(ValueError, match=r"head.*'classifier'"):
        attach(model, FixationWeightedLoss(), head="clasifier")


# --- stale, absent, held


def test_a_model_without_images_is_refused() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map = nn.Parameter(torch.randn(2, CLASSES, 4, 4))

        def forward(self, index: Tensor) -> Tensor:
            return self.map[index]

    model = Table()
    criterion = attach(model, StubLoss())
    with pytest.raises(RuntimeError, match=r"model: expected images.*got none.*model\(images\)"):
        criterion(model(torch.arange(2)), torch.zeros(2, 4, 4, dtype=torch.long))


@pytest.mark.parametrize("fails", [False, True])
def test_images_are_held_no_longer_than_the_call(fails: bool) -> None:
    model, images, labels, criterion = attached(Net(), StubLoss(every=2), TemplateSimilarityLoss())
    for _ in range(2):
        held = weakref.ref(images)
        output = model(images)
        if fails:
            with pytest.raises(ValueError, match="at position"):
                criterion(output, torch.full_like(labels, 9))
        else:
            criterion(output, labels)
        output = images = None
        gc.collect()
        assert held() is None
        images, labels = batch()
