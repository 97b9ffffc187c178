"""What every loss keeps to. A new loss is one entry in LOSSES."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pytest
import torch
import weight_map_cases
from torch import Tensor, nn

from perpixel import (
    ImageLabelLoss,
    TemplateSimilarityLoss,
    attach,
    image_label_loss,
    template_similarity_loss,
    weighted_cross_entropy,
)

CLASSES = 4
Arguments = dict[str, Any]


@dataclass(frozen=True)
class Loss:
    """One loss in one setting. All arguments of a batch are by name; `labels` has void in its first row."""

    make: Callable[..., Callable[..., Tensor]]  # options -> the module, or the function with these options
    function: Callable[..., Tensor]  # the same written as a function of the same arguments
    batch: Callable[[torch.dtype], Arguments]
    leaf: str  # the argument that learns
    per_pixel: tuple[str, ...]  # arguments with a value for every pixel of `labels`
    constant: Arguments = field(default_factory=dict)  # options under which the loss is a plain function of its leaf
    classes: int = CLASSES
    runs_model: bool = False  # then lower precision changes the weights, and no single graph can hold it


def features_and_logits(dtype: torch.dtype) -> Arguments:
    """Tied logits, an absent class, and more channels than one block holds."""
    labels = torch.randint(0, CLASSES - 1, (2, 3, 4))
    labels[:, 0] = 255
    logits = torch.randn(2, CLASSES, 3, 4).mul(2).round().div(2).to(dtype)
    return {"features": torch.randn(2, 12, 3, 4).to(dtype), "logits": logits, "labels": labels}


def logits_and_weights(dtype: torch.dtype) -> Arguments:
    labels = torch.randint(0, CLASSES, (2, 3, 5))
    labels[:, 0] = 255
    logits = torch.randn(2, CLASSES, 3, 5).to(dtype)
    return {"logits": logits, "labels": labels, "weight_map": torch.rand(2, 3, 5).to(dtype)}


def logits_and_image_labels(dtype: torch.dtype) -> Arguments:
    """What void hides is a whole image: of others the place of a label has no say."""
    labels = torch.randint(0, CLASSES - 1, (3, 3, 5))
    labels[0] = 255
    return {"logits": torch.randn(3, CLASSES, 3, 5).to(dtype), "labels": labels}


def model_and_images(dtype: torch.dtype) -> Arguments:
    model, images, logits, labels = weight_map_cases.problem(dtype, size=8)
    return {"model": model, "images": images, "logits": logits.detach(), "labels": labels}


def binary(batch: Callable[[torch.dtype], Arguments]) -> Callable[[torch.dtype], Arguments]:
    """The same with one channel of logits and masks of floats."""

    def of_two_classes(dtype: torch.dtype) -> Arguments:
        found = batch(dtype)
        mask = torch.where(found["labels"] == 255, 255, found["labels"] % 2)
        return found | {"logits": found["logits"][:, :1], "labels": mask.float()}

    return of_two_classes


def template_similarity(**options: Any) -> Loss:
    make, function = partial(TemplateSimilarityLoss, **options), partial(template_similarity_loss, **options)
    return Loss(make, function, features_and_logits, "features", ("features", "logits"))


def image_label(**options: Any) -> Loss:
    make, function = partial(ImageLabelLoss, **options), partial(image_label_loss, **options)
    return Loss(make, function, logits_and_image_labels, "logits", ("logits",))


def with_weight_map(make: Callable[..., Any]) -> Loss:
    def function(logits: Tensor, labels: Tensor, **rest: Any) -> Tensor:
        return weighted_cross_entropy(logits, labels, make().weight_map(logits=logits, labels=labels, **rest))

    return Loss(make, function, model_and_images, "logits", ("logits",), {"every": 10_000}, runs_model=True)


LOSSES = {
    "cosine": template_similarity(),
    "correlation": template_similarity(similarity="correlation"),
    "mean templates": template_similarity(template="mean"),
    "contrast": template_similarity(objective="contrast"),
    "selective": template_similarity(selective=True),
    "selective contrast of correlations with means": template_similarity(
        similarity="correlation", selective=True, objective="contrast", template="mean", reduction="sum"
    ),
    "weighted cross-entropy": Loss(
        lambda **options: partial(weighted_cross_entropy, **options),
        weighted_cross_entropy,
        logits_and_weights,
        "logits",
        ("logits", "weight_map"),
    ),
    "image label": image_label(),
    "image label, average": image_label(pooling="average"),
    "image label, maximum, without background": image_label(pooling="max", exclude=(0,)),
    "binary image label": replace(image_label(), batch=binary(logits_and_image_labels), classes=2),
    "binary cosine": replace(template_similarity(), batch=binary(features_and_logits), classes=2),
    "binary weighted cross-entropy": Loss(
        lambda **options: partial(weighted_cross_entropy, **options),
        weighted_cross_entropy,
        binary(logits_and_weights),
        "logits",
        ("logits", "weight_map"),
        classes=2,
    ),
    **{
        name: with_weight_map(make)
        for name, make in {"stub": weight_map_cases.StubLoss, **weight_map_cases.LOSSES}.items()
    },
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
COMPILED = (
    "cosine",
    "image label",
    "selective contrast of correlations with means",
    "weighted cross-entropy",
    "stub",
    "debt",
)
MODULES = {name: loss for name, loss in LOSSES.items() if hasattr(loss.make(), "weight")}
HALVES = [torch.bfloat16, torch.float16]


def run(call: Callable[..., Tensor], leaf: str, batch: Arguments) -> tuple[Tensor, Tensor]:
    """Value and gradient."""
    tensor = batch[leaf].detach().requires_grad_()
    value = call(**{**batch, leaf: tensor})
    (gradient,) = torch.autograd.grad(value, tensor)
    return value.detach(), gradient


def check(loss: Loss, batch: Arguments, expected: tuple[Tensor, Tensor], **tolerance: float) -> None:
    torch.testing.assert_close(run(loss.make(), loss.leaf, batch), expected, **tolerance)


def is_map(value: object) -> bool:
    return isinstance(value, Tensor) and value.ndim == 4


@every_loss
def test_module_equals_function(loss: Loss) -> None:
    batch = loss.batch(torch.float64)
    module = loss.make()
    assert torch.equal(run(module, loss.leaf, batch)[1], run(loss.function, loss.leaf, batch)[1])
    assert torch.equal(module(**batch), loss.function(**batch))
    assert not isinstance(module, nn.Module) or not list(module.parameters())


@every_loss
def test_gradcheck(loss: Loss) -> None:
    batch = loss.batch(torch.float64)
    call = loss.make(**loss.constant)
    leaf = batch[loss.leaf].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda tensor: call(**{**batch, loss.leaf: tensor}), leaf)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_lower_precision_is_summed_in_float32(loss: Loss, dtype: torch.dtype) -> None:
    batch = loss.batch(dtype)
    value, gradient = run(loss.make(), loss.leaf, batch)
    assert value.dtype == torch.float32
    assert gradient.dtype == dtype
    assert value.isfinite()
    assert gradient.isfinite().all()
    if not loss.runs_model:
        wide = {name: t.double() if t.is_floating_point() else t for name, t in batch.items()}
        exact, slope = run(loss.make(), loss.leaf, wide)
        assert exact.dtype == torch.float64
        torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(gradient, slope.to(dtype), rtol=4 * torch.finfo(dtype).eps, atol=1e-6)


@every_loss
def test_autocast(loss: Loss) -> None:
    batch = loss.batch(torch.float32)
    expected = run(loss.make(), loss.leaf, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value, gradient = run(loss.make(), loss.leaf, batch)
    tolerance = 0.1 if loss.runs_model else 0.0
    torch.testing.assert_close(value, expected[0], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(gradient, expected[1], rtol=tolerance, atol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_equals_eager(name: str) -> None:
    torch.compiler.reset()
    loss = LOSSES[name]
    batch = loss.batch(torch.float32)
    call = loss.make()
    compiled = torch.compile(lambda **batch: call(**batch), fullgraph=not loss.runs_model, backend="aot_eager")
    check(loss, batch, run(compiled, loss.leaf, batch))


@every_loss
def test_all_void_is_an_attached_zero(loss: Loss) -> None:
    batch = loss.batch(torch.float32)
    batch["labels"] = torch.full_like(batch["labels"], 255)
    batch[loss.leaf][0, 0, 0, 0] = torch.nan
    value, gradient = run(loss.make(), loss.leaf, batch)
    assert value == 0
    assert torch.equal(gradient, torch.zeros_like(gradient))


@every_loss
def test_no_image_is_an_attached_zero(loss: Loss) -> None:
    batch = loss.batch(torch.float32)
    none = {name: value[:0] if isinstance(value, Tensor) else value for name, value in batch.items()}
    value, gradient = run(loss.make(), loss.leaf, none)
    assert value == 0
    assert gradient.shape == none[loss.leaf].shape


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if loss.leaf == "features"])
@pytest.mark.parametrize("content", [1.0, torch.nan, torch.inf])
def test_no_label_is_an_attached_zero_whatever_the_features(name: str, content: float) -> None:
    features = torch.full((2, 8, 3, 4), content)
    batch = {"features": features, "logits": torch.zeros(2, CLASSES, 3, 4), "labels": torch.zeros(2, 0, 0).long()}
    value, gradient = run(LOSSES[name].make(), "features", batch)
    assert value == 0
    assert torch.equal(gradient, torch.zeros_like(features))


@every_loss
@pytest.mark.parametrize("last", [False, True])
def test_all_other_classes_may_be_empty(loss: Loss, last: bool) -> None:
    batch = loss.batch(torch.float32)
    batch["labels"] = batch["labels"].masked_fill(batch["labels"] != 255, last * (loss.classes - 1))
    value, gradient = run(loss.make(), loss.leaf, batch)
    assert value.isfinite()
    assert gradient.isfinite().all()


@every_loss
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALVES])
def test_zeros_are_finite(loss: Loss, dtype: torch.dtype) -> None:
    batch = {name: torch.zeros_like(t) if is_map(t) else t for name, t in loss.batch(dtype).items()}
    value, gradient = run(loss.make(), loss.leaf, batch)
    assert value.isfinite()
    assert gradient.isfinite().all()
    assert gradient.dtype == dtype


@every_loss
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALVES])
@pytest.mark.parametrize("content", [torch.nan, torch.inf, -torch.inf, 3e4])
def test_what_lies_at_void_has_no_say(loss: Loss, dtype: torch.dtype, content: float) -> None:
    batch = loss.batch(dtype)
    expected = run(loss.make(), loss.leaf, batch)
    void = batch["labels"] == 255
    for name in loss.per_pixel:
        mask = void[:, None] if batch[name].ndim == 4 else void
        batch[name] = batch[name].masked_fill(mask, content)
    check(loss, batch, expected)
    assert not expected[1].movedim(1, -1)[void].any()
    assert expected[1].any()


@every_loss
@pytest.mark.parametrize("layout", ["channels_last", "strided", "permuted"])
def test_layout_does_not_matter(loss: Loss, layout: str) -> None:
    lay_out: Callable[[Tensor], Tensor] = {
        "channels_last": lambda t: t.to(memory_format=torch.channels_last),
        "strided": lambda t: torch.stack((t, t), -1)[..., 0],
        "permuted": lambda t: t.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
    }[layout]
    batch = loss.batch(torch.float64)
    expected = run(loss.make(), loss.leaf, batch)
    labels = torch.stack((batch["labels"], batch["labels"]), -1)[..., 0]
    changed = {name: lay_out(t) if is_map(t) else t for name, t in batch.items()}
    assert not changed[loss.leaf].is_contiguous() or (layout == "channels_last" and changed[loss.leaf].shape[1] == 1)
    assert not labels.is_contiguous()
    check(loss, {**changed, "labels": labels}, expected, rtol=1e-12, atol=1e-14)


@every_loss
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_labels_of_any_integer_type(loss: Loss, dtype: torch.dtype) -> None:
    batch = loss.batch(torch.float32)
    expected = run(loss.make(), loss.leaf, batch)
    check(loss, {**batch, "labels": batch["labels"].to(dtype)}, expected, rtol=0, atol=0)


@every_loss
@pytest.mark.parametrize("ignore_index", [-100, 77])
def test_void_may_be_another_number(loss: Loss, ignore_index: int) -> None:
    batch = loss.batch(torch.float32)
    expected = run(loss.make(), loss.leaf, batch)
    batch["labels"] = batch["labels"].masked_fill(batch["labels"] == 255, ignore_index)
    found = run(loss.make(ignore_index=ignore_index), loss.leaf, batch)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@every_loss
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "state_dict"])
def test_copies_say_the_same(loss: Loss, how: str) -> None:
    batch = loss.batch(torch.float32)
    call = loss.make()
    run(call, loss.leaf, batch)
    if how == "state_dict":
        copied = loss.make()
        if isinstance(call, nn.Module) and isinstance(copied, nn.Module):
            assert not any(copied.load_state_dict(call.state_dict()))
    else:
        copied = copy.deepcopy(call) if how == "deepcopy" else pickle.loads(pickle.dumps(call))
    expected = run(call, loss.leaf, batch)
    torch.testing.assert_close(run(copied, loss.leaf, batch), expected, rtol=0, atol=0)


@every_loss
def test_bad_input_is_named(loss: Loss) -> None:
    batch = loss.batch(torch.float32)
    call, labels, leaf, classes = loss.make(), batch["labels"], batch[loss.leaf], loss.classes
    for name, value, error, named in (
        ("labels", labels.double() + 0.5, (TypeError, ValueError), "labels"),
        ("labels", labels[:1], ValueError, "labels"),
        ("labels", torch.stack([labels] * 2, 1), ValueError, "labels.*multi-label"),
        (
            "labels",
            torch.full_like(labels, classes),
            ValueError,
            rf"labels.*\[0, {classes}\).*{classes}\S* at .*0, 0, 0",
        ),
        ("labels", torch.full_like(labels, -1), ValueError, "labels"),
        ("labels", labels.to("meta"), ValueError, "labels.*device"),
        ("labels", None, TypeError, "labels"),
        (loss.leaf, leaf[0], ValueError, loss.leaf),
        (loss.leaf, leaf.long(), TypeError, loss.leaf),
        (loss.leaf, [1.0], TypeError, loss.leaf),
        ("logits", batch["logits"][:1], ValueError, "logits|labels"),
    ):
        with pytest.raises(error, match=named):
            call(**{**batch, name: value})


@pytest.mark.parametrize("loss", MODULES.values(), ids=MODULES)
@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("weight", -1.0, ValueError),
        ("weight", torch.nan, ValueError),
        ("weight", torch.inf, ValueError),
        ("weight", "1", TypeError),
        ("ignore_index", 2.5, TypeError),
        ("ignore_index", None, TypeError),
    ],
)
def test_bad_options_are_named_by_the_constructor(loss: Loss, option: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=option):
        loss.make(**{option: value})


# --- the default base of `attach`


def default_base(output: Any, labels: Tensor) -> Tensor:
    return attach(nn.Identity())(output, labels)


@pytest.mark.parametrize("content", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("as_aux", [False, True])
def test_the_default_base_does_not_look_at_void(content: float, as_aux: bool) -> None:
    batch = logits_and_weights(torch.float64)
    labels, clean = batch["labels"], batch["logits"]
    poisoned = clean.masked_fill((labels == 255)[:, None], content)

    def base(logits: Tensor) -> Tensor:
        return default_base({"out": clean, "aux": logits} if as_aux else logits, labels)

    torch.testing.assert_close(run(base, "logits", {"logits": poisoned}), run(base, "logits", {"logits": clean}))


def test_a_bad_cell_counts_exactly_where_it_reaches_a_valid_pixel() -> None:
    labels = torch.zeros(1, 16, 16, dtype=torch.int64)
    labels[:, :, 8:] = 255
    for column, expected in ((3, 0), (2, 1)):  # of four: the third is mixed into valid pixels, the fourth into none
        logits = torch.randn(1, CLASSES, 4, 4).index_fill(3, torch.tensor(column), torch.nan).requires_grad_()
        loss = default_base(logits, labels)
        loss.backward()
        assert bool(loss.isnan()) == bool(expected)
        assert bool(logits.grad.isnan().any()) == bool(expected)
