"""Several outputs of one step: each has its own features and images, for as long as it is there and no longer."""

import gc
import weakref
from typing import Any

import pytest
import torch
from attach_cases import CLASSES, Net, Whole, assert_holds_nothing, attached, batch, gradients
from torch import Tensor, nn
from torch.nn import functional as F
from weight_map_cases import StubLoss

from perpixel import TemplateSimilarityLoss
from perpixel.attach.criterion import attach
from perpixel.attach.hooks import PASSES

EITHER = pytest.mark.parametrize("make", [TemplateSimilarityLoss, StubLoss])
GRAD = pytest.mark.parametrize("grad", [True, False])


def up(output: Any) -> Tensor:
    return F.interpolate(output["out"], scale_factor=2, mode="bilinear")


def pairs(n: int = 2) -> list[tuple[Tensor, Tensor]]:
    return [batch() for _ in range(n)]


def alone(model: nn.Module, make: Any, images: Tensor, labels: Tensor) -> Tensor:
    with attach(model, make(), head="classifier") as criterion:
        return criterion(model(images), labels)


@EITHER
@GRAD
@pytest.mark.parametrize("head", [None, "classifier"])
@pytest.mark.parametrize("order", [(0, 1), (1, 0), (0, 1, 0, 0), (2, 0, 1, 2)])
def test_every_output_has_what_belongs_to_it(order: tuple[int, ...], head: str | None, grad: bool, make: Any) -> None:
    model, batches = Net(aux=True).eval(), pairs(3)
    expected = [alone(model, make, *each) for each in batches]
    criterion = attach(model, make(), head=head)
    with torch.set_grad_enabled(grad):
        outputs = [model(images) for images, _ in batches]
        losses = [criterion(outputs[each], batches[each][1]) for each in order]
    for each, loss in zip(order, losses, strict=True):
        torch.testing.assert_close(loss, expected[each])
    if grad:
        sum(losses).backward()
        found = gradients(model)
        model.zero_grad()
        sum(expected[each] for each in order).backward()
        for name, gradient in gradients(model).items():
            torch.testing.assert_close(found[name], gradient)


@EITHER
@GRAD
@pytest.mark.parametrize("change", [lambda output: output, lambda output: output["out"], up, lambda o: o["out"] + 0])
def test_mixup_takes_one_output_twice(change: Any, grad: bool, make: Any) -> None:
    model, ((images, labels), (_, others)) = Net().eval(), pairs()
    criterion = attach(model, make())
    with torch.set_grad_enabled(grad):
        expected = [criterion(change(model(images)), each) for each in (labels, others, labels)]
        output = change(model(images))  # with `up`, nobody else holds what the model returned
        model(torch.randn_like(images))
        gc.collect()
        if change is up or isinstance(output, Tensor):
            output = change(model(images))
        for each, value in zip((labels, others, labels), expected, strict=True):
            torch.testing.assert_close(criterion(output, each), value)


@EITHER
def test_a_step_between_two_calls_changes_nothing(make: Any) -> None:
    model, ((images, labels), (others, _)) = Net().eval(), pairs()
    criterion = attach(model, make())
    output = model(images)
    first = criterion(output, labels)
    criterion(model(others), labels).backward()
    torch.testing.assert_close(criterion(output, labels), first)


@pytest.mark.parametrize(
    "setting", ["autocast", "checkpointed", "whole checkpointed", "channels last", "cast by a wrapper"]
)
def test_two_outputs_in_the_ways_people_train(setting: str) -> None:
    net = Net(aux=True, reentrant=False if setting == "checkpointed" else None).eval()
    model = Whole(net, reentrant=False) if setting == "whole checkpointed" else net
    model = torch.optim.swa_utils.AveragedModel(net) if setting == "cast by a wrapper" else model
    if setting == "channels last":
        model.to(memory_format=torch.channels_last)
    if setting == "cast by a wrapper":
        model.register_forward_hook(lambda layer, inputs, output: {key: each.double() for key, each in output.items()})
    criterion = attach(model, TemplateSimilarityLoss(), StubLoss())
    batches = pairs()
    with torch.autocast("cpu", torch.bfloat16, enabled=setting == "autocast"):
        expected = [criterion(model(images), labels) for images, labels in batches]
        for loss in expected:
            loss.backward()
        summed = gradients(model)
        model.zero_grad()
        outputs = [model(images) for images, _ in batches]
        losses = [criterion(outputs[each], batches[each][1]) for each in (1, 0)]
    torch.testing.assert_close(losses, expected[::-1])
    sum(losses).backward()
    assert_holds_nothing(criterion)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, summed[name], rtol=0.02 if setting == "autocast" else 1e-5, atol=1e-5)


def test_what_was_made_of_an_earlier_output_is_told_apart() -> None:
    model, ((images, labels), (others, _)) = Net().eval(), pairs()
    criterion = attach(model, TemplateSimilarityLoss())
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            expected = criterion(model(images), labels)
            one, other = model(images), model(others)
            made = up(one), up(other)
            torch.testing.assert_close(criterion(made[0], labels), criterion(up(one), labels))
            torch.testing.assert_close(criterion(one, labels), expected)
            del one
            torch.testing.assert_close(criterion(made[1], labels), criterion(up(other), labels))
            del other


@pytest.mark.parametrize("same", [True, False])
def test_outputs_that_cannot_be_told_apart_are_refused(same: bool) -> None:
    model, ((images, labels), (others, _)) = Net().eval(), pairs()
    nn.init.zeros_(model.classifier.weight)
    criterion = attach(model, TemplateSimilarityLoss(), head="classifier")
    with torch.no_grad():
        one, other = model(images), model(images.clone() if same else others)
        if same:
            assert criterion(up(one), labels).isfinite()
        else:
            with pytest.raises(RuntimeError, match=r"2 of them may have given.*the very output"):
                criterion(up(one), labels)
            assert criterion(one, labels) != criterion(other, labels)


@GRAD
@pytest.mark.parametrize("head", [None, "classifier"])
@pytest.mark.parametrize("change", [lambda output: output, up])
def test_a_pass_lives_as_long_as_its_output(change: Any, head: str | None, grad: bool) -> None:
    model, held = Net(aux=True), []

    def hold(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        held.append((weakref.ref(inputs[0]), weakref.ref(output)))

    model.classifier.register_forward_hook(hold)
    criterion = attach(model, TemplateSimilarityLoss(), StubLoss(), head=head)
    with torch.set_grad_enabled(grad):
        batches = pairs(3)
        outputs = [change(model(images)) for images, _ in batches[:2]] if change is not up else []
        outputs += [change(model(batches[2][0]))]
        for output, (_, labels) in zip(outputs, batches[-len(outputs) :], strict=True):
            criterion(output, labels)
            loss = criterion(output, labels)
        if grad:
            loss.backward(retain_graph=True)
        del output, loss
    for _ in range(len(outputs)):
        gc.collect()
        alive = [all(ref() is not None for ref in refs) for refs in held]
        assert sum(alive) == len(outputs)
        outputs.pop()
    gc.collect()
    assert not any(ref() is not None for refs in held for ref in refs)
    assert_holds_nothing(criterion)


@pytest.mark.parametrize("terms", [(), (TemplateSimilarityLoss,), (StubLoss,), (TemplateSimilarityLoss, StubLoss)])
def test_nothing_outlives_backward_whoever_holds_the_output(terms: Any) -> None:
    """As in most loops, where `output` and `loss` are there until the next pass has been."""
    model, held = Net(aux=True), []
    model.classifier.register_forward_hook(lambda layer, inputs, output: held.append(weakref.ref(inputs[0])))
    criterion = attach(model, *(term() for term in terms))
    for images, labels in pairs(3):
        output = model(images)
        loss = criterion(output, labels) + criterion(output, labels.flip(-1))
        assert len(criterion._recorder.kept.passes()) == 1
        loss.backward(retain_graph=True)
        loss = criterion(output, labels)
        loss.backward()
        gc.collect()
        assert not any(ref() is not None for ref in held)
        assert_holds_nothing(criterion)
    if terms:
        with pytest.raises(RuntimeError, match="before its backward"):
            criterion(output, labels)


@GRAD
def test_passes_without_a_call_are_not_gathered(grad: bool) -> None:
    model, images, _, criterion = attached(Net(), TemplateSimilarityLoss(), head="classifier")
    with torch.set_grad_enabled(grad):
        for _ in range(3):
            model(images)
            assert not criterion._recorder.kept.passes()
        held = [model(images) for _ in range(2 * PASSES)]
        model(images)
    assert len(criterion._recorder.kept.passes()) == PASSES
    del held
    assert not criterion._recorder.kept.passes()


def test_beyond_the_bound_is_refused() -> None:
    model, images, labels, criterion = attached(Net(), TemplateSimilarityLoss())
    outputs = [model(images) for _ in range(PASSES + 2)]
    for output in outputs[1:]:
        with pytest.raises(RuntimeError, match=f"of the last {PASSES} at most"):
            criterion(outputs[0], labels)
        assert torch.isfinite(criterion(output, labels)) if output is outputs[-1] else True


# --- logits made of several outputs


@GRAD
@EITHER
def test_logits_of_several_passes_are_refused_with_the_remedy(make: Any, grad: bool) -> None:
    model, images, labels, criterion = attached(Net().eval(), make())
    with torch.set_grad_enabled(grad):
        flipped = (model(images)["out"] + model(images.flip(-1))["out"].flip(-1)) / 2
        tiles = torch.cat([model(tile)["out"] for tile in images.split(8, 3)], 3)
        for logits in (flipped, tiles):
            with pytest.raises(RuntimeError, match=r"flips averaged, tiles put together.*criterion\.base\(logits, lab"):
                criterion(logits, labels)
            expected = F.cross_entropy(logits, labels, ignore_index=255)
            torch.testing.assert_close(criterion.base(logits, labels), expected)
        for tile, of in zip(images.split(8, 3), labels.split(8, 2), strict=True):
            assert torch.isfinite(criterion(model(tile), of))


@GRAD
def test_without_terms_nothing_is_refused(grad: bool) -> None:
    model, images, labels, criterion = attached(nn.Conv2d(3, CLASSES, 1, stride=2).eval())
    with torch.set_grad_enabled(grad):
        flipped = (model(images) + model(images.flip(-1)).flip(-1)) / 2
        tiles = torch.cat([model(tile) for tile in images.split(8, 3)], 3)
        mixed = model(images)
        for logits in (flipped, tiles, mixed, mixed, torch.randn(2, CLASSES, 8, 8)):
            expected = F.cross_entropy(F.interpolate(logits, (16, 16), mode="bilinear"), labels, ignore_index=255)
            torch.testing.assert_close(criterion(logits, labels), expected)


def test_images_of_an_earlier_pass_changed_in_place_are_refused() -> None:
    model, ((images, labels), (others, _)) = Net(), pairs()
    criterion = attach(model, StubLoss())
    output, other = model(images), model(others)
    images.zero_()
    with pytest.raises(RuntimeError, match="images changed since"):
        criterion(output, labels)
    assert torch.isfinite(criterion(other, labels))
