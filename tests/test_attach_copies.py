"""Copies, files, and more than one criterion."""

import copy
import io
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from attach_cases import Net, assert_same, attached, batch, gradients, hooks, step
from torch import nn
from weight_map_cases import EVERY_TERM, LOSSES, StubLoss

from perpixel import TemplateSimilarityLoss
from perpixel.attach.criterion import attach


@EVERY_TERM
def test_a_copy_of_the_model_is_clean(make: Any, head: str | None) -> None:
    model, images, labels, criterion = attached(Net(), make(), head=head)
    output = model(images)  # tensors with a graph are held while the copy is made
    teacher = copy.deepcopy(model)
    assert not list(hooks(teacher))
    with torch.no_grad():
        teacher(torch.randn_like(images))
    loss = criterion(output, labels)
    if make is TemplateSimilarityLoss:
        torch.testing.assert_close(loss, criterion(model(images), labels))
    own = attach(teacher, TemplateSimilarityLoss())
    own(teacher(images), labels)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    assert not list(hooks(averaged))


class Trainer:
    """Holds both, criterion first, and the model refers back to the criterion."""

    def __init__(self, term: nn.Module) -> None:
        model = Net()
        self.criterion = attach(model, term)
        model.criterion = self.criterion
        self.model = model


@pytest.mark.parametrize("make", [partial(TemplateSimilarityLoss, template="mean"), partial(StubLoss, every=2)])
@pytest.mark.parametrize("called", [False, True])
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_of_both_is_an_independent_pair(how: str, called: bool, make: Any) -> None:
    one = Trainer(make())
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
    assert how == "pickle" or not list(hooks(other.model))
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
