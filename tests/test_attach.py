"""The criterion itself: its value, its parts, its refusals, what it holds and for how long."""

import gc
import math
import warnings
import weakref
from typing import Any

import pytest
import torch
from attach_cases import CLASSES, Net, batch, gradients, hooks
from torch import Tensor, nn
from torch.nn import functional as F

from perpixel import TemplateSimilarityLoss, template_similarity_loss
from perpixel.attach import attach
from perpixel.reduction import labels_on_grid


class Seen(nn.Module):
    """A term that keeps what it was given."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, features: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        self.calls += 1
        self.shapes = tuple(features.shape), tuple(logits.shape), tuple(labels.shape)
        return self.scale * features.square().mean()


def test_value_and_gradients_are_those_written_out_by_hand() -> None:
    torch.manual_seed(0)
    model = Net(aux=True).double()
    images, labels = batch(dtype=torch.float64)
    terms = TemplateSimilarityLoss(weight=0.3), TemplateSimilarityLoss(weight=0.2, similarity="correlation")
    criterion = attach(model, *terms)
    loss = criterion(model(images), labels)
    loss.backward()
    attached = gradients(model)
    model.zero_grad()

    x = model.body(images)
    y = F.relu(model.neck(x))
    grid = model.classifier(y)
    cross_entropies = [
        F.cross_entropy(F.interpolate(z, size=(16, 16), mode="bilinear"), labels, ignore_index=255)
        for z in (grid, model.aux_classifier(x))
    ]
    on_grid = labels_on_grid(labels, (8, 8))
    parts = {
        "base": cross_entropies[0] + 0.5 * cross_entropies[1],
        "template_similarity": template_similarity_loss(y, grid, on_grid),
        "template_similarity_2": template_similarity_loss(y, grid, on_grid, similarity="correlation"),
    }
    by_hand = parts["base"] + 0.3 * parts["template_similarity"] + 0.2 * parts["template_similarity_2"]
    by_hand.backward()
    torch.testing.assert_close(loss, by_hand)
    torch.testing.assert_close(criterion.total, by_hand.detach())
    assert criterion.terms.keys() == parts.keys()
    for name, part in parts.items():
        torch.testing.assert_close(criterion.terms[name], part.detach())
        assert not criterion.terms[name].requires_grad
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(attached[name], gradient)


def test_terms_get_features_and_logits_on_the_grid_and_labels_whole() -> None:
    model, term = Net(), Seen()
    images, labels = batch(3)
    attach(model, term)(model(images), labels.to(torch.uint8))
    assert term.shapes == ((3, 8, 8, 8), (3, CLASSES, 8, 8), (3, 16, 16))


def test_without_terms_it_is_cross_entropy_and_touches_nothing() -> None:
    model = Net()
    criterion = attach(model)
    images, labels = batch()
    assert not list(hooks(model))
    loss = criterion(model(images), labels)
    torch.testing.assert_close(loss, nn.CrossEntropyLoss(ignore_index=255)(model(images)["out"], labels))
    assert criterion.terms.keys() == {"base"}
    criterion.remove()
    with pytest.raises(RuntimeError, match="removed"):
        criterion(model(images), labels)


def test_base_gets_logits_at_label_size_and_its_own_say_over_aux() -> None:
    model = Net(aux=True)
    images, _ = batch()
    labels = torch.randint(0, CLASSES, (2, 24, 20))
    base = nn.CrossEntropyLoss(label_smoothing=0.1)
    criterion = attach(model, TemplateSimilarityLoss(weight=0.0), base=base)
    output = model(images)
    expected = base(F.interpolate(output["out"], size=(24, 20), mode="bilinear"), labels)
    torch.testing.assert_close(criterion(output, labels), expected)


def test_all_void_is_an_attached_zero() -> None:
    model = Net(aux=True)
    images, labels = batch()
    criterion = attach(model, TemplateSimilarityLoss())
    loss = criterion(model(images), torch.full_like(labels, 255))
    loss.backward()
    assert loss == 0
    assert all(torch.isfinite(g).all() for g in gradients(model).values())
    assert model.body[0].weight.grad is not None


def test_void_of_the_criterion_is_void_for_every_term() -> None:
    model = Net()
    images, labels = batch()
    first = attach(model, TemplateSimilarityLoss())
    expected = first(model(images), labels)
    first.remove()
    for ignore_index in (-1, 77):
        moved = torch.where(labels == 255, ignore_index, labels)
        criterion = attach(model, TemplateSimilarityLoss(), ignore_index=ignore_index)
        torch.testing.assert_close(criterion(model(images), moved), expected)
        criterion.remove()


def test_own_state_is_that_of_the_terms_and_never_the_models() -> None:
    model, term = Net(), Seen()
    criterion = attach(model, term, base=nn.CrossEntropyLoss(weight=torch.ones(CLASSES), ignore_index=255))
    images, labels = batch()
    criterion(model(images), labels)
    assert set(criterion.state_dict()) == {"losses.Seen.scale", "losses.Seen.calls", "base.weight"}
    assert [id(p) for p in criterion.parameters()] == [id(term.scale)]
    assert not any(m is model for m in criterion.modules())
    other = attach(Net(), Seen(), base=nn.CrossEntropyLoss(weight=torch.zeros(CLASSES)))
    other.load_state_dict(criterion.state_dict())
    assert other.losses["Seen"].calls == 1
    assert "head='classifier'" in repr(criterion)


def test_a_term_may_be_a_plain_callable_and_its_weight_may_change() -> None:
    class Energy:
        weight = 2.0

        def __call__(self, features: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
            return logits.square().mean()

    model, term = Net(), Energy()
    criterion = attach(model, term, TemplateSimilarityLoss(weight=0.0))
    images, labels = batch()
    loss = criterion(model(images), labels)
    torch.testing.assert_close(loss.detach(), criterion.terms["base"] + 2 * criterion.terms["Energy"])
    term.weight = 3.0
    loss = criterion(model(images), labels)
    torch.testing.assert_close(loss.detach(), criterion.terms["base"] + 3 * criterion.terms["Energy"])


# --- never stale, never leaked


def test_a_call_needs_a_forward_pass_of_its_own() -> None:
    model = Net()
    images, labels = batch()
    output = model(images)
    criterion = attach(model, TemplateSimilarityLoss())
    with pytest.raises(RuntimeError, match="since attach, got none"):
        criterion(output, labels)
    output = model(images)
    criterion(output, labels)
    with pytest.raises(RuntimeError, match="since the last call of the criterion, got none"):
        criterion(output, labels)


@pytest.mark.parametrize("grad", [True, False])
def test_an_output_of_an_earlier_pass_or_another_model_is_refused(grad: bool) -> None:
    model, other = Net(), Net()
    images, labels = batch()
    criterion = attach(model, TemplateSimilarityLoss())
    with torch.set_grad_enabled(grad):
        criterion(model(images), labels)
        old = model(images)
        model(torch.randn_like(images))
        with pytest.raises(RuntimeError, match="last forward pass"):
            criterion(old, labels)
        model(images)
        with pytest.raises(RuntimeError, match="last forward pass"):
            criterion(other(images), labels)
        model(images)
        with pytest.raises(RuntimeError, match="last forward pass"):
            criterion(torch.randn(2, CLASSES, 16, 16), labels)
        assert torch.isfinite(criterion(model(images), labels))


@pytest.mark.parametrize("grad", [True, False])
def test_outputs_changed_on_the_way_are_accepted(grad: bool) -> None:
    model = Net()
    images, labels = batch()
    criterion = attach(model, TemplateSimilarityLoss())
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
    with pytest.raises(RuntimeError, match="one feature map per image, got 2 feature maps for 1"):
        criterion(model(images)["out"][:1], labels[:1])


def _references(features: list[Any]) -> Any:
    def keep(module: nn.Module, given: tuple[Tensor], gave: Tensor) -> None:
        features.extend(weakref.ref(t) for t in (given[0], gave))

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
    model = Net()
    images, labels = batch()
    criterion = attach(model, TemplateSimilarityLoss(), head="classifier")
    old = model(images)
    with pytest.raises(RuntimeError, match="channels"):
        model(torch.randn(2, 5, 16, 16))
    with pytest.raises(RuntimeError, match="criterion: expected a forward pass"):
        criterion(old, labels)


# --- what trains nothing is told, once


def test_a_frozen_body_is_told_once() -> None:
    model = Net()
    images, labels = batch()
    for layer in (model.body, model.neck):
        layer.requires_grad_(False)
    criterion = attach(model, TemplateSimilarityLoss())
    with pytest.warns(UserWarning, match="train nothing.*'classifier'"):
        criterion(model(images), labels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        criterion(model(images), labels)


def test_validation_does_not_warn() -> None:
    model = Net()
    images, labels = batch()
    criterion = attach(model, TemplateSimilarityLoss())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with torch.no_grad():
            output = model(images)
            criterion(output, labels)
            output = model(images)
        criterion(output, labels)
        with torch.inference_mode():
            output = model(images)
        criterion(output, labels)
        model.requires_grad_(False)
        criterion(model(images), labels)


# --- bad input to attach


@pytest.mark.parametrize(
    ("how", "error", "told"),
    [
        ({"model": "net"}, TypeError, "model"),
        ({"terms": [TemplateSimilarityLoss]}, TypeError, r"terms\[0\]"),
        ({"terms": [template_similarity_loss]}, TypeError, r"terms\[0\].*weight"),
        ({"terms": [nn.CrossEntropyLoss()]}, (TypeError, ValueError), r"terms\[0\]"),
        ({"terms": [Seen(), 0.5]}, TypeError, r"terms\[1\]"),
        ({"terms": [Seen(weight=-0.1)]}, ValueError, r"terms\[0\]\.weight"),
        ({"terms": [Seen(weight=math.nan)]}, ValueError, r"terms\[0\]\.weight"),
        ({"terms": [Seen(weight=math.inf)]}, ValueError, r"terms\[0\]\.weight"),
        ({"terms": [Seen(weight="0.1")]}, TypeError, r"terms\[0\]\.weight"),
        ({"base": nn.CrossEntropyLoss}, TypeError, "base"),
        ({"base": 1.0}, TypeError, "base"),
        ({"ignore_index": 1.5}, TypeError, "ignore_index"),
        ({"head": "clasifier"}, ValueError, "head.*'classifier'"),
        ({"head": ""}, ValueError, "head"),
        ({"head": 3}, TypeError, "head"),
        ({"head": nn.Conv2d(8, 4, 1)}, TypeError, "head"),
    ],
)
def test_bad_arguments_leave_the_model_as_it_was(how: dict[str, Any], error: type[Exception], told: str) -> None:
    model = Net()
    arguments = {"model": model, "terms": [Seen()], **how}
    with pytest.raises(error, match=told):
        attach(arguments.pop("model"), *arguments.pop("terms"), **arguments)
    assert not list(hooks(model))


def test_losses_that_are_no_scalar_are_named() -> None:
    model = Net()
    images, labels = batch()
    criterion = attach(model, Seen(), base=nn.CrossEntropyLoss(ignore_index=255, reduction="none"))
    with pytest.raises(TypeError, match=r"base loss.*\(2, 16, 16\)"):
        criterion(model(images), labels)
