"""The ways people run training: compiled, in lower precision, checkpointed, accumulated, copied, saved."""

import copy
import gc
import io
import pickle
import warnings
import weakref
from typing import Any

import pytest
import torch
from attach_cases import CLASSES, Net, batch, gradients, hooks
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from perpixel import TemplateSimilarityLoss
from perpixel.attach import Feedback, attach


def step(model: nn.Module, criterion: Feedback, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    criterion(model(images), labels).backward()
    return gradients(model)


def reference(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Gradients of an ordinary eager step, on a copy."""
    copied = copy.deepcopy(model)
    return step(copied, attach(copied, TemplateSimilarityLoss()), images, labels)


def assert_same(gradients: dict[str, Tensor], expected: dict[str, Tensor], **tolerance: float) -> None:
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], **tolerance, msg=lambda m, name=name: f"{name}: {m}")


# --- torch.compile


@pytest.mark.parametrize("head", ["classifier", None])
@pytest.mark.parametrize("first", ["attach", "compile"])
def test_compiled_model_trains_as_the_eager_one(first: str, head: str | None) -> None:
    torch.compiler.reset()
    model = Net(aux=True)
    images, labels = batch()
    expected = reference(model, images, labels)
    if first == "attach":
        criterion = attach(model, TemplateSimilarityLoss(), head=head)
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    else:
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        criterion = attach(compiled, TemplateSimilarityLoss(), head=head)
    for _ in range(2):
        model.train()
        compiled.zero_grad()
        criterion(compiled(images), labels).backward()
        assert_same(gradients(model), expected)
        assert criterion.head == "classifier"
    old = compiled(images)
    compiled(images)
    with pytest.raises(RuntimeError, match="last forward pass"):
        criterion(old, labels)
    model.eval()
    with torch.no_grad():
        criterion(compiled(images), labels)
    criterion.remove()
    assert not list(hooks(model))
    compiled(images)
    assert not criterion._recorder.passed
    assert criterion._recorder.output is None


def test_a_model_compiled_and_run_before_is_told() -> None:
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


@pytest.mark.parametrize("head", ["classifier", None])
def test_channels_last(head: str | None) -> None:
    model = Net()
    images, labels = batch()
    expected = reference(model, images, labels)
    model.to(memory_format=torch.channels_last)
    criterion = attach(model, TemplateSimilarityLoss(), head=head)
    assert_same(step(model, criterion, images.to(memory_format=torch.channels_last), labels), expected)


@pytest.mark.parametrize("grad", [True, False])
def test_nothing_waits_for_the_device_unless_values_are_to_be_checked(grad: bool) -> None:
    model = Net(aux=True).to("meta")  # a meta tensor has no values: whatever asks for one raises
    images, labels = (t.to("meta") for t in batch())
    criterion = attach(model, TemplateSimilarityLoss(), head="classifier")
    with torch.set_grad_enabled(grad):
        assert criterion(model(images), labels).requires_grad == grad
        criterion.remove()
        checking = attach(model, TemplateSimilarityLoss(validate=True), head="classifier")
        with pytest.raises(RuntimeError, match="meta"):
            checking(model(images), labels)


# --- activation checkpointing


class Whole(nn.Module):
    """The whole network in one checkpoint."""

    def __init__(self, net: nn.Module, reentrant: bool) -> None:
        super().__init__()
        self.net, self.reentrant = net, reentrant

    def forward(self, images: Tensor) -> Any:
        return checkpoint(self.net, images, use_reentrant=self.reentrant)


class HeadToo(Net):
    """Neck and head inside a checkpointed block."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        logits = checkpoint(lambda x: self.classifier(self._neck(x)), self.body(images), use_reentrant=False)
        return {"out": nn.functional.interpolate(logits, scale_factor=2, mode="bilinear")}


@pytest.mark.parametrize("head", ["classifier", None])
@pytest.mark.parametrize("kind", ["inside", "head too", "whole", "whole, attached outside"])
def test_checkpointing_gives_the_same_gradients_and_leaves_nothing(kind: str, head: str | None) -> None:
    net = HeadToo() if kind == "head too" else Net(reentrant=False if kind == "inside" else None)
    images, labels = batch()
    torch.manual_seed(1)
    expected = reference(net, images, labels)
    model = Whole(net, reentrant=False) if kind.startswith("whole") else net
    if kind == "whole, attached outside":
        criterion = attach(model, TemplateSimilarityLoss(), head=head and f"net.{head}")
    else:
        criterion = attach(net, TemplateSimilarityLoss(), head=head)
    held: list[Any] = []
    net.classifier.register_forward_hook(lambda m, given, gave: held.extend(map(weakref.ref, (given[0], gave))))
    for _ in range(2):
        model.zero_grad()
        criterion(model(images), labels).backward()
        assert_same(gradients(net), expected)
        assert not criterion._recorder.passed  # the recomputation in backward is not a pass
        assert criterion._recorder.output is None
        gc.collect()
        assert not any(ref() is not None for ref in held)


def test_reentrant_checkpoint_of_the_whole_model_is_told() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, CLASSES, 1))
    images, labels = batch()
    criterion = attach(net, TemplateSimilarityLoss())
    with pytest.warns(UserWarning, match="use_reentrant=False"):
        loss = criterion(Whole(net, reentrant=True)(images.requires_grad_()), labels)
    loss.backward()
    assert net[0].weight.grad is not None
    assert not criterion._recorder.passed
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


# --- copies and files


@pytest.mark.parametrize("head", ["classifier", None])
def test_a_copy_of_the_model_is_clean(head: str | None) -> None:
    model = Net()
    images, labels = batch()
    criterion = attach(model, TemplateSimilarityLoss(), head=head)
    output = model(images)  # tensors with a graph are held while the copy is made
    teacher = copy.deepcopy(model)
    assert not list(hooks(teacher))
    with torch.no_grad():
        teacher(torch.randn_like(images))
    loss = criterion(output, labels)
    torch.testing.assert_close(loss, criterion(model(images), labels))
    own = attach(teacher, TemplateSimilarityLoss())
    own(teacher(images), labels)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    assert not list(hooks(averaged))


class Trainer:
    """Holds both, criterion first, and the model refers back to the criterion."""

    def __init__(self) -> None:
        model = Net()
        self.criterion = attach(model, TemplateSimilarityLoss(template="mean"))
        model.criterion = self.criterion
        self.model = model


@pytest.mark.parametrize("found", [False, True])
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_of_both_is_an_independent_pair(how: str, found: bool) -> None:
    one = Trainer()
    images, labels = batch()
    if found:
        one.criterion(one.model(images), labels)
    one.model(images)
    other = copy.deepcopy(one) if how == "deepcopy" else pickle.loads(pickle.dumps(one))
    assert other.model.criterion is other.criterion
    step(other.model, other.criterion, images, labels)
    assert not gradients(one.model)
    other.model(images)
    step(one.model, one.criterion, images, labels)
    assert_same(gradients(other.model), gradients(one.model))
    other.criterion.remove()
    assert how == "pickle" or not list(hooks(other.model))
    step(one.model, one.criterion, images, labels)


def test_a_model_saved_whole_while_attached_loads() -> None:
    model = Net()
    images, labels = batch()
    criterion = attach(model, TemplateSimilarityLoss())
    criterion(model(images), labels)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for net in (model, loaded):
        net.eval()
    assert torch.equal(loaded(images)["out"], model(images)["out"])
    assert set(loaded.state_dict()) == set(Net().state_dict())
    attach(loaded, TemplateSimilarityLoss())(loaded(images), labels)


def test_running_templates_are_saved_with_the_criterion() -> None:
    model = Net()
    images, labels = batch()
    criterion = attach(model, TemplateSimilarityLoss(running_momentum=0.9))
    criterion(model(images), labels)
    state = criterion.state_dict()
    assert state
    assert all(name.startswith("losses.template_similarity.") for name in state)


def test_two_criteria_on_one_model_do_not_disturb_each_other() -> None:
    model = Net()
    images, labels = batch()
    first, second = attach(model, TemplateSimilarityLoss()), attach(model, TemplateSimilarityLoss(), head="classifier")
    output = model(images)
    torch.testing.assert_close(first(output, labels), second(output, labels))
    first.remove()
    output = model(images)
    assert torch.isfinite(second(output, labels))
    second.remove()
    assert not list(hooks(model))


def test_labels_may_be_coarser_than_the_output() -> None:
    model = Net()
    images, _ = batch()
    labels = torch.randint(0, CLASSES, (2, 8, 8))
    assert torch.isfinite(attach(model, TemplateSimilarityLoss())(model(images), labels))
