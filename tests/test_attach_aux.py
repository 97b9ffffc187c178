"""Further maps of a model's output, of auxiliary heads or deep supervision: what they add to the loss."""

import copy
import math
import warnings
from collections import namedtuple
from typing import Any

import pytest
import torch
from attach_cases import CLASSES, Net, batch, gradients, hooks
from torch import Tensor, nn
from torch.nn import functional as F

from perpixel import TemplateSimilarityLoss
from perpixel.attach.criterion import attach

Maps = namedtuple("Maps", ["main", "deep"])


class Deep(nn.Module):
    """Deep supervision: a map of its own head at full, half and quarter size, in any container."""

    def __init__(self, form: Any = tuple) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Conv2d(3, CLASSES, 1, stride=stride) for stride in (1, 2, 4))
        self.form = form

    def forward(self, images: Tensor) -> Any:
        return self.form([head(images) for head in self.heads])


def mean_square(logits: Tensor, labels: Tensor) -> Tensor:
    """A base that asks for the labels' size."""
    return (logits - F.one_hot(labels.clamp(max=CLASSES - 1), CLASSES).movedim(-1, 1)).square().mean()


def trained(model: Deep) -> list[bool]:
    return [head.weight.grad is not None and bool(head.weight.grad.any()) for head in model.heads]


FORMS = [
    (tuple, 0.4, {"aux_1": 0.4, "aux_2": 0.4}),
    (list, {2: 1}, {"aux_2": 1.0}),
    (list, {1: 0.4, 2: 0.2}, {"aux_1": 0.4, "aux_2": 0.2}),
    (lambda m: {"out": m[0], "aux": m[1], "deep": m[2]}, 0.3, {"aux": 0.3, "aux_deep": 0.3}),
    (lambda m: {"out": m[0], "aux": m[1], "deep": m[2]}, {"deep": 0.3}, {"aux_deep": 0.3}),
    (lambda m: {"out": m[0], "aux1": m[1], "deep": [m[2]]}, {"deep.0": 0.3}, {"aux_deep.0": 0.3}),
    (lambda m: (m[0], [m[1], m[2]]), 0.4, {"aux_1.0": 0.4, "aux_1.1": 0.4}),
    (lambda m: Maps(m[0], m[2]), {"deep": 0.4}, {"aux_deep": 0.4}),
    (tuple, 0, {}),
    (tuple, {1: 0.0}, {}),
    (lambda m: {"out": m[0], "aux": m[1]}, 0.0, {}),
    (lambda m: {"out": m[0], "aux": m[1]}, None, {"aux": 0.5}),
    (lambda m: {"out": m[0], "logits": m[0], "hidden_states": (m[1],)}, 0.4, {}),
    (lambda m: (m[0], m[1][:1], m[2][:, 1:], m[2].detach().long(), m[0].mean(), "text"), 0.4, {}),
]
PLACE = {"aux": 1, "aux_1": 1, "aux_2": 2, "aux_deep": 2, "aux_deep.0": 2, "aux_1.0": 1, "aux_1.1": 2}


@pytest.mark.parametrize("base", [None, mean_square])
@pytest.mark.parametrize(("form", "aux", "expected"), FORMS)
def test_the_sum_and_its_gradients_are_those_by_hand(form: Any, aux: Any, expected: Any, base: Any) -> None:
    model, (images, labels) = Deep(form), batch()
    criterion = attach(model, base=base, aux=aux)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss = criterion(model(images), labels)
    loss.backward()
    found = gradients(model)
    model.zero_grad()

    def by_hand(place: int) -> Tensor:
        logits = F.interpolate(model.heads[place](images), size=(16, 16), mode="bilinear")
        return mean_square(logits, labels) if base else F.cross_entropy(logits, labels, ignore_index=255)

    parts = {name: by_hand(PLACE[name]) for name in expected}
    total = by_hand(0) + sum(weight * parts[name] for name, weight in expected.items())
    total.backward()
    torch.testing.assert_close(loss, total)
    torch.testing.assert_close(criterion.total, total.detach())
    assert list(criterion.terms) == ["base", *expected]
    for name, part in parts.items():
        torch.testing.assert_close(criterion.terms[name], part.detach())
        assert not criterion.terms[name].requires_grad
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(found[name], gradient)


def test_an_auxiliary_head_is_trained_with_a_base_of_ones_own() -> None:
    model, (images, labels) = Net(aux=True), batch()
    criterion = attach(model, TemplateSimilarityLoss(weight=0.1), base=mean_square)
    loss = criterion(model(images), labels)
    loss.backward()
    assert model.aux_classifier.weight.grad.any()
    parts = criterion.terms
    assert list(parts) == ["base", "aux", "template_similarity"]
    by_hand = parts["base"] + 0.5 * parts["aux"] + 0.1 * parts["template_similarity"]
    torch.testing.assert_close(loss.detach(), by_hand)


@pytest.mark.parametrize(
    ("form", "named"),
    [(tuple, r"\[1, 2\]"), (list, r"\[1, 2\]"), (lambda m: {"out": m[0], "aux": m[1], "deep": m[2]}, r"\['deep'\]")],
)
def test_maps_that_add_nothing_are_named_once(form: Any, named: str) -> None:
    model, (images, labels) = Deep(form), batch()
    criterion = attach(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with torch.no_grad():
            criterion(model(images), labels)
    with pytest.warns(UserWarning, match=named + r".*aux=0\.4.*aux=0 ") as caught:
        criterion(model(images), labels).backward()
    assert caught[0].filename == __file__
    assert trained(model) == [True, isinstance(model(images), dict), False]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        criterion(model(images), labels)


def test_a_name_that_is_not_there_is_refused_in_training() -> None:
    model, (images, labels) = Deep(), batch()
    for aux, there in (({"aux": 0.4}, "1, 2"), ({0: 0.4}, "1, 2"), ({1: 0.4, 5: 0.0}, "1, 2")):
        criterion = attach(model, aux=aux)
        with pytest.raises(ValueError, match=rf"aux: .*{there}"):
            criterion(model(images), labels)
    model.form = lambda maps: maps[0]  # as deep supervision often does in evaluation
    criterion = attach(model, aux={1: 0.4})
    with pytest.raises(ValueError, match=r"aux: .*none.*whole output"):
        criterion(model(images), labels)
    model.eval()
    assert torch.isfinite(criterion(model(images), labels))
    assert list(criterion.terms) == ["base"]


@pytest.mark.parametrize(
    ("aux", "error", "message"),
    [
        (-0.4, ValueError, "aux"),
        (math.nan, ValueError, "aux"),
        (True, TypeError, "aux"),
        ("aux", TypeError, "aux"),
        ([0.4, 0.2], TypeError, "aux"),
        ({"aux": -1}, ValueError, r"aux\['aux'\]"),
        ({1: "0.4"}, TypeError, r"aux\[1\]"),
        ({1.5: 0.4}, TypeError, "aux"),
        ({True: 0.4}, TypeError, "aux"),
    ],
)
def test_bad_weights_leave_the_model_as_it_was(aux: Any, error: type[Exception], message: str) -> None:
    model = Net(aux=True)
    with pytest.raises(error, match=message):
        attach(model, aux=aux)
    assert not list(hooks(model))


def test_a_term_of_the_same_name_keeps_its_own() -> None:
    class Energy:
        weight, name = 2.0, "aux"

        def __call__(self, features: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
            return logits.square().mean()

    model, (images, labels) = Net(aux=True), batch()
    criterion = attach(model, Energy())
    loss = criterion(model(images), labels)
    parts = criterion.terms
    assert list(parts) == ["base", "aux_aux", "aux"]
    torch.testing.assert_close(loss.detach(), parts["base"] + 0.5 * parts["aux_aux"] + 2 * parts["aux"])


def test_copies_and_state_know_the_weights_and_hold_nothing_of_the_model() -> None:
    model, (images, labels) = Deep(), batch()
    pair = nn.ModuleDict({"model": model, "criterion": attach(model, aux={2: 0.4})})
    twin = copy.deepcopy(pair)
    losses = [each["criterion"](each["model"](images), labels) for each in (pair, twin)]
    torch.testing.assert_close(*losses)
    assert list(twin["criterion"].terms) == ["base", "aux_2"]
    assert not twin["criterion"].state_dict()
    losses[1].backward()
    assert trained(twin["model"]) == [True, False, True]
    assert trained(model) == [False, False, False]
