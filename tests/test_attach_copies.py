"""Copies, files, exports, and more than one criterion."""

import copy
import io
import pickle
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from attach_cases import CLASSES, Net, assert_same, attached, batch, gradients, hooks, step
from torch import nn
from weight_map_cases import EVERY_TERM, LOSSES, StubLoss

from perpixel import TemplateSimilarityLoss
from perpixel.attach.criterion import attach
from perpixel.attach.hooks import Hook


def assert_copies_keep_nothing(model: nn.Module) -> None:
    kept = [hook.kept for hook in hooks(model) if isinstance(hook, Hook)]
    assert kept
    assert all(one.last.call is one.last.output is None and not one.last.records and not one.tied for one in kept)


@EVERY_TERM
def test_hooks_in_a_copy_of_the_model_do_nothing(make: Any, head: str | None) -> None:
    model, images, labels, criterion = attached(Net(), make(), head=head)
    output = model(images)  # tensors with a graph are held while the copy is made
    teacher = copy.deepcopy(model)
    with torch.no_grad():
        teacher(torch.randn_like(images))
    assert_copies_keep_nothing(teacher)
    loss = criterion(output, labels)
    if make is TemplateSimilarityLoss:
        torch.testing.assert_close(loss, criterion(model(images), labels))
    own = attach(teacher, TemplateSimilarityLoss())
    own(teacher(images), labels)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    averaged(images)
    assert_copies_keep_nothing(averaged)


def test_a_copied_layer_brings_nothing_along() -> None:
    model, images, labels, criterion = attached(Net(), TemplateSimilarityLoss(), head="classifier")
    expected = criterion(model(images), labels)
    output = model(images)
    copied = copy.deepcopy(model.classifier)
    copied(torch.randn(2, 8, 4, 4))
    assert_copies_keep_nothing(copied)
    assert len(pickle.dumps(copied)) < 10_000
    torch.testing.assert_close(criterion(output, labels), expected)


class Trainer:
    """Holds both; the model refers back to the criterion."""

    def __init__(self, term: nn.Module, first: str = "criterion") -> None:
        model = Net()
        if first == "model":
            self.model = model
        self.criterion = attach(model, term)
        model.criterion = self.criterion
        self.model = model


class Owns(Net):
    """A network that attaches a criterion to itself, as a LightningModule may."""

    def __init__(self, term: nn.Module) -> None:
        super().__init__()
        self.criterion = attach(self, term)

    @property
    def model(self) -> nn.Module:
        return self


OWNERS: dict[str, Any] = {
    "criterion first": Trainer,
    "model first": partial(Trainer, first="model"),
    "the model itself": Owns,
}


@pytest.mark.parametrize("owner", OWNERS)
@pytest.mark.parametrize("make", [partial(TemplateSimilarityLoss, template="mean"), partial(StubLoss, every=2)])
@pytest.mark.parametrize("called", [False, True])
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_of_both_is_an_independent_pair(how: str, called: bool, make: Any, owner: str) -> None:
    one = OWNERS[owner](make())
    images, labels = batch()
    if called:
        one.criterion(one.model(images), labels)
    one.model(images)
    other = copy.deepcopy(one) if how == "deepcopy" else pickle.loads(pickle.dumps(one))
    assert other.model.criterion is other.criterion
    step(other.model, other.criterion, images, labels)
    assert not gradients(one.model)
    if make.func is StubLoss:
        assert other.criterion.losses["stub"].steps == one.criterion.losses["stub"].steps + 1
    other.model(images)
    step(one.model, one.criterion, images, labels)
    assert_same(gradients(other.model), gradients(one.model))
    other.criterion.remove()
    assert not list(hooks(other.model))
    step(one.model, one.criterion, images, labels)


def test_a_model_saved_whole_while_attached_loads() -> None:
    model, images, labels, criterion = attached(Net(), TemplateSimilarityLoss())
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


def test_a_loaded_model_takes_new_hooks(tmp_path: Path) -> None:
    model, images, labels, criterion = attached(Net(), StubLoss())
    criterion(model(images), labels)
    torch.save(model, tmp_path / "model")
    torch.utils.hooks.RemovableHandle.next_id = 0  # as in a new process
    loaded = torch.load(tmp_path / "model", weights_only=False)
    seen: list[int] = []
    for _ in range(3):
        loaded.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs)))
    loaded(images)
    assert seen == [1, 1, 1]
    assert torch.isfinite(attach(loaded, StubLoss())(loaded(images), labels))


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (partial(TemplateSimilarityLoss, running_momentum=0.9), {"running.templates", "running.seen"}),
        (partial(StubLoss, every=2), {"steps", "kept_map", "kept_key", "label_scores"}),
    ],
)
def test_the_state_of_a_term_is_saved_with_the_criterion(make: Any, names: set[str]) -> None:
    model, images, labels, criterion = attached(Net(), make())
    criterion(model(images), labels)
    state = criterion.state_dict()
    (name,) = criterion.losses
    assert set(state) == {f"losses.{name}.{own}" for own in names}
    other = attach(Net(), make())
    other.load_state_dict(state)
    assert all(torch.equal(value, state[key]) for key, value in other.state_dict().items())
    assert not list(criterion.parameters())


@pytest.mark.parametrize("make", LOSSES.values(), ids=LOSSES)
def test_two_criteria_with_weight_maps_agree(make: Any) -> None:
    model = Net()
    images, labels = batch()
    first, second = attach(model, make()), attach(model, TemplateSimilarityLoss(), make())
    output = model(images)
    one, two = first(output, labels), second(output, labels)
    name = next(name for name in first.terms if name != "base")
    torch.testing.assert_close(first.terms[name], second.terms[name])
    assert one != two


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


# --- scripts, traces, exports


def test_a_model_is_traced_and_exported_while_attached() -> None:
    model, images, labels, criterion = attached(Net().eval(), TemplateSimilarityLoss(), head="classifier")
    expected = criterion(model(images), labels)
    output = model(images)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(model, images, strict=False, check_trace=False)
    assert torch.equal(criterion(output, labels), expected)  # a trace is no forward pass of its own
    assert torch.equal(torch.fx.symbolic_trace(model)(images)["out"], output["out"])
    for strict in (True, False):
        exported = torch.export.export(model, (images,), strict=strict).module()
        torch.testing.assert_close(exported(images)["out"], output["out"])
    assert torch.equal(traced(images)["out"], output["out"])
    assert torch.equal(criterion(model(images), labels), expected)


@pytest.mark.parametrize("copied", [True, False])
def test_a_script_names_the_remedy(copied: bool) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, CLASSES, 1))
    criterion = attach(model, TemplateSimilarityLoss())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(AttributeError, match=r"criterion\.remove\(\) first"):
            torch.jit.script(copy.deepcopy(model) if copied else model)
        criterion.remove()
        images, _ = batch()
        torch.testing.assert_close(torch.jit.script(model)(images), model(images))
