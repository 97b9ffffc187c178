"""What holds for every loss with a weight map of its own."""

import copy
import io
import math
import re
from typing import Any

import pytest
import torch
from attach_cases import CLASSES, hooks
from model_state import assert_same, snapshot
from torch import Tensor, nn
from torch.nn import functional as F
from weight_map_cases import LOSSES, StubLoss, check_map, problem, stub_scores, weights_of

from perpixel import weighted_cross_entropy
from perpixel.weighting import WeightMapLoss

EVERY_LOSS = pytest.mark.parametrize("make", [StubLoss, *LOSSES.values()], ids=["stub", *LOSSES])


def train_step(loss: WeightMapLoss, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return loss(model, images, model(images)["out"], labels)


# --- the map and the loss


@EVERY_LOSS
def test_the_map_has_mean_one_and_bounds_and_the_loss_is_the_weighted_cross_entropy(make: Any) -> None:
    model, images, logits, labels = problem(torch.float64, n=3)
    labels[1] = 255  # an image without any valid pixel
    loss = make()
    weights = loss.weight_map(model, images, logits, labels)
    check_map(weights, labels)
    assert weights[labels != 255].std() > 0.01
    value = loss(model, images, logits, labels)
    torch.testing.assert_close(value, weighted_cross_entropy(logits, labels, weights))
    entropies = F.cross_entropy(logits, labels, ignore_index=255, reduction="none")
    by_hand = (
        sum(weights[p] * entropies[p] for p in [tuple(i) for i in (labels != 255).nonzero().tolist()]) / weights.sum()
    )
    torch.testing.assert_close(value, by_hand)


def test_weights_follow_from_scores_by_the_formula() -> None:
    model, images, logits, labels = problem(torch.float64)
    found = StubLoss(strength=2.0).weight_map(model, images, logits, labels)
    torch.testing.assert_close(found, weights_of(stub_scores(model, images, labels), labels))
    flat = StubLoss(strength=0.0)
    torch.testing.assert_close(flat.weight_map(model, images, logits, labels), (labels != 255).double())
    plain = F.cross_entropy(logits, labels, ignore_index=255)
    torch.testing.assert_close(flat(model, images, logits, labels), plain)


def test_per_label_every_label_keeps_its_total_weight() -> None:
    model, images, logits, labels = problem(torch.float64)
    labels = labels.masked_fill(labels == 1, 255)
    raw = 1 + 2 * stub_scores(model, images, labels)
    expected = torch.zeros_like(raw)
    for c in (0, 2, 3):
        expected[labels == c] = raw[labels == c] / raw[labels == c].mean()
    weights = StubLoss(strength=2.0, per_label=True).weight_map(model, images, logits, labels)
    torch.testing.assert_close(weights, expected)
    check_map(weights, labels, strength=2.0)


@EVERY_LOSS
@pytest.mark.parametrize("case", ["first class", "last class", "all void", "wild at void", "autocast", "bfloat16"])
def test_the_map_of_an_odd_batch(make: Any, case: str) -> None:
    model, images, logits, labels = problem(torch.bfloat16 if case == "bfloat16" else torch.float32)
    if case == "all void":
        labels = torch.full_like(labels, 255)
    elif "class" in case:
        labels = labels.masked_fill(labels != 255, 0 if case == "first class" else CLASSES - 1)
    elif case == "wild at void":
        logits = logits.detach().clone()
        logits[0, :, 0] = torch.nan
        logits[1, 0, 0] = 1e38
        logits[1, 1, 0] = -torch.inf
    with torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
        check_map(make().weight_map(model, images, logits, labels), labels)
        value = make()(model, images.bfloat16() if case == "autocast" else images, logits, labels)
    assert torch.isfinite(value)
    assert value.dtype == torch.float32


@EVERY_LOSS
def test_labels_at_the_size_of_small_logits_or_of_the_images_and_of_no_other(make: Any) -> None:
    model, images, logits, _ = problem()
    grid = F.interpolate(logits, size=(8, 10), mode="bilinear")
    loss = make()
    if make is not StubLoss:
        small = torch.randint(0, CLASSES, (2, 8, 10))
        small[0, :3] = 255
        weights = make().weight_map(model, images, grid, small)
        check_map(weights, small)
        torch.testing.assert_close(loss(model, images, grid, small), weighted_cross_entropy(grid, small, weights))
    for size in ((8, 8), (15, 16), (32, 32)):
        wrong = torch.zeros(2, *size, dtype=torch.int64)
        message = rf"labels: expected the images' size \(16, 16\) or the logits' \(8, 10\), got {re.escape(str(size))}"
        for call in (loss, loss.weight_map):
            with pytest.raises(ValueError, match=message):
                call(model, images, grid, wrong)


@EVERY_LOSS
def test_logits_of_another_size_than_the_models_output(make: Any) -> None:
    model, images, logits, labels = problem()
    grid = model.classifier(model._neck(model.body(images)))
    expected = make().weight_map(model.eval(), images, logits, labels)
    for other in (grid, F.interpolate(logits, size=(40, 24), mode="bilinear")):
        loss = make()
        weights = loss.weight_map(model, images, other, labels)
        check_map(weights, labels)
        assert weights.shape == expected.shape
        at_size = F.interpolate(other, size=(16, 16), mode="bilinear")
        torch.testing.assert_close(loss(model, images, other, labels), weighted_cross_entropy(at_size, labels, weights))


# --- the schedule


def test_a_batch_seen_at_the_last_refresh_gets_its_very_map() -> None:
    model, images, logits, labels = problem()
    loss = StubLoss(every=3)
    maps = []
    for _ in range(7):
        maps.append(loss.weight_map(model, images, logits, labels))
        with torch.no_grad():
            model.body[0].weight += 0.1
    assert loss.refreshes == 3
    assert loss.steps == 7
    for first, then in ((0, 1), (0, 2), (3, 4), (3, 5)):
        assert torch.equal(maps[first], maps[then])
    assert not torch.equal(maps[0], maps[3])
    assert not torch.equal(maps[3], maps[6])


def test_another_batch_in_between_gets_the_mean_score_of_its_labels() -> None:
    model, images, logits, labels = problem(torch.float64)
    labels = labels.masked_fill(labels == 3, 2)  # label 3 is not seen
    loss = StubLoss(every=2, strength=2.0)
    scores = stub_scores(model, images, labels)
    loss.weight_map(model, images, logits, labels)
    means = [float(scores[labels == c].mean()) for c in range(3)]
    other = torch.randint(0, CLASSES, labels.shape)
    other[1, 2] = 255
    seen = [means[c] for c in other.flatten().tolist() if c < 3]
    means.append(sum(seen) / len(seen))
    expected = torch.tensor([means[c] if c < 4 else 0.0 for c in other.flatten().tolist()]).view(other.shape).double()
    found = loss.weight_map(model, torch.randn_like(images), logits, other)
    torch.testing.assert_close(found, weights_of(expected, other), rtol=1e-6, atol=1e-6)
    assert loss.refreshes == 1


def test_a_kept_map_is_not_given_to_another_model() -> None:
    model, images, logits, labels = problem()
    other = copy.deepcopy(model)
    with torch.no_grad():
        next(other.parameters()).add_(0.5)
    loss = StubLoss(every=10)
    first = loss.weight_map(model, images, logits, labels)
    loss_copy, model_copy = copy.deepcopy((loss, model))
    averaged = torch.optim.swa_utils.AveragedModel(model_copy)
    assert torch.equal(loss_copy.weight_map(averaged, images, logits, labels), first)
    assert loss_copy.refreshes == 1
    fresh = StubLoss().weight_map(other, images, logits, labels)
    assert torch.equal(loss.weight_map(other, images, logits, labels), fresh)
    assert not torch.equal(fresh, first)
    assert torch.equal(loss.weight_map(other, images, logits, labels), fresh)
    assert loss.refreshes == 2


@pytest.mark.parametrize("change", ["pixel", "sign of zero", "label", "order", "fewer", "size"])
def test_a_batch_that_differs_in_anything_is_another(change: str) -> None:
    model, images, logits, labels = problem()
    images[0, 0, 5, 5] = 0.0
    loss = StubLoss(every=10)
    first = loss.weight_map(model, images, logits, labels)
    x, y, z = images.clone(), labels.clone(), logits
    if change == "pixel":
        x[1, 2, 7, 7] = torch.nextafter(x[1, 2, 7, 7], torch.tensor(9.0))
    elif change == "sign of zero":
        x[0, 0, 5, 5] = -0.0
    elif change == "label":
        y[0, 3, 3] = (y[0, 3, 3] + 1) % CLASSES
    elif change == "order":
        x, y = x.flip(0), y.flip(0)
    elif change == "fewer":
        x, y, z = x[:1], y[:1], z[:1]
    else:
        x, y, z = x[..., :8, :], y[:, :8], z[..., :8, :]
    found = loss.weight_map(model, x, z, y)
    assert loss.refreshes == 1
    check_map(found, y)
    assert found.shape != first.shape or not torch.equal(found, first)
    assert len(found[y == 1].unique()) == 1  # one weight per label


def test_a_refresh_without_a_label_keeps_what_was_known_of_it() -> None:
    model, images, logits, labels = problem()
    loss = StubLoss(every=2)
    loss.weight_map(model, images, logits, labels)
    before = loss.state_dict()["label_scores"]
    loss.weight_map(model, images, logits, labels)
    loss.weight_map(model, images, logits, torch.full_like(labels, 255))
    assert torch.equal(loss.state_dict()["label_scores"], before)
    loss.weight_map(model, images, logits, labels)
    loss.weight_map(model, images + 1, logits, torch.zeros_like(labels))
    after = loss.state_dict()["label_scores"]
    assert torch.equal(after[1:], before[1:])
    assert after[0] != before[0]


def test_only_training_advances_the_schedule() -> None:
    model, images, _, labels = problem()
    loss = StubLoss(every=4)
    train_step(loss, model, images, labels)
    kept = copy.deepcopy(loss.state_dict())
    other = torch.randn_like(images)
    with torch.no_grad():
        fresh = train_step(loss, model, other, labels)
        assert torch.equal(train_step(loss, model, other, labels), fresh)
    with torch.inference_mode():
        torch.testing.assert_close(train_step(loss, model, other, labels), fresh)
    loss.eval()
    torch.testing.assert_close(train_step(loss, model, other, labels).detach(), fresh)
    check_map(loss.weight_map(model, other, model(other)["out"], labels), labels)
    assert_same(loss.state_dict(), kept)
    assert loss.refreshes == 6
    loss.train()
    train_step(loss, model, other, labels).backward()
    assert loss.steps == 2
    assert loss.refreshes == 6


@pytest.mark.parametrize("how", ["deepcopy", "state_dict", "file"])
def test_the_schedule_survives_checkpoints(how: str) -> None:
    model, images, logits, labels = problem()
    loss = StubLoss(every=3)
    assert set(loss.state_dict()) == {"steps"}
    for _ in range(2):
        loss.weight_map(model, images, logits, labels)
    if how == "deepcopy":
        other = copy.deepcopy(loss)
    else:
        state = loss.state_dict()
        if how == "file":
            file = io.BytesIO()
            torch.save(state, file)
            file.seek(0)
            state = torch.load(file, weights_only=True)
        other = StubLoss(every=3)
        assert not any(other.load_state_dict(state))
    other.refreshes = loss.refreshes = 0
    other_images = torch.randn_like(images)
    for x in (images, images, other_images):
        with torch.no_grad():
            model.body[0].weight += 0.1
        found = [one.weight_map(model, x, logits, labels) for one in (loss, other)]
        assert torch.equal(*found)
        assert loss.refreshes == other.refreshes
    assert loss.refreshes == 1
    parent = nn.ModuleDict({"term": StubLoss(every=3)})
    parent.load_state_dict({f"term.{name}": value for name, value in loss.state_dict().items()})
    assert parent["term"].steps == 5


def test_every_one_keeps_nothing_and_more_keeps_no_images() -> None:
    model, images, logits, labels = problem()
    once, rarely = StubLoss(), StubLoss(every=5)
    for loss in (once, rarely):
        loss.weight_map(model, images, logits, labels)
    assert set(once.state_dict()) == {"steps"}
    assert set(rarely.state_dict()) == {"steps", "kept_map", "kept_key", "label_scores"}
    assert rarely.state_dict()["kept_key"].shape == (2, 2)
    assert [name for name, _ in rarely.named_buffers()] == ["steps"]


def test_a_model_of_other_classes_is_refused() -> None:
    model, images, logits, labels = problem()
    loss = StubLoss(every=3)
    loss.weight_map(model, images, logits, labels)
    with pytest.raises(ValueError, match="4 classes as at the last refresh"):
        loss.weight_map(model, images, torch.cat((logits, logits), 1), labels)


# --- the model is left alone


class Recording:
    """A hook of a criterion."""

    only_records = True

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, *_: object) -> None:
        self.calls += 1


@EVERY_LOSS
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(make: Any, fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, images, logits, labels = problem()
    model.dropout = nn.Dropout(0.5)
    model.body[1].eval()
    logits.sum().backward()
    recording = Recording()
    for layer in (model, model.body[0], model.classifier):
        layer.register_forward_hook(recording)
        layer.register_forward_pre_hook(recording)
        layer.register_forward_hook(lambda *_: None)
    before, random, loss = snapshot(model), torch.get_rng_state(), make()
    if fails:
        scores = loss.scores
        monkeypatch.setattr(loss, "scores", lambda *a: scores(*a) / "no")
        with pytest.raises(TypeError):
            loss.weight_map(model, images, logits.detach(), labels)
    else:
        loss.weight_map(model, images, logits.detach(), labels)
    assert_same(snapshot(model), before)
    assert torch.equal(torch.get_rng_state(), random)
    assert not recording.calls
    assert not images.requires_grad
    model(images)
    assert recording.calls == 6
    assert len(list(hooks(model))) == 9


def test_hooks_a_model_works_through_stay_on() -> None:
    model, images, _, labels = problem()
    model.eval()
    expected = LOSSES["debt"]().weight_map(model, images, model(images)["out"], labels)
    kept = model.body[0].weight.detach().clone()
    with torch.no_grad():
        model.body[0].weight.mul_(2.0)
        model.body[0].bias.mul_(2.0)
    model.body[0].register_forward_hook(lambda layer, inputs, output: output / 2)
    assert not torch.equal(model.body[0].weight, kept)
    found = LOSSES["debt"]().weight_map(model, images, model(images)["out"], labels)
    torch.testing.assert_close(found, expected)


# --- bad input


@EVERY_LOSS
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": "net"}, TypeError, "model"),
        ({"images": torch.zeros(2, 3, 16, 16, dtype=torch.uint8)}, TypeError, "images"),
        ({"images": torch.zeros(3, 16, 16)}, ValueError, "images"),
        ({"images": torch.zeros(1, 3, 16, 16)}, ValueError, "images.*logits of 2"),
        ({"labels": torch.zeros(2, 1, 16, 16, dtype=torch.long)}, ValueError, "squeeze"),
    ],
)
def test_bad_input_is_named(make: Any, change: dict[str, Any], error: type[Exception], message: str) -> None:
    model, images, logits, labels = problem()
    inputs = {"model": model, "images": images, "logits": logits, "labels": labels, **change}
    before = snapshot(model)
    for call in (make(), make().weight_map):
        with pytest.raises(error, match=message):
            call(**inputs)
    assert_same(snapshot(model), before)


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("every", 0, ValueError),
        ("every", 1.5, TypeError),
        ("every", True, TypeError),
        ("strength", -0.1, ValueError),
        ("strength", math.inf, ValueError),
        ("per_label", 1, TypeError),
    ],
)
def test_bad_options_are_named(option: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=option):
        StubLoss(**{option: value})
