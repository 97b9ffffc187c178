"""Copies, files, and more than one criterion."""

import copy
import io
import pickle

import pytest
import torch
from attach_cases import Net, assert_same, batch, gradients, hooks, step

from perpixel import TemplateSimilarityLoss
from perpixel.attach.criterion import attach


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
