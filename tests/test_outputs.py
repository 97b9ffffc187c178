"""Outputs of every documented form, and refusals of everything else."""

import warnings
from collections import OrderedDict, namedtuple
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perpixel.outputs import (
    _SIZES,
    _SIZES_OF_A_MODEL,
    check_labels,
    class_logits,
    dense_logits,
    further_logits,
    logits_at,
    maps_in,
    output_size,
    predicted_labels,
)

LOGITS = torch.randn(2, 3, 4, 5)
Pair = namedtuple("Pair", ["loss", "logits"])


@pytest.mark.parametrize(
    "output",
    [
        LOGITS,
        {"out": LOGITS, "aux": LOGITS + 1},
        OrderedDict(aux=LOGITS + 1, out=LOGITS),
        {"logits": LOGITS, "loss": torch.tensor(0.0)},
        {"out": None, "logits": LOGITS},
        SimpleNamespace(logits=LOGITS),
        Pair(torch.tensor(0.0), LOGITS),
        (torch.tensor(0.0), LOGITS, LOGITS + 1),
        [LOGITS, LOGITS + 1],
    ],
)
def test_every_form_gives_the_same_tensor(output: Any) -> None:
    assert dense_logits(output) is LOGITS


@pytest.mark.parametrize(
    ("output", "error", "message"),
    [
        (None, TypeError, "NoneType"),
        ({"masks": LOGITS}, TypeError, "keys.*masks"),
        ({}, TypeError, "keys"),
        ((), TypeError, "nothing"),
        ((LOGITS[0], "x"), TypeError, r"\(3, 4, 5\).*str 'x'"),
        (LOGITS[0], ValueError, r"\(3, 4, 5\)"),
        ({"out": LOGITS[0]}, ValueError, r"\(3, 4, 5\)"),
        (LOGITS.long(), TypeError, "int64"),
        ({"out": "text"}, TypeError, "text"),
    ],
)
def test_anything_else_is_refused_and_named(output: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        dense_logits(output)


def test_further_logits_have_the_batch_and_the_classes() -> None:
    deep, small = LOGITS + 1, LOGITS[:, :, :2, :2]
    for output, expected in (
        (LOGITS, {}),
        ({"out": LOGITS, "aux": deep, "logits": LOGITS}, {"aux": deep}),
        ((torch.tensor(0.0), LOGITS, deep, [small]), {2: deep, "3.0": small}),
        (Pair(deep, LOGITS), {"loss": deep}),
        (SimpleNamespace(logits=LOGITS, deep=deep, hidden_states=(deep,)), {"deep": deep}),
        ([LOGITS, LOGITS[:1], LOGITS[:, :2], LOGITS[0], LOGITS.long(), None, "text"], {}),
    ):
        found = further_logits(output, LOGITS)
        assert found.keys() == expected.keys()
        assert all(found[key] is expected[key] for key in found)


def test_logits_at_is_bilinear_and_free_when_the_size_is_right() -> None:
    assert logits_at(LOGITS, (4, 5)) is LOGITS
    expected = F.interpolate(LOGITS, size=(9, 7), mode="bilinear", align_corners=False)
    torch.testing.assert_close(logits_at(LOGITS, (9, 7)), expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_labels_of_any_integer_type_become_int64(dtype: torch.dtype) -> None:
    labels = torch.full((2, 8, 10), 2, dtype=dtype)
    labels[0, 0, 0] = 255 if dtype == torch.uint8 else -1
    checked = check_labels(labels, LOGITS, 255 if dtype == torch.uint8 else -1, values=True)
    assert checked.dtype == torch.int64
    assert torch.equal(checked, labels.long())


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (torch.zeros(2, 3, 4, 5), ValueError, r"one-hot.*argmax\(1\)"),
        (torch.zeros(2, 1, 4, 5), ValueError, r"squeeze\(1\)"),
        (torch.zeros(4, 5).long(), ValueError, r"\(N, H, W\)"),
        (torch.zeros(2, 4, 5), TypeError, r"\.long\(\)"),
        (torch.zeros(2, 4, 5).bool(), TypeError, "integer"),
        (None, TypeError, "labels"),
        (torch.zeros(3, 4, 5).long(), ValueError, "3 label maps for 2 images"),
        (torch.zeros(2, 4, 5, device="meta").long(), ValueError, "device"),
        (torch.full((2, 4, 5), 3), ValueError, r"3 at position \(0, 0, 0\)"),
        (torch.full((2, 4, 5), -100), ValueError, "-100"),
    ],
)
def test_bad_labels(labels: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_labels(labels, LOGITS, 255, values=True)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("values", [True, False])
def test_binary_masks_of_any_type_become_int64(dtype: torch.dtype, values: bool) -> None:
    mask = torch.randint(2, (2, 8, 10))
    if dtype != torch.bool:
        mask[0, 0] = 255
    for given in (mask, mask[:, None]):
        found = check_labels(given.to(dtype), LOGITS[:, :1], 255, values=values)
        assert found.dtype == torch.int64
        assert torch.equal(found, mask)


def test_binary_masks_that_do_not_fit_are_refused_or_void() -> None:
    for value, shown in ((0.3, r"0\.3 at position \(1, 2, 3\)"), (torch.nan, "nan"), (255.0, "255"), (-1.0, "-1")):
        mask = torch.ones(2, 4, 5)
        mask[1, 2, 3] = value
        with pytest.raises(ValueError, match=rf"labels: expected values in \[0, 2\) .* {shown}.*labels > 0\.5"):
            check_labels(mask, LOGITS[:, :1], -100, values=True)
        found = check_labels(mask, LOGITS[:, :1], -100, values=False)
        assert found[1, 2, 3] == -100
        assert int((found == 1).sum()) == found.numel() - 1
    for labels in (torch.zeros(2, 3, 4, 5), torch.zeros(2, 3, 4, 5).bool()):
        with pytest.raises(ValueError, match=r"multi-label.*logits\[:, c:c\+1\] and labels\[:, c\]"):
            check_labels(labels, LOGITS[:, :1], 255, values=True)


@pytest.mark.parametrize("classes", [1, 3])
def test_labels_that_are_no_class_are_void_where_nothing_waits_for_the_device(classes: int) -> None:
    labels = torch.tensor([0, 1, 2, 3, 155, 255, -100]).to(torch.int32).expand(2, 4, 7)
    found = check_labels(labels, LOGITS[:, :classes], 255, values=False)
    assert found[0, 0].tolist() == [0, 1, 2 if classes == 3 else 255, *[255] * 4]
    with pytest.raises(ValueError, match="156"):  # which is -100 modulo 256
        check_labels(torch.full((2, 4, 5), 156, dtype=torch.uint8), LOGITS, -100, values=True)


def test_one_channel_stands_for_two_classes() -> None:
    z = torch.tensor([-3.0, -0.0, 0.0, 2.0, torch.nan])[None, None].double()
    assert class_logits(LOGITS) is LOGITS
    two = class_logits(z)
    assert torch.equal(predicted_labels(z), two.argmax(1))
    torch.testing.assert_close(two.softmax(1)[:, 1:], z.sigmoid(), equal_nan=True)
    torch.testing.assert_close(two[:, 1:] - two[:, :1], z, equal_nan=True)
    labels = torch.tensor([[1, 0, 1, 0]])
    bce = F.binary_cross_entropy_with_logits(z[:, 0, :4], labels.double())
    torch.testing.assert_close(F.cross_entropy(two[..., :4], labels), bce)


def test_what_looks_like_a_mistake_with_one_channel_is_said() -> None:
    for logits, warns in (
        (LOGITS[:, :1].sigmoid(), True),
        (LOGITS[:, :1], False),
        (LOGITS.softmax(1), False),
        (LOGITS[:, :1] * 0 + 0.3, False),
    ):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            predicted_labels(logits)
        assert [str(one.message)[:7] for one in said] == ["model: "] * warns
    grey = torch.tensor([0, 255]).expand(2, 4, 2)
    for labels, void, warns in (
        (grey, 255, True),
        (grey.float()[:, None], 255, True),
        (grey.clamp(max=1), 255, False),
        (torch.cat([grey, grey.clamp(max=1)], 2), 255, False),
        (grey.clamp(max=0), 255, False),
    ):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            check_labels(labels, LOGITS[:, :1], void, values=True)
        assert ["masks > 0" in str(one.message) for one in said] == [True] * warns


def test_maps_in_finds_every_map_however_deep() -> None:
    other = LOGITS + 1
    output = {"out": LOGITS, "loss": torch.tensor(0.0), "more": [(other, None), SimpleNamespace(logits=LOGITS)], "n": 3}
    assert [id(found) for found in maps_in(output)] == [id(LOGITS), id(other), id(LOGITS)]
    assert maps_in("text") == []
    assert maps_in(LOGITS.long()) == []
    assert [id(found) for found in maps_in((LOGITS.long(), LOGITS), floating=False)][1:] == [id(LOGITS)]


class Strided(nn.Module):
    """Counts its passes; the output's size follows an attribute."""

    stride, passes = 1, 0

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        self.passes += 1
        return {"out": images[:, :, :: self.stride, :: self.stride]}


def test_output_size_follows_the_model_and_costs_a_pass_where_it_is_not_known() -> None:
    model, images = Strided(), torch.randn(2, 3, 16, 12)
    for stride, size, passes in ((1, (16, 12), 1), (1, (16, 12), 1), (2, (8, 6), 2), (1, (16, 12), 3)):
        model.stride = stride
        logits = images[:, :, ::stride, ::stride]
        assert output_size(model, images, logits) == size
        assert model.passes == passes
    model = Strided()
    model.stride = 4
    for _ in range(2):
        assert output_size(model, images, F.interpolate(images, size=(16, 12))) == (4, 3)  # not the model's own logits
    assert model.passes == 2
    for width in range(1, 300):
        output_size(model, images[..., :1].expand(-1, -1, -1, width), images)
    assert len(_SIZES[model]) <= _SIZES_OF_A_MODEL
