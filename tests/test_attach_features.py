"""Heads that no name can express: linear layers on tokens, a model's own declaration, a function of the output."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from attach_cases import CLASSES, Net, assert_one_line_works, attached, batch, gradients, hooks
from torch import Tensor, nn
from torch.nn import functional as F

from perpixel import TemplateSimilarityLoss, template_similarity_loss
from perpixel.attach.criterion import attach
from perpixel.models import small_fcn
from perpixel.reduction import labels_on_grid

EITHER_WAY = pytest.mark.parametrize("grad", [True, False])


class Patches(nn.Module):
    """A vision transformer's shape: patches as tokens, a linear classifier on each, brought to maps and to size."""

    def __init__(self, flat: bool, end: Any = None, head: nn.Module | None = None, channels: int = 6) -> None:
        super().__init__()
        self.embed, self.norm = nn.Conv2d(3, channels, 4, 4), nn.LayerNorm(channels)
        self.block = nn.Linear(channels, channels)
        self.head = head or nn.Linear(channels, CLASSES)
        self.flat, self.end = flat, end or (lambda logits, size: F.interpolate(logits, size, mode="bilinear"))

    def features(self, images: Tensor) -> Tensor:
        tokens = self.embed(images).permute(0, 2, 3, 1)
        return self.norm(tokens + self.block(tokens).relu())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        tokens = self.features(images)
        logits = self.head(tokens.flatten(1, 2)).unflatten(1, tokens.shape[1:3]) if self.flat else self.head(tokens)
        return {"out": self.end(logits.permute(0, 3, 1, 2), images.shape[-2:])}


FLAT = pytest.mark.parametrize("flat", [True, False])


@EITHER_WAY
@FLAT
@pytest.mark.parametrize("head", [None, "head"])
@pytest.mark.parametrize(("channels", "size"), [(6, (16, 24)), (4, (16, 16)), (6, (48, 16))])
def test_a_linear_layer_on_tokens(
    channels: int, size: tuple[int, int], head: str | None, flat: bool, grad: bool
) -> None:
    model = Patches(flat, channels=channels).double()
    images, labels = torch.randn(2, 3, *size).double(), torch.randint(0, CLASSES, (2, *size))
    criterion = attach(model, TemplateSimilarityLoss(weight=0.5), head=head)
    with torch.set_grad_enabled(grad):
        loss = criterion(model(images), labels)
    assert criterion.head == "head"
    tokens = model.features(images)
    on_grid = labels_on_grid(labels, tokens.shape[1:3])
    maps = (each.permute(0, 3, 1, 2) for each in (tokens, model.head(tokens)))
    by_hand = template_similarity_loss(*maps, on_grid)
    torch.testing.assert_close(criterion.terms["template_similarity"], by_hand.detach())
    if grad:
        loss.backward()
        found = gradients(model)
        model.zero_grad()
        (F.cross_entropy(model(images)["out"], labels) + 0.5 * by_hand).backward()
        for name, gradient in gradients(model).items():
            torch.testing.assert_close(found[name], gradient)


@FLAT
def test_tokens_and_all_the_rest_of_it(flat: bool) -> None:
    assert_one_line_works(Patches(flat), *batch(2, 32), below="embed.weight")
    block = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, CLASSES))
    assert_one_line_works(Patches(flat, head=block), *batch(2, 32), below="embed.weight", head="head")


@EITHER_WAY
@FLAT
def test_what_comes_after_tokens_is_measured(flat: bool, grad: bool) -> None:
    """Probabilities are accepted; a mirrored or cropped output is not that of the tokens' grid."""
    images, labels = torch.randn(2, 3, 32, 48), torch.randint(0, CLASSES, (2, 32, 48))
    bring = lambda logits, size: F.interpolate(logits, size, mode="bilinear")  # noqa: E731
    ends = {
        "right": lambda logits, size: bring(logits, size).softmax(1),
        "mirrored": lambda logits, size: bring(logits, size).softmax(1).flip(3),
        "cropped": lambda logits, size: bring(logits[..., :8], size).softmax(1),
    }
    for name, end in ends.items():
        model = Patches(flat, end)
        with torch.set_grad_enabled(grad), attach(model, TemplateSimilarityLoss(), head="head") as criterion:
            if name == "right":
                assert torch.isfinite(criterion(model(images), labels))
            else:
                with pytest.raises(
                    ValueError, match=r"head: expected a (grid that covers|layer that the output depends on)"
                ):
                    criterion(model(images), labels)


def test_tokens_that_fill_no_grid_are_refused() -> None:
    class Merges(nn.Module):
        def forward(self, tokens: Tensor) -> Tensor:
            return tokens.reshape(len(tokens), -1, 4, tokens.shape[-1]).mean(2)[..., :CLASSES]

    class Pools(Patches):
        def forward(self, images: Tensor) -> dict[str, Tensor]:
            logits = self.head(self.features(images).flatten(1, 2)[:, self.left :]).mean(1)
            return {"out": logits[:, :, None, None].expand(-1, -1, *images.shape[-2:])}

    images, labels = batch(2, 32)
    for head, left, message in (
        (None, 1, "head: .*fill a grid.*got 63 tokens from 'head'"),
        (Merges(), 0, "as many tok"),
    ):
        model = Pools(flat=True, head=head)
        model.left = left
        with pytest.raises(ValueError, match=message):
            attach(model, TemplateSimilarityLoss(), head="head")(model(images), labels)


# --- a model's own declaration


class Skips(Net):
    """FCN-16s: scores of two grids are summed; the model says which layer is the classifier."""

    classifier_layer = "fine"

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Conv2d(8, CLASSES, 1)

    def forward(self, images: Tensor) -> Any:
        x = self._neck(self.body(images))
        coarse = self.classifier(F.max_pool2d(x, 2))
        logits = F.interpolate(coarse, x.shape[-2:], mode="bilinear") + self.fine(x)
        return {"out": F.interpolate(logits, images.shape[-2:], mode="bilinear")}


def test_a_model_names_its_classifier_itself() -> None:
    model = Skips()
    criterion = assert_one_line_works(model, *batch(2, 32), below="body.0.weight")
    assert criterion.head == "fine"
    for wrapped in (nn.DataParallel(model), torch.compile(model, backend="eager")):
        assert attach(wrapped, TemplateSimilarityLoss()).head == "fine"
    assert attach(model, TemplateSimilarityLoss(), head="classifier").head == "classifier"
    assert attach(model).head is None  # nothing asks for features
    model.classifier_layer = "coarse"
    with pytest.raises(ValueError, match=r"Skips\.classifier_layer: expected the dotted name .*'coarse'.*'classifier'"):
        attach(model, TemplateSimilarityLoss())
    own = Net()
    own.classifier_layer = own.classifier  # a layer of that name declares nothing
    criterion = attach(own, TemplateSimilarityLoss())
    assert criterion.head is None


def test_the_networks_of_the_house_declare_theirs() -> None:
    criterion = assert_one_line_works(small_fcn(CLASSES, width=8), *batch(2, 32), below="stem.0.0.weight")
    assert criterion.head == "classifier"
    assert attach(small_fcn(2), TemplateSimilarityLoss()).head == "classifier"


# --- a function of the output


class Embeds(Net):
    """Returns (logits, embedding); the logits are made by a bilinear form that no layer is."""

    def __init__(self) -> None:
        super().__init__()
        self.form = nn.Parameter(torch.randn(CLASSES, 8))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        embedding = self._neck(self.body(images))
        logits = torch.einsum("nd,bdhw->bnhw", self.form, embedding)
        return F.interpolate(logits, images.shape[-2:], mode="bilinear"), embedding


@EITHER_WAY
@pytest.mark.parametrize("pair", [True, False])
def test_features_are_taken_from_the_output(pair: bool, grad: bool) -> None:
    model, (images, labels) = Embeds().double().eval(), batch(dtype=torch.float64)
    own = lambda e: torch.einsum("nd,bdhw->bnhw", model.form, e)  # noqa: E731
    take = (lambda output: (output[1], own(output[1]))) if pair else (lambda output: output[1])
    criterion = attach(model, TemplateSimilarityLoss(weight=0.5), features=take)
    assert len(list(hooks(model))) == 3
    with torch.set_grad_enabled(grad):
        one, other = model(images), model(images.flip(-1))
        values = [criterion(each, labels) for each in (other, one, one)]
        assert torch.equal(values[1], values[2])
    logits, embedding = model(images)
    on_grid = F.interpolate(logits, embedding.shape[-2:], mode="bilinear")
    term = template_similarity_loss(embedding, own(embedding) if pair else on_grid, labels_on_grid(labels, (8, 8)))
    torch.testing.assert_close(criterion.terms["template_similarity"], term.detach())
    if grad:
        values[1].backward()
        found = gradients(model)
        model.zero_grad()
        (F.cross_entropy(logits, labels, ignore_index=255) + 0.5 * term).backward()
        for name, gradient in gradients(model).items():
            torch.testing.assert_close(found[name], gradient)


def test_a_function_of_the_output_beside_a_weight_map_and_in_a_copy() -> None:
    from weight_map_cases import StubLoss

    model, (images, labels) = Embeds(), batch()
    pair = nn.ModuleDict({"model": model})
    pair["criterion"] = attach(model, TemplateSimilarityLoss(), StubLoss(), features=_second)
    twin = copy.deepcopy(pair)
    values = [each["criterion"](each["model"](images), labels) for each in (pair, twin)]
    torch.testing.assert_close(*values)
    with pytest.raises(ValueError, match=r"head: expected one layer.*features=lambda output"):
        attach(model, TemplateSimilarityLoss())(model(images), labels)


def _second(output: Any) -> Tensor:
    return output[1]


@pytest.mark.parametrize(
    ("features", "error", "message"),
    [
        (lambda output: output[1][:1], ValueError, r"features\(output\): expected .*got .*\(1, 8, 8, 8\)"),
        (lambda output: output[1].flatten(2), ValueError, r"features\(output\).*\(N, D, h, w\)"),
        (lambda output: output[1].long(), TypeError, r"features\(output\)"),
        (lambda output: None, TypeError, r"features\(output\)"),
        (lambda output: (output[1], output[1]), ValueError, r"features\(output\)\[1\]: expected 4 channels"),
    ],
)
def test_what_a_function_gives_is_checked(features: Any, error: type[Exception], message: str) -> None:
    model, images, labels, criterion = attached(Embeds(), TemplateSimilarityLoss(), features=features)
    with pytest.raises(error, match=message):
        criterion(model(images), labels)


def test_bad_functions_leave_the_model_as_it_was() -> None:
    model = Embeds()
    for how, error in (({"features": "neck"}, TypeError), ({"features": _second, "head": "neck"}, ValueError)):
        with pytest.raises(error, match="features: expected"):
            attach(model, TemplateSimilarityLoss(), **how)
    with pytest.raises(TypeError, match="call: expected"):
        attach(model, TemplateSimilarityLoss(), call="model")
    assert not list(hooks(model))


def test_detached_features_warn_once() -> None:
    features = lambda output: output[1].detach()  # noqa: E731
    model, images, labels, criterion = attached(Embeds(), TemplateSimilarityLoss(), features=features)
    with pytest.warns(UserWarning, match="train nothing: what features= gives carries no gradient"):
        criterion(model(images), labels)


def test_hidden_states_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_sizes": [8, 8], "num_attention_heads": [1, 1], "depths": [1, 1], "sr_ratios": [2, 1]}
    config = transformers.SegformerConfig(
        num_encoder_blocks=2, patch_sizes=[7, 3], strides=[4, 2], mlp_ratios=[2, 2], decoder_hidden_size=8,
        num_labels=CLASSES, **sizes,
    )  # fmt: skip
    model, (images, labels) = transformers.SegformerForSemanticSegmentation(config), batch(2, 64)
    criterion = attach(model, TemplateSimilarityLoss(), features=lambda output: output.hidden_states[-1])
    criterion(model(images, output_hidden_states=True), labels).backward()
    assert criterion.terms["template_similarity"].isfinite()
    with pytest.raises(TypeError, match="not subscriptable"):
        criterion(model(images), labels)


def test_call_is_handed_to_the_terms_that_look_again() -> None:
    from perpixel import DiscriminativeRegionLoss

    class Strict(Net):
        def forward(self, *, pixel_values: Tensor, scale: float) -> dict[str, Tensor]:  # type: ignore[override]
            return super().forward(pixel_values * scale)

    plain, (images, labels) = Net().eval(), batch()
    strict = Strict().eval()
    strict.load_state_dict(plain.state_dict())
    term = DiscriminativeRegionLoss(every=2)
    call = lambda model, x: model(pixel_values=x, scale=1.0)  # noqa: E731
    criterion = attach(strict, term, TemplateSimilarityLoss(), call=call)
    expected = attach(plain, DiscriminativeRegionLoss(), TemplateSimilarityLoss())(plain(images), labels)
    for _ in range(2):
        torch.testing.assert_close(criterion(strict(pixel_values=images, scale=1.0), labels), expected)
    bare = SimpleNamespace(fails=attach(strict, DiscriminativeRegionLoss()))
    with pytest.raises(TypeError):
        bare.fails(strict(pixel_values=images, scale=1.0), labels)
