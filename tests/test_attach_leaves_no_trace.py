"""Attaching, training with, failing in and removing a criterion leaves the model as it would be without it."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from attach_cases import Net, assert_holds_nothing, batch
from model_state import assert_same, snapshot
from torch import Tensor, nn
from torch.nn import functional as F
from weight_map_cases import EVERY_TERM

from perpixel import TemplateSimilarityLoss
from perpixel.attach.criterion import Feedback, attach

Use = Callable[[nn.Module, Feedback], object]


def fine(model: nn.Module, criterion: Feedback) -> None:
    images, labels = batch()
    criterion(model(images), labels)


def unfinished(model: nn.Module, criterion: Feedback) -> None:
    model(batch()[0])


def error_inside(model: nn.Module, criterion: Feedback) -> None:
    images, labels = batch()
    with pytest.raises(ValueError, match="at position"):
        criterion(model(images), labels + 100)


def error_in_forward(model: nn.Module, criterion: Feedback) -> None:
    with pytest.raises(RuntimeError):
        model(torch.zeros(1, 2, 8, 8))


def error_in_a_part(model: nn.Module, criterion: Feedback) -> None:
    images, labels = batch()
    criterion.base = lambda logits, labels: 1 / 0
    with pytest.raises(ZeroDivisionError):
        criterion(model(images), labels)
    assert_holds_nothing(criterion)
    criterion.remove()


@EVERY_TERM
@pytest.mark.parametrize("forgotten", [False, True])
@pytest.mark.parametrize("use", [fine, unfinished, error_inside, error_in_forward, error_in_a_part])
def test_as_it_was(use: Use, forgotten: bool, make: Any, head: str | None) -> None:
    model = Net(aux=True).eval()
    model.body[1].train()
    model.neck.weight.requires_grad_(False)
    model(batch()[0])["out"].sum().backward()
    model.classifier.register_forward_hook(lambda *_: None)
    model.body[1].eval()
    before = snapshot(model)
    criterion = attach(model, make(), TemplateSimilarityLoss(), head=head)
    if forgotten:
        use(model, criterion)
        del criterion
    else:
        with criterion:
            use(model, criterion)
    assert_same(snapshot(model), before)


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


class Drops(Net):
    def _neck(self, x: Tensor) -> Tensor:
        return F.dropout(super()._neck(x), 0.3, self.training)


@EVERY_TERM
def test_training_with_a_term_of_no_weight_is_bitwise_plain_training(make: Any, head: str | None) -> None:
    plain = Drops(aux=True)
    fed = copy.deepcopy(plain)
    batches = [batch() for _ in range(3)]
    trained, outputs = [], []
    for model, terms in ((plain, ()), (fed, (make(weight=0.0),))):
        torch.manual_seed(5)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        with attach(model, *terms, head=head) as criterion:
            for images, labels in batches:
                optimizer.zero_grad()
                output = model(images)
                outputs.append(dict(output))
                criterion(output, labels).backward()
                optimizer.step()
        trained.append(model.state_dict())
    assert_same(trained[1], trained[0])
    for now, then in zip(outputs[3:], outputs[:3], strict=True):
        assert_same(now, then)
