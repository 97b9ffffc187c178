"""salient_parts: the experiment's numbers against loops, the figure, and the model left alone."""

import itertools
import math
from typing import Any

import pytest
import torch
from attach_cases import CLASSES, Net, batch
from model_state import assert_same, snapshot
from torch import Tensor, nn
from torch.nn import functional as F

from perpixel import SalientParts, salient_parts
from perpixel.weighting.regions import activation


def problem() -> tuple[nn.Module, Tensor, Tensor]:
    model = Net().double()
    images, labels = batch(2, dtype=torch.float64)
    labels[1][labels[1] == 3] = 0
    return model, images, labels


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def slow_row(parts: SalientParts, m: int, labels: Tensor) -> dict[str, float]:
    """From the tensors of one object, by loops over its pixels."""
    n, c = int(parts.image[m]), int(parts.label[m])
    pixels = [(y, x) for y in range(labels.shape[1]) for x in range(labels.shape[2]) if labels[n, y, x] != 255]
    hidden = [p for p in pixels if parts.region[m][p]]
    rest = [p for p in pixels if labels[n][p] == c and p not in hidden]
    elsewhere = [p for p in pixels if labels[n][p] != c and p not in hidden]
    change = {p: float(parts.after[m][p] - parts.before[m][p]) for p in pixels}
    seen = [p for p in rest if parts.segmentation[m][p] == c]

    def iou(found: Tensor) -> float:
        true = {p for p in pixels if labels[n][p] == c} - set(hidden)
        said = {p for p in pixels if found[p] == c} - set(hidden)
        return len(true & said) / len(true | said) if true | said else math.nan

    return {
        "image": n,
        "label": c,
        "region_pixels": int(parts.region[m].sum()),
        "rest_pixels": len(rest),
        "held": mean([float(parts.before[m][p]) for p in rest]),
        "lost": mean([-change[p] for p in rest]),
        "gained": mean([max(0.0, change[p]) for p in elsewhere]),
        "kept": mean([float(parts.without[m][p] == c) for p in seen]),
        "iou_before": iou(parts.segmentation[m]),
        "iou_after": iou(parts.without[m]),
    }


@pytest.mark.parametrize(
    "options",
    [
        {"region": "activation", "share": 0.2},
        {"region": "fixation", "cell": 4, "shift": "full"},
        {"region": "erase", "cell": 4, "fill": "blur"},
    ],
    ids=lambda options: options["region"],
)
def test_every_object_is_examined_on_its_own(options: dict[str, Any]) -> None:
    model, images, labels = problem()
    before = snapshot(model)
    parts = salient_parts(model, images, labels, **options)
    assert_same(snapshot(model), before)
    objects = [(n, c) for n in range(2) for c in range(CLASSES) if bool((labels[n] == c).any())]
    assert list(zip(parts.image.tolist(), parts.label.tolist())) == objects
    assert len(parts) == len(objects) == 7
    model.eval()
    with torch.no_grad():
        for m, (n, c) in enumerate(objects):
            one = salient_parts(model, images[n], labels[n], label=c, **options)  # batch equals single
            assert len(one) == 1
            assert torch.equal(one.region[0], parts.region[m])
            torch.testing.assert_close(one.after[0], parts.after[m])
            region = parts.region[m]
            assert region.any()
            if options["region"] == "activation":
                assert int(region.sum()) == math.ceil(0.2 * int((labels[n] == c).sum()) - 1e-9)
                assert not (region & (labels[n] != c)).any()
                hidden = torch.where(region, images[n].mean((1, 2), keepdim=True), images[n])
                torch.testing.assert_close(parts.hidden[m], hidden)
            assert torch.equal(parts.hidden[m][:, ~region], images[n][:, ~region])
            with_it, without = model(images[n : n + 1])["out"][0], model(parts.hidden[m : m + 1])["out"][0]
            torch.testing.assert_close(parts.before[m], with_it[c])
            torch.testing.assert_close(parts.after[m], without[c])
            assert torch.equal(parts.segmentation[m], with_it.argmax(0))
            assert torch.equal(parts.without[m], without.argmax(0))
            assert torch.equal(parts.rest[m], (labels[n] == c) & ~region)
    for m, row in enumerate(parts.rows()):
        expected = slow_row(parts, m, labels)
        assert row.keys() == expected.keys()
        torch.testing.assert_close(row, expected, equal_nan=True)


def test_one_label_no_labels_and_labels_of_another_size() -> None:
    model, images, labels = problem()
    some = salient_parts(model, images, labels, label=3)
    assert (some.image.tolist(), some.label.tolist()) == ([0], [3])
    model.eval()
    found = salient_parts(model, images)
    assert torch.equal(found.labels, model(images)["out"].argmax(1))
    assert torch.nan_to_num(found.iou_before, nan=1.0).eq(1.0).all()
    small = nn.Sequential(model.body, model.classifier)
    coarse = salient_parts(small, images, labels[:, ::2, ::2])
    assert coarse.region.shape[1:] == coarse.before.shape[1:] == (8, 8)
    assert coarse.hidden.shape[2:] == (16, 16)
    assert salient_parts(small, images, labels).before.shape[1:] == (16, 16)
    with pytest.raises(ValueError, match=r"labels: expected the images' size \(16, 16\).*\(8, 8\), got \(12, 12\)"):
        salient_parts(small, images, labels[:, :12, :12])
    single = salient_parts(model, images[0], labels[0].to(torch.uint8))
    assert single.pictures.shape[1:] == (3, 16, 16)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    assert len(salient_parts(averaged, images, labels)) == 7


def test_an_object_of_one_pixel_has_no_rest() -> None:
    model, images, labels = problem()
    labels = labels.masked_fill(labels == 1, 0)
    labels[0, 8, 8] = 1
    row = salient_parts(model, images, labels, label=1).rows()[0]
    assert (row["region_pixels"], row["rest_pixels"]) == (1, 0)
    assert math.isnan(row["lost"])
    assert math.isnan(row["kept"])
    assert row["gained"] >= 0


def test_activation_flows_from_the_part_to_the_whole() -> None:
    class Flow(nn.Module):
        """A label's activation everywhere is that of the brightest pixel."""

        def forward(self, images: Tensor) -> Tensor:
            one = F.adaptive_max_pool2d(images, 1).expand_as(images) + 0.01 * images
            return torch.cat((torch.full_like(one, 0.9), one), 1)

    images = torch.full((1, 1, 8, 8), 0.5)
    images[0, 0, 2, 3] = 2.0
    labels = torch.zeros(1, 8, 8, dtype=torch.long)
    labels[0, 2:6] = 1
    parts = salient_parts(Flow(), images, labels, label=1, share=1 / 32, fill="zero")
    assert parts.region[0].nonzero().tolist() == [[2, 3]]
    row = parts.rows()[0]
    assert row["lost"] == pytest.approx(1.5)
    assert row["held"] == pytest.approx(2.005)
    assert row["kept"] == 0.0
    assert (row["iou_before"], row["iou_after"]) == (pytest.approx(31 / 63), 0.0)
    assert row["gained"] == 0.0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": "net"}, TypeError, "model"),
        ({"images": torch.zeros(16, 16)}, ValueError, "images"),
        ({"images": torch.zeros(2, 3, 16, 16, dtype=torch.uint8)}, TypeError, "images"),
        ({"labels": torch.zeros(1, 16, 16, dtype=torch.long)}, ValueError, "labels"),
        ({"labels": torch.full((2, 16, 16), 9)}, ValueError, "labels.*9 at position"),
        ({"labels": torch.full((2, 16, 16), 255)}, ValueError, "labels.*none"),
        ({"label": 4}, ValueError, "label"),
        ({"label": "dog"}, TypeError, "label"),
        ({"label": 2, "labels": torch.zeros(2, 16, 16, dtype=torch.long)}, ValueError, "label 2"),
        ({"region": "face"}, ValueError, "region"),
        ({"share": 2.0}, ValueError, "share"),
        ({"ignore_index": 0.5}, TypeError, "ignore_index"),
    ],
)
def test_bad_input_is_named_and_the_model_left_alone(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    model, images, labels = problem()
    before = snapshot(model)
    given = {"model": model, "images": images, "labels": labels, **change}
    with pytest.raises(error, match=message):
        salient_parts(given.pop("model"), given.pop("images"), given.pop("labels"), **given)
    assert_same(snapshot(model), before)


def test_the_figure_has_a_row_per_object() -> None:
    model, images, labels = problem()
    parts = salient_parts(model, images, labels, label=0)
    colors, pictures = torch.randint(0, 255, (CLASSES, 3), dtype=torch.uint8), torch.rand(2, 3, 16, 16)
    figure = parts.figure(classes=list("abcd"), colors=colors, pictures=pictures)
    panels = [axis for axis in figure.axes if axis.images and axis.get_title()]
    assert len(panels) == 4 * len(parts) == 8
    assert panels[4].get_title() == "a"
    named = {text.get_text() for text in figure.legends[0].get_texts()}
    assert named >= {"hidden region", *("abcd"[c] for c in parts.without.unique().tolist())}


@pytest.mark.parametrize("channels", [3, 1])
def test_the_figure_needs_neither_names_nor_pictures_in_range(channels: int) -> None:
    model, images, labels = problem()
    if channels == 1:
        model.body[0] = nn.Conv2d(1, 8, 3, 2, 1).double()
        images = images[:, :1]
    figure = salient_parts(model, images[:1], labels[:1], label=0).figure(title="Without")
    panel = figure.axes[0]
    assert panel.get_title() == "label 0"
    assert all(0 <= image.get_array().min() <= image.get_array().max() <= 1 for image in panel.images)
    figure.canvas.draw()


def test_activation_reads_every_pixels_own_logit() -> None:
    logits, labels = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4))
    logits[0, 0, 0, 0] = torch.nan
    labels[0, 0, 0] = 0
    found = activation(logits, labels)
    for n, y, x in itertools.product(range(2), range(4), range(4)):
        torch.testing.assert_close(found[n, y, x], torch.nan_to_num(logits[n, labels[n, y, x], y, x]))
