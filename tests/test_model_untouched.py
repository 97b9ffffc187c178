"""Attaching, training with, failing in and removing a criterion leaves the model as it would be without it."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from attach_cases import Net, batch, hooks
from model_state import assert_same, snapshot
from torch import Tensor, nn

from perpixel import TemplateSimilarityLoss
from perpixel.attach.criterion import attach


def fine(model: nn.Module, **how: Any) -> None:
    images, labels = batch()
    with attach(model, TemplateSimilarityLoss(), **how) as criterion:
        criterion(model(images), labels)


def unfinished(model: nn.Module, **how: Any) -> None:
    with attach(model, TemplateSimilarityLoss(), **how):
        model(batch()[0])


def error_inside(model: nn.Module, **how: Any) -> None:
    images, labels = batch()
    with pytest.raises(ValueError, match="at position"), attach(model, TemplateSimilarityLoss(), **how) as criterion:
        criterion(model(images), labels + 100)


def error_in_forward(model: nn.Module, **how: Any) -> None:
    with pytest.raises(RuntimeError), attach(model, TemplateSimilarityLoss(), **how):
        model(torch.zeros(1, 2, 8, 8))


def error_in_term(model: nn.Module, **how: Any) -> None:
    class Broken(nn.Module):
        weight = 1.0

        def forward(self, features: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
            raise ZeroDivisionError

    images, labels = batch()
    criterion = attach(model, Broken(), **how)
    with pytest.raises(ZeroDivisionError):
        criterion(model(images), labels)
    assert not criterion._recorder.records
    criterion.remove()
    criterion.remove()


def forgotten(model: nn.Module, **how: Any) -> None:
    images, labels = batch()
    criterion = attach(model, TemplateSimilarityLoss(), **how)
    criterion(model(images), labels)
    del criterion


@pytest.mark.parametrize("head", [None, "classifier"])
@pytest.mark.parametrize("use", [fine, unfinished, error_inside, error_in_forward, error_in_term, forgotten])
def test_as_it_was(use: Callable[..., None], head: str | None) -> None:
    model = Net(aux=True).eval()
    model.body[1].train()
    model.neck.weight.requires_grad_(False)
    model(batch()[0])["out"].sum().backward()
    own = model.classifier.register_forward_hook(lambda *_: None)
    own_before = list(hooks(model))
    model.body[1].eval()
    before = snapshot(model)
    use(model, head=head)
    assert_same(snapshot(model), before)
    assert list(hooks(model)) == own_before
    own.remove()


def test_hooks_that_cannot_all_be_set_are_all_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Net()
    before = snapshot(model)

    def refuse(*_: object) -> None:
        raise OSError("no")

    monkeypatch.setattr(model.classifier, "register_forward_hook", refuse)
    with pytest.raises(OSError, match="no"):
        attach(model, TemplateSimilarityLoss())
    monkeypatch.undo()
    assert_same(snapshot(model), before)


def test_training_with_a_term_of_no_weight_is_bitwise_plain_training() -> None:
    plain = Net(aux=True)
    fed = copy.deepcopy(plain)
    batches = [batch() for _ in range(3)]
    trained = []
    for model, terms in ((plain, ()), (fed, (TemplateSimilarityLoss(weight=0.0),))):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        with attach(model, *terms) as criterion:
            for images, labels in batches:
                optimizer.zero_grad()
                criterion(model(images), labels).backward()
                optimizer.step()
        trained.append(model.state_dict())
    assert_same(trained[1], trained[0])


def test_outputs_and_batch_statistics_are_bitwise_the_same_while_attached() -> None:
    plain = Net(aux=True)
    fed = copy.deepcopy(plain)
    images, labels = batch()
    criterion = attach(fed, TemplateSimilarityLoss())
    for _ in range(2):
        expected, output = plain(images), fed(images)
        assert_same(dict(output), dict(expected))
        criterion(output, labels)
    assert_same(fed.state_dict(), plain.state_dict())
