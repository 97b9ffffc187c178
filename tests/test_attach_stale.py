"""Features are never stale, and never outlive the call."""

import gc
import weakref
from typing import Any

import pytest
import torch
from attach_cases import CLASSES, Net, attached, batch
from torch import Tensor, nn
from torch.nn import functional as F
from weight_map_cases import StubLoss

from perpixel import TemplateSimilarityLoss
from perpixel.attach.criterion import attach

EITHER = pytest.mark.parametrize("make", [TemplateSimilarityLoss, StubLoss])


@EITHER
def test_a_call_needs_a_forward_pass(make: Any) -> None:
    model = Net()
    images, labels = batch()
    output = model(images)
    criterion = attach(model, make())
    with pytest.raises(RuntimeError, match="since attach, got none"):
        criterion(output, labels)
    criterion(model(images), labels)
    with pytest.raises(RuntimeError, match="since the last call of the criterion, got none"):
        criterion(output, labels)


@EITHER
@pytest.mark.parametrize("grad", [True, False])
def test_an_output_of_another_model_is_refused(grad: bool, make: Any) -> None:
    model, other = Net(), Net()
    images, labels = batch()
    criterion = attach(model, make())
    with torch.set_grad_enabled(grad):
        criterion(model(images), labels)
        model(images)
        with pytest.raises(RuntimeError, match="last forward pass"):
            criterion(other(images), labels)
        model(images)
        with pytest.raises(RuntimeError, match="last forward pass"):
            criterion(torch.randn(2, CLASSES, 16, 16), labels)
        assert torch.isfinite(criterion(model(images), labels))


def test_a_weight_map_needs_the_model_whole() -> None:
    model, images, labels, criterion = attached(Net(), StubLoss())
    with pytest.raises(RuntimeError, match="criterion: expected a forward pass"):
        criterion(model.classifier(model.neck(model.body(images))), labels)
    criterion(model(images), labels)


@pytest.mark.parametrize("grad", [True, False])
def test_outputs_changed_on_the_way_are_accepted(grad: bool) -> None:
    model, images, labels, criterion = attached(Net(), TemplateSimilarityLoss())
    with torch.set_grad_enabled(grad):
        expected = criterion(model(images), labels)
        torch.testing.assert_close(criterion(model(images)["out"], labels), expected)
        torch.testing.assert_close(criterion((model(images)["out"] * 1.0,), labels), expected)
        criterion(F.interpolate(model(images)["out"], size=(32, 32), mode="bilinear", align_corners=True), labels)
        criterion(model(images)["out"].double().to(torch.bfloat16), labels)


def test_labels_of_another_batch_are_refused() -> None:
    model = Net()
    images, labels = batch(2)
    criterion = attach(model, TemplateSimilarityLoss())
    output = model(images)
    with pytest.raises(ValueError, match="1 label maps for 2 images"):
        criterion(output, labels[:1])
    with pytest.raises(ValueError, match="one-hot"):
        criterion(model(images), F.one_hot(labels.clamp(max=3)).permute(0, 3, 1, 2))
    with pytest.raises(ValueError, match="7 at position"):
        criterion(model(images), torch.full_like(labels, 7))
    with pytest.raises(
        RuntimeError, match=r"got logits \(1, 4, 16, 16\) that are neither its output, \(2, 4, 16, 16\)"
    ):
        criterion(model(images)["out"][:1], labels[:1])


@EITHER
@pytest.mark.parametrize("by_the_model", [True, False])
def test_images_changed_in_place_are_not_asked_again(by_the_model: bool, make: Any) -> None:
    class Subtracts(Net):
        def forward(self, images: Tensor) -> dict[str, Tensor]:
            return super().forward(images.sub_(0.5) if by_the_model else images)

    model, images, labels, criterion = attached(Subtracts(), make())
    output = model(images)
    if not by_the_model:
        images.zero_()  # the next batch is put into the same memory
    if make is StubLoss:
        with pytest.raises(RuntimeError, match="images: expected those of the last forward pass, got images changed"):
            criterion(output, labels)
    else:
        criterion(output, labels)


def _references(features: list[Any]) -> Any:
    def keep(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        features.extend(weakref.ref(t) for t in (inputs[0], output))

    return keep


@pytest.mark.parametrize("head", [None, "classifier"])
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_no_features_live_on_after_the_call(head: str | None, fails: bool, grad: bool) -> None:
    model, held = Net(aux=True), []
    images, labels = batch()
    for layer in (model.body[0], model.neck, model.classifier):
        layer.register_forward_hook(_references(held))
    criterion = attach(model, TemplateSimilarityLoss(), head=head)
    with torch.set_grad_enabled(grad):
        output = model(images)
        if fails:
            with pytest.raises(ValueError, match="at position"):
                criterion(output, torch.full_like(labels, 9))
        else:
            loss = criterion(output, labels)
            if grad:
                loss.backward()
            del loss
    del output
    gc.collect()
    alive = [ref() for ref in held if ref() is not None and ref() is not images]
    assert not alive


def test_a_new_pass_lets_go_of_the_one_before() -> None:
    model, held = Net(), []
    images, _ = batch()
    model.classifier.register_forward_hook(_references(held))
    criterion = attach(model, TemplateSimilarityLoss(), head="classifier")
    with torch.no_grad():
        model(images)
        model(images)
    gc.collect()
    assert [ref() is not None for ref in held] == [False, False, True, True]
    criterion.remove()
    assert not any(ref() is not None for ref in held)


def test_a_pass_that_fails_leaves_nothing_to_use() -> None:
    model, images, labels, criterion = attached(Net(), TemplateSimilarityLoss(), head="classifier")
    old = model(images)
    with pytest.raises(RuntimeError, match="channels"):
        model(torch.randn(2, 5, 16, 16))
    with pytest.raises(RuntimeError, match="last forward passes"):
        criterion(torch.zeros_like(old["out"]), labels)
    expected = criterion(model(images), labels)
    torch.testing.assert_close(criterion(old, labels), expected)
