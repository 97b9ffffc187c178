"""The criterion itself: its value, its parts, its refusals."""

import math
import warnings
from typing import Any

import pytest
import torch
from attach_cases import CLASSES, Net, attached, batch, gradients, hooks, segformer
from torch import Tensor, nn
from torch.nn import functional as F
from weight_map_cases import LOSSES, StubLoss

from perpixel import TemplateSimilarityLoss, template_similarity_loss, weighted_cross_entropy
from perpixel.attach.criterion import attach
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
    model = Net(aux=True).double()
    images, labels = batch(dtype=torch.float64)
    weights = StubLoss().weight_map(model, images, model(images)["out"], labels)
    criterion = attach(
        model,
        TemplateSimilarityLoss(weight=0.3),
        StubLoss(weight=0.7),
        TemplateSimilarityLoss(weight=0.2, similarity="correlation"),
        StubLoss(weight=0.1),
    )
    loss = criterion(model(images), labels)
    loss.backward()
    attached = gradients(model)
    model.zero_grad()

    x = model.body(images)
    y = F.relu(model.neck(x))
    grid = model.classifier(y)
    out, aux = (F.interpolate(z, size=(16, 16), mode="bilinear") for z in (grid, model.aux_classifier(x)))
    on_grid = labels_on_grid(labels, (8, 8))
    parts = {
        "base": F.cross_entropy(out, labels, ignore_index=255),
        "aux": F.cross_entropy(aux, labels, ignore_index=255),
        "template_similarity": template_similarity_loss(y, grid, on_grid),
        "stub": weighted_cross_entropy(out, labels, weights),
        "template_similarity_2": template_similarity_loss(y, grid, on_grid, similarity="correlation"),
        "stub_2": weighted_cross_entropy(out, labels, weights),
    }
    by_hand = sum(weight * part for weight, part in zip((1.0, 0.5, 0.3, 0.7, 0.2, 0.1), parts.values(), strict=True))
    by_hand.backward()
    torch.testing.assert_close(loss, by_hand)
    torch.testing.assert_close(criterion.total, by_hand.detach())
    assert list(criterion.terms) == list(parts)
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


def test_without_terms_it_is_cross_entropy() -> None:
    model = Net()
    criterion = attach(model)
    images, labels = batch()
    assert len(list(hooks(model))) == 3  # for the images' size: before and after the model, and how the first is called
    loss = criterion(model(images), labels)
    torch.testing.assert_close(loss, nn.CrossEntropyLoss(ignore_index=255)(model(images)["out"], labels))
    assert criterion.terms.keys() == {"base"}
    assert torch.isfinite(criterion(Net()(images), labels))  # of the very size: nothing else is asked
    criterion.remove()
    assert not list(hooks(model))
    with pytest.raises(RuntimeError, match="removed"):
        criterion(model(images), labels)


def test_base_gets_logits_at_label_size() -> None:
    model = segformer().eval()
    images, labels = torch.randn(2, 3, 32, 48), torch.randint(0, CLASSES, (2, 32, 48))
    base = nn.CrossEntropyLoss(label_smoothing=0.1)
    criterion = attach(model, TemplateSimilarityLoss(weight=0.0), base=base)
    output = model(images)
    expected = base(F.interpolate(output.logits, size=(32, 48), mode="bilinear"), labels)
    torch.testing.assert_close(criterion(output, labels), expected)
    model = Net(aux=True)
    output = model(images)
    criterion = attach(model, base=base, aux=0)
    torch.testing.assert_close(criterion(output, labels), base(output["out"], labels))


class Quarter(Net):
    """Logits at half the size, as SegFormer's at a quarter; images may come as bytes."""

    def forward(self, pixel_values: Tensor) -> Any:  # type: ignore[override]
        return self.classifier(self._neck(self.body(pixel_values / 1.0)))


SIZES = [((16, 20), True), ((8, 10), True), ((4, 5), False), ((32, 40), False), ((20, 16), False), ((16, 10), False)]


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("terms", [(), (TemplateSimilarityLoss,), (LOSSES["debt"],)])
@pytest.mark.parametrize(("size", "allowed"), SIZES)
def test_labels_have_the_images_size_or_the_outputs(size: Any, allowed: bool, terms: Any, grad: bool) -> None:
    model, images, labels = Quarter(), torch.randn(2, 3, 16, 20), torch.randint(0, CLASSES, (2, *size))
    with torch.set_grad_enabled(grad), attach(model, *(term() for term in terms)) as criterion:
        for _ in range(2):
            output = model(pixel_values=images)
            if allowed:
                assert torch.isfinite(criterion(output, labels))
                continue
            message = rf"labels: expected the images' size \(16, 20\) or .* \(8, 10\).*got \({size[0]}, {size[1]}\)"
            with pytest.raises(ValueError, match=message):
                criterion(output, labels)
            if terms == (TemplateSimilarityLoss,):  # brought to their size by the caller
                output = F.interpolate(model(pixel_values=images), size=size, mode="bilinear")
                assert torch.isfinite(criterion(output, labels))


def test_images_may_be_bytes() -> None:
    model, images = Quarter(), torch.randint(0, 255, (2, 3, 16, 20), dtype=torch.uint8)
    labels = torch.randint(0, CLASSES, (2, 16, 20))
    for terms in ((), (TemplateSimilarityLoss(),)):
        assert torch.isfinite(attach(model, *terms)(model(pixel_values=images), labels))


def test_all_void_is_an_attached_zero() -> None:
    model, images, labels, criterion = attached(Net(aux=True), TemplateSimilarityLoss())
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


# --- what trains nothing warns, once


def test_a_frozen_body_warns_once() -> None:
    model = Net()
    images, labels = batch()
    for layer in (model.body, model.neck):
        layer.requires_grad_(False)
    criterion = attach(model, TemplateSimilarityLoss())
    with pytest.warns(UserWarning, match="train nothing.*'classifier'") as caught:
        criterion(model(images), labels)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        criterion(model(images), labels)


def test_validation_does_not_warn() -> None:
    model, images, labels, criterion = attached(Net(), TemplateSimilarityLoss())
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
    ("how", "error", "message"),
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
def test_bad_arguments_leave_the_model_as_it_was(how: dict[str, Any], error: type[Exception], message: str) -> None:
    model = Net()
    arguments = {"model": model, "terms": [Seen()], **how}
    with pytest.raises(error, match=message):
        attach(arguments.pop("model"), *arguments.pop("terms"), **arguments)
    assert not list(hooks(model))


def test_losses_that_are_no_scalar_are_named() -> None:
    model = Net()
    images, labels = batch()
    criterion = attach(model, Seen(), base=nn.CrossEntropyLoss(ignore_index=255, reduction="none"))
    with pytest.raises(TypeError, match=r"base loss.*\(2, 16, 16\)"):
        criterion(model(images), labels)


def test_without_terms_logits_may_be_changed() -> None:
    """A temperature, a prior: what was made of the output counts, at its size or, resized, at that of the images."""
    model = nn.Conv2d(3, CLASSES, 1, stride=2)
    images, labels = torch.randn(2, 3, 16, 16), torch.randint(0, CLASSES, (2, 16, 16))
    with attach(model) as criterion:
        for _ in range(2):
            logits = model(images) / 3 + 1
            expected = nn.functional.cross_entropy(nn.functional.interpolate(logits, (16, 16), mode="bilinear"), labels)
            torch.testing.assert_close(criterion(logits, labels), expected)
        with pytest.raises(ValueError, match=r"\(12, 16\)"):
            criterion(model(images) / 3, labels[:, :12])
