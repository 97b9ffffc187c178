"""The ways people run training: compiled, in lower precision, checkpointed, accumulated."""

import copy
import gc
import warnings
import weakref
from typing import Any

import pytest
import torch
from attach_cases import (
    CLASSES,
    Net,
    Whole,
    assert_holds_nothing,
    assert_same,
    attached,
    batch,
    gradients,
    hooks,
    reference,
    step,
)
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from weight_map_cases import EVERY_TERM, LOSSES, TERMS, StubLoss

from perpixel import TemplateSimilarityLoss
from perpixel.attach.criterion import attach

SOME = ("template similarity, head named", "template similarity, head found", "evidence", "debt")

# --- precision, layout, accumulation


@pytest.mark.parametrize("head", ["classifier", None])
@pytest.mark.parametrize("inside", [True, False])
def test_autocast(inside: bool, head: str | None) -> None:
    model = Net()
    images, labels = batch()
    expected = reference(model, images, labels)
    criterion = attach(model, TemplateSimilarityLoss(), head=head)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(images)
        assert output["out"].dtype == torch.bfloat16
        if inside:
            loss = criterion(output, labels)
    if not inside:
        loss = criterion(output, labels)
    assert loss.dtype == torch.float32
    assert criterion.terms["base"].dtype == torch.float32
    loss.backward()
    for name, gradient in gradients(model).items():
        assert gradient.dtype == torch.float32
        scale = max(float(expected[name].abs().max()), 1e-3)  # a bias before batch norm has none but rounding
        assert float((gradient - expected[name]).abs().max()) < 0.1 * scale, name


def test_a_scaled_loss_scales_every_gradient() -> None:
    model = Net()
    images, labels = batch()
    expected = reference(model, images, labels)
    criterion = attach(model, TemplateSimilarityLoss())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler.scale(criterion(model(images), labels)).backward()
    scaler.unscale_(optimizer)
    assert_same(gradients(model), expected)


def test_accumulation_adds_up_the_batches() -> None:
    model = Net().eval()
    batches = [batch(), batch()]
    separate = [reference(model, *b) for b in batches]
    criterion = attach(model, TemplateSimilarityLoss())
    losses = []
    for images, labels in batches:
        loss = criterion(model(images), labels) / 2
        losses.append(loss)
    sum(losses).backward()
    assert_same(gradients(model), {name: (separate[0][name] + separate[1][name]) / 2 for name in separate[0]})


@EVERY_TERM
def test_channels_last(make: Any, head: str | None) -> None:
    model = Net()
    images, labels = batch()
    expected = reference(model, images, labels, make)
    model.to(memory_format=torch.channels_last)
    criterion = attach(model, make(), head=head)
    assert_same(step(model, criterion, images.to(memory_format=torch.channels_last), labels), expected)


@pytest.mark.parametrize("make", LOSSES.values(), ids=LOSSES)
def test_weight_maps_under_autocast(make: Any) -> None:
    model, images, labels, criterion = attached(Net(), make())
    with torch.autocast("cpu", torch.bfloat16):
        inside = criterion(model(images), labels)
        output = model(images)
    outside = criterion(output, labels)
    assert inside.dtype == outside.dtype == torch.float32
    (inside + outside).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("grad", [True, False])
def test_nothing_waits_for_the_device_unless_values_are_to_be_checked(grad: bool) -> None:
    model, images, labels, criterion = attached(Net(aux=True), TemplateSimilarityLoss(), head="classifier")
    criterion(model(images), labels)  # a size is looked at once
    model.to("meta")  # a meta tensor has no values: whatever asks for one raises
    images, labels = images.to("meta"), labels.to("meta")
    with torch.set_grad_enabled(grad):
        assert criterion(model(images), labels).requires_grad == grad
        if grad:
            for change in (lambda out: F.interpolate(out, (32, 32)), Tensor.double):
                criterion(change(model(images)["out"]), labels)
        criterion.losses["template_similarity"].validate = True
        with pytest.raises(RuntimeError, match="meta"):
            criterion(model(images), labels)


# --- activation checkpointing


class HeadToo(Net):
    """Neck and head inside a checkpointed block."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        logits = checkpoint(lambda x: self.classifier(self._neck(x)), self.body(images), use_reentrant=False)
        return {"out": F.interpolate(logits, scale_factor=2, mode="bilinear")}


@pytest.mark.parametrize("term", SOME)
@pytest.mark.parametrize("kind", ["inside", "head too", "whole", "whole, attached outside"])
def test_checkpointing_gives_the_same_gradients_and_leaves_nothing(kind: str, term: str) -> None:
    make, head = TERMS[term]
    net = HeadToo() if kind == "head too" else Net(reentrant=False if kind == "inside" else None)
    plain = Net()
    plain.load_state_dict(net.state_dict())
    images, labels = batch()
    torch.manual_seed(1)
    expected = reference(plain, images, labels, make)
    model = Whole(net, reentrant=False) if kind.startswith("whole") else net
    if kind == "whole, attached outside":
        criterion = attach(model, make(), head=head and f"net.{head}")
    else:
        criterion = attach(net, make(), head=head)
    held: list[Any] = []
    net.classifier.register_forward_hook(lambda m, inputs, output: held.extend(map(weakref.ref, (inputs[0], output))))
    for _ in range(2):
        net.load_state_dict(plain.state_dict())
        assert_same(step(model, criterion, images, labels, of=net), expected)
        assert_holds_nothing(criterion)  # the recomputation in backward is not a pass
        gc.collect()
        assert not any(ref() is not None for ref in held)


def test_reentrant_checkpoint_of_the_whole_model_warns() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, CLASSES, 1))
    images, labels = batch()
    criterion = attach(net, TemplateSimilarityLoss())
    with pytest.warns(UserWarning, match="use_reentrant=False"):
        loss = criterion(Whole(net, reentrant=True)(images.requires_grad_()), labels)
    loss.backward()
    assert net[0].weight.grad is not None
    assert_holds_nothing(criterion)
    with pytest.raises(RuntimeError, match="got none"):
        criterion(torch.zeros(2, CLASSES, 16, 16), labels)


def test_reentrant_checkpoint_below_the_head_works() -> None:
    net = Net(reentrant=True)
    images, labels = batch()
    plain = Net()
    plain.load_state_dict(net.state_dict())
    expected = reference(plain, images, labels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(step(net, attach(net, TemplateSimilarityLoss()), images, labels), expected)


# --- torch.compile


@pytest.mark.parametrize(("first", "term"), list(zip(("attach", "compile") * 2, SOME, strict=True)), ids=SOME)
def test_compiled_model_trains_as_the_eager_one(first: str, term: str) -> None:
    torch.compiler.reset()
    make, head = TERMS[term]
    model = Net(aux=True)
    images, labels = batch()
    expected = reference(model, images, labels, make)
    state = copy.deepcopy(model.state_dict())
    if first == "attach":
        criterion = attach(model, make(), head=head)
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    else:
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        criterion = attach(compiled, make(), head=head)
    for _ in range(2):
        model.load_state_dict(state)  # the statistics of batch norm are part of what a weight map rests on
        model.train()
        assert_same(step(compiled, criterion, images, labels, of=model), expected)
    if make is TemplateSimilarityLoss:
        assert criterion.head == "classifier"
    model.eval()
    with torch.no_grad():
        pair = [images, images.flip(-1)]
        first, second = (compiled(each) for each in pair)
        for one, output in zip(reversed(pair), (second, first), strict=True):  # each has its own features
            torch.testing.assert_close(criterion(output, labels), criterion(model(one), labels))
    del first, second, output
    criterion.remove()
    assert not list(hooks(model))
    compiled(images)
    assert_holds_nothing(criterion)


def test_a_model_compiled_and_run_before_is_refused_with_the_remedy() -> None:
    torch.compiler.reset()
    model = Net()
    images, labels = batch()
    compiled = torch.compile(model, backend="aot_eager")
    compiled(images)
    criterion = attach(compiled, TemplateSimilarityLoss())
    with pytest.raises(RuntimeError, match=r"torch\.compiler\.reset\(\)"):
        criterion(compiled(images), labels)
    torch.compiler.reset()
    criterion(compiled(images), labels)


def test_a_weight_map_of_a_model_compiled_in_place_is_made_eagerly() -> None:
    torch.compiler.reset()
    model = Net()
    images, labels = batch()
    expected = reference(model, images, labels, StubLoss)
    model.compile(backend="aot_eager")
    assert_same(step(model, attach(model, StubLoss()), images, labels), expected)


def test_a_compiled_training_step_leaves_the_weight_map_out_of_its_graph() -> None:
    torch.compiler.reset()
    model, term = Net(), LOSSES["debt"]()
    images, labels = batch()
    copied = copy.deepcopy(model)
    expected = term(copied, images, copied(images)["out"], labels)
    expected.backward()
    whole = torch.compile(lambda x, y: term(model, x, model(x)["out"], y), backend="eager")
    loss = whole(images, labels)
    loss.backward()
    torch.testing.assert_close(loss, expected)
    assert_same(gradients(model), gradients(copied))
    assert model.training
