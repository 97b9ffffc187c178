"""The template-similarity loss against Algorithm 3 written out literally, and its behaviour at the edges."""

from itertools import product

import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from perpixel import TemplateSimilarityLoss, template_similarity_loss

OPTIONS = [
    {"similarity": s, "selective": sel, "objective": o, "template": t, "detach_templates": d, "reduction": r}
    for s, sel, o, t, d, r in product(
        ("cosine", "correlation"),
        (False, True),
        ("similarity", "contrast"),
        ("peak", "mean"),
        (False, True),
        ("mean", "sum"),
    )
]
NAMES = ["-".join(str(v) for v in o.values()) for o in OPTIONS]
KINDS = [{}, {"similarity": "correlation"}, {"template": "mean"}, {"objective": "contrast"}, {"selective": True}]


def batch(
    n: int = 2, d: int = 5, c: int = 4, h: int = 3, w: int = 4, scale: int = 1, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """Features, logits and labels with a void border, a class that is absent and tied logits."""
    features = torch.randn(n, d, h, w, dtype=dtype)
    logits = torch.randn(n, c, h, w, dtype=dtype).mul(2).round().div(2)
    labels = torch.randint(0, c - 1, (n, h * scale, w * scale))
    labels[0, :scale] = 255
    return features, logits, labels


def value_and_gradient(loss, features: Tensor, *rest: Tensor, **options) -> tuple[Tensor, Tensor]:
    features = features.detach().clone().requires_grad_()
    value = loss(features, *rest, **options)
    value.backward()
    return value.detach(), features.grad


@pytest.mark.parametrize("options", OPTIONS, ids=NAMES)
@pytest.mark.parametrize("scale", [1, 3])
def test_equals_algorithm_3_in_value_and_gradient(options: dict, scale: int) -> None:
    inputs = batch(scale=scale)
    ours = value_and_gradient(template_similarity_loss, *inputs, **options)
    literal = value_and_gradient(oracles.template_similarity, *inputs, **options)
    torch.testing.assert_close(ours, literal, rtol=1e-12, atol=1e-13)


@given(
    st.integers(1, 3),
    st.integers(1, 6),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(1, 5),
    st.sampled_from(OPTIONS),
    st.integers(0, 10**6),
)
def test_equals_algorithm_3_for_any_shape(n: int, d: int, c: int, h: int, w: int, options: dict, seed: int) -> None:
    if options["similarity"] == "correlation":
        d += 2  # two channels correlate to ±1, where the centred vectors lose their digits
    torch.manual_seed(seed)
    inputs = batch(n, d, c + 1, h, w)
    ours = value_and_gradient(template_similarity_loss, *inputs, **options)
    literal = value_and_gradient(oracles.template_similarity, *inputs, **options)
    torch.testing.assert_close(ours, literal, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("options", KINDS)
def test_ignoring_a_pixel_equals_deleting_it(options: dict) -> None:
    features, logits, labels = batch(n=1, h=1, w=12)
    labels[0, 0] = torch.tensor([0, 1, 2, 0, 255, 1, 2, 0, 1, 2, 255, 1])
    kept = labels[0, 0] != 255
    whole = template_similarity_loss(features, logits, labels, **options)
    cut = template_similarity_loss(features[..., kept], logits[..., kept], labels[..., kept], **options)
    torch.testing.assert_close(whole, cut, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("options", KINDS)
def test_scale_of_the_features_does_not_matter(options: dict) -> None:
    features, logits, labels = batch()
    reference = template_similarity_loss(features, logits, labels, **options)
    for scale in (1e-4, 1e6, 1e18):
        torch.testing.assert_close(template_similarity_loss(features * scale, logits, labels, **options), reference)
    single = features.float()
    expected = template_similarity_loss(single, logits, labels, **options)
    torch.testing.assert_close(template_similarity_loss(single * 1e18, logits, labels, **options), expected)
    assert expected.dtype == torch.float32


def test_ignore_index_may_be_a_class() -> None:
    features, logits, labels = batch()
    moved = torch.where(labels == 255, 3, labels)
    expected = template_similarity_loss(features, logits, labels)
    assert torch.equal(template_similarity_loss(features, logits, moved, ignore_index=3), expected)


@pytest.mark.parametrize("options", KINDS)
@pytest.mark.parametrize("case", ["nothing wrong", "no image"])
def test_nothing_to_count_is_an_attached_zero(options: dict, case: str) -> None:
    features, logits, labels = batch(dtype=torch.float32)
    if case == "nothing wrong":
        labels = logits.argmax(1)
        options = {**options, "selective": True}
    else:
        features, logits, labels = features[:0], logits[:0], labels[:0]
    value, gradient = value_and_gradient(template_similarity_loss, features, logits, labels, **options)
    assert value == 0
    assert torch.equal(gradient, torch.zeros_like(features))


@pytest.mark.parametrize("options", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("content", ["one dead pixel", "constant", "tiny", "huge"])
def test_no_nan_or_infinity(options: dict, dtype: torch.dtype, content: str) -> None:
    features, logits, labels = batch(d=16, dtype=dtype)
    if content == "one dead pixel":
        features[1, :, 1, 1] = 0
    elif content == "constant":
        features = torch.full_like(features, 3.7)
    else:
        features = (features.double() * {"tiny": 1e-30, "huge": 1e18}[content]).to(dtype)
        if dtype == torch.float16:
            features = features.clamp(-6e4, 6e4)
    value, gradient = value_and_gradient(template_similarity_loss, features, logits, labels, **options)
    assert value.isfinite()
    assert gradient.isfinite().all()
    assert gradient.dtype == dtype


@pytest.mark.parametrize("similarity", ["cosine", "correlation"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_accumulate_in_float32(similarity: str, dtype: torch.dtype) -> None:
    features, logits, labels = batch(d=512, h=16, w=16, dtype=torch.float32)
    half = features.to(dtype)
    value, gradient = value_and_gradient(template_similarity_loss, half, logits, labels, similarity=similarity)
    wide, exact = value_and_gradient(template_similarity_loss, half.double(), logits, labels, similarity=similarity)
    torch.testing.assert_close(value.double(), wide, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(gradient, exact.to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=1e-7)


@pytest.mark.parametrize("source", ["peaks", "means", "given"])
@pytest.mark.parametrize(("layout", "centred", "temperature"), [("plain", False, 0.5), ("channels_last", True, 0.0)])
def test_operators_are_registered_soundly(layout: str, centred: bool, temperature: float, source: str) -> None:
    """Among others: what torch.compile is told of shapes and strides is what comes out."""
    features, _, labels = batch()
    if layout == "channels_last":
        features = features.to(memory_format=torch.channels_last)
    elif source == "given":
        features = features.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    valid = (labels != 255).flatten(1)
    shared = (torch.where(valid, labels.flatten(1), 0), valid, torch.tensor([True, True, True, False]))
    peaks = torch.tensor([14, 13, 20, 0]) if source == "peaks" else None
    templates = torch.randn(4, 5, dtype=torch.float64) if source == "given" else None
    operators = torch.ops.perpixel
    leaf = features.detach().requires_grad_()
    forward = (leaf, templates, peaks, *shared, centred, temperature, False)
    torch.library.opcheck(operators.template_similarity_map, forward)
    kept = operators.template_similarity_map(features, *forward[1:])
    backward = (torch.ones_like(kept[0]), features, peaks, *shared, kept, temperature, False, source == "given")
    torch.library.opcheck(operators.template_similarity_backward, backward)


def test_callable_template_receives_gradient() -> None:
    features, logits, labels = batch()
    centres = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    seen = []

    def template(f: Tensor, g: Tensor, y: Tensor) -> Tensor:
        seen.append((f.shape, g.shape, y.shape))
        return centres

    big = labels.repeat_interleave(2, 1).repeat_interleave(2, 2)
    template_similarity_loss(features, logits, big, template=template).backward()
    assert seen == [(features.shape, logits.shape, labels.shape)]
    assert centres.grad[:3].abs().min() > 0
    assert (centres.grad[3] == 0).all()  # the class is absent
    assert torch.autograd.gradcheck(
        lambda t: template_similarity_loss(features, logits, labels, template=lambda *_: t), centres
    )
    centres.grad = None
    template_similarity_loss(
        features.requires_grad_(), logits, labels, template=template, detach_templates=True
    ).backward()
    assert centres.grad is None


def test_value_lies_between_minus_one_and_one_and_falls_when_trained() -> None:
    features, logits, labels = batch(d=8, h=8, w=8)
    features.requires_grad_()
    before = template_similarity_loss(features, logits, labels).item()
    for _ in range(200):
        (gradient,) = torch.autograd.grad(template_similarity_loss(features, logits, labels), features)
        features = (features - 20 * gradient).detach().requires_grad_()
    after = template_similarity_loss(features, logits, labels).item()
    assert -1 <= after < before - 0.3
    assert before <= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": torch.zeros(2, 5, 12)}, "features"),
        ({"logits": torch.zeros(2, 4, 3, 5)}, "logits"),
        ({"logits": torch.zeros(1, 4, 3, 4)}, "logits"),
        ({"labels": torch.zeros(3, 3, 4, dtype=torch.int64)}, "labels"),
        ({"similarity": "dot"}, "similarity.*'cosine', 'correlation'.*'dot'"),
        ({"objective": "triplet"}, "objective"),
        ({"template": "median"}, "template"),
        ({"reduction": "none"}, "reduction"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"template": lambda *_: torch.zeros(3, 5)}, "template"),
    ],
)
def test_bad_input_is_named(change: dict, message: str) -> None:
    features, logits, labels = batch()
    with pytest.raises((TypeError, ValueError), match=message):
        template_similarity_loss(**{"features": features, "logits": logits, "labels": labels, **change})


@pytest.mark.parametrize(
    "options",
    [
        {"selective": 1},
        {"running_momentum": 1.0},
        {"running_momentum": 0.9, "template": lambda *_: None},
        {"similarity": "dot"},
    ],
)
def test_constructor_refuses(options: dict) -> None:
    with pytest.raises((TypeError, ValueError), match=next(iter(options))):
        TemplateSimilarityLoss(**options)


def test_validate_names_bad_values_at_counted_pixels_only() -> None:
    features, logits, labels = batch()
    features[0, 2, 0, 1] = torch.nan  # void
    template_similarity_loss(features, logits, labels, validate=True)
    features[1, 2, 2, 3] = torch.nan
    with pytest.raises(ValueError, match=r"features.*finite.*\(1, 2, 3\)"):
        template_similarity_loss(features, logits, labels, validate=True)
    features[1, 2, 2, 3], logits[1, 0, 1, 0] = 0, torch.inf
    with pytest.raises(ValueError, match=r"logits.*finite.*\(1, 1, 0\)"):
        template_similarity_loss(features, logits, labels, validate=True)
    fine = labels.repeat_interleave(2, 1).repeat_interleave(2, 2)
    fine[1, 3, 3] = 99  # not a pixel that the grid picks
    with pytest.raises(ValueError, match=r"labels.*99 at position \(1, 3, 3\)"):
        template_similarity_loss(features, logits, fine, validate=True)
