"""`RegionTarget`: its scores, its frozen regions, its errors."""

import copy
import itertools
from typing import Any

import captum.attr as ca
import pytest
import torch
from attribution_cases import LABELS, SIZE, Linear, Net, images, regions
from model_state import assert_same, snapshot
from torch import Tensor, nn
from torch.nn import functional as F

from perpixel.attribution.captum.target import RegionTarget

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:captum.*")


def scores_of(target: RegionTarget, x: Tensor) -> Tensor:
    """Of images in order, each with its label and region."""
    return target(x, *target.arguments(x))


def slow_scores(logits: Tensor, labels: list[int], region: Tensor, score: str) -> Tensor:
    """Pixel by pixel, from the definition."""
    totals = torch.zeros(len(labels), dtype=torch.float64)
    for n, label in enumerate(labels):
        for y, x in region[n].nonzero().tolist():
            totals[n] += logits[n, label, y, x]
            if score == "margin":
                totals[n] -= max(float(logits[n, k, y, x]) for k in range(logits.shape[1]) if k != label)
    return totals


@pytest.mark.parametrize("score", ["logit", "margin"])
@pytest.mark.parametrize("form", ["tensor", "out", "logits", "object", "tuple"])
def test_scores_equal_the_slow_loop(form: str, score: str) -> None:
    net, x, region = Net(form), images(), regions()
    plain = Net()
    plain.load_state_dict(net.state_dict())
    with torch.no_grad():
        expected = slow_scores(plain(x), LABELS.tolist(), region, score)
        torch.testing.assert_close(scores_of(RegionTarget(net, LABELS, region, score), x), expected)
        same = slow_scores(plain(x), [2, 2, 2], region[:1].expand(3, -1, -1), score)
        torch.testing.assert_close(RegionTarget(net, 2, region[0], score)(x), same)


@pytest.mark.parametrize("score", ["logit", "margin"])
def test_small_logits_are_brought_to_the_region_or_taken_on_their_grid(score: str) -> None:
    net, x = Net(grid=True), images()
    with torch.no_grad():
        grid = net(x)
        full = F.interpolate(grid, size=SIZE, mode="bilinear", align_corners=False)
        expected = slow_scores(full, LABELS.tolist(), regions(), score)
        torch.testing.assert_close(scores_of(RegionTarget(net, LABELS, regions(), score), x), expected)
        coarse = torch.ones(3, *grid.shape[-2:], dtype=torch.bool)
        expected = slow_scores(grid, LABELS.tolist(), coarse, score)
        torch.testing.assert_close(scores_of(RegionTarget(net, LABELS, coarse, score), x), expected)


@pytest.mark.parametrize("grid", [False, True])
def test_without_region_it_is_where_the_label_is_predicted_on_the_unperturbed_images(grid: bool) -> None:
    net, x, others = Net(grid=grid), images(), images(seed=4)
    with torch.no_grad():
        at = [F.interpolate(net(i), size=SIZE, mode="bilinear", align_corners=False).argmax(1) for i in (x, others)]
    label = int(at[0].flatten().mode().values)
    target = RegionTarget(net, label)
    with pytest.raises(ValueError, match=r"region: expected one that is fixed.*target\.freeze\(images\)"):
        target(x)
    for images_, predicted in zip((x, others), at):  # never those that came first
        assert torch.equal(target.arguments(images_)[1], predicted == label)
    expected = scores_of(RegionTarget(net, label, at[0] == label), torch.zeros_like(x))
    torch.testing.assert_close(target(torch.zeros_like(x), *target.arguments(x)), expected)
    torch.testing.assert_close(scores_of(target.freeze(x), torch.zeros_like(x)), expected)  # kept on purpose
    assert torch.equal(target.region, at[0] == label)
    assert torch.equal(target.freeze(others[:2]).region, at[1][:2] == label)
    with pytest.raises(ValueError, match=r"images: expected as many as.*regions \(2\), got 3 images"):
        target.arguments(x)


def test_explicit_labels_and_regions_come_together_and_a_given_region_is_a_copy() -> None:
    net, x, region = Net(), images(), regions()
    target = RegionTarget(net, LABELS, region)
    expected = scores_of(target, x)
    region[:] = True
    assert torch.equal(scores_of(target, x), expected)
    with pytest.raises(TypeError, match="both, or neither"):
        target(x, LABELS)
    label, region = target.arguments(x)
    for wrong in (label - 1, label + 1, label[:2]):
        with pytest.raises(ValueError, match="label"):
            target(x, wrong, region)
    for wrong in (region[:2], region[:, 1:], region[:, None], region & ~region):
        with pytest.raises(ValueError, match="region"):
            target(x, label, wrong)


def test_a_linear_network_has_its_weights_as_gradient() -> None:
    net, x, region = Linear(), images(), regions()
    expected = torch.zeros_like(x)
    weights = net.conv.weight
    for n, y, column in region.nonzero().tolist():
        for dy, dx in itertools.product(range(3), range(3)):
            row, place = y + dy - 1, column + dx - 1
            if 0 <= row < SIZE[0] and 0 <= place < SIZE[1]:
                expected[n, :, row, place] += weights[LABELS[n], :, dy, dx].detach()
    target = RegionTarget(net, LABELS, region)
    own = {"additional_forward_args": target.arguments(x)}
    torch.testing.assert_close(ca.Saliency(target).attribute(x, abs=False, **own), expected)
    for kind in (ca.InputXGradient, ca.IntegratedGradients, ca.DeepLift, ca.LRP):
        torch.testing.assert_close(kind(target).attribute(x, **own), expected * x, rtol=1e-5, atol=1e-5)


def test_lrp_keeps_the_score_where_there_are_no_biases() -> None:
    net, x = Net(), images()
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.zeros_(layer.bias)
    target = RegionTarget(net, LABELS, regions())
    own = target.arguments(x)
    values, delta = ca.LRP(target).attribute(x, None, own, return_convergence_delta=True)
    torch.testing.assert_close(values.sum((1, 2, 3)), target(x, *own).detach(), rtol=1e-5, atol=1e-5)
    assert float(delta.detach().abs().max()) < 1e-4


def test_gradcheck() -> None:
    net, x = Net("out"), images(2)[:, :, 2:6, 2:6].clone().requires_grad_()
    region = regions(2)[:, 2:6, 2:6]
    for score in ("logit", "margin"):
        target = RegionTarget(net, LABELS[:2], region, score)
        assert torch.autograd.gradcheck(target, (x, *target.arguments(x)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_sums_in_float32(dtype: torch.dtype) -> None:
    net, x = Net().to(dtype), images().to(dtype)
    scores = scores_of(RegionTarget(net, LABELS, regions()), x)
    assert scores.dtype == torch.float32
    exact = scores_of(RegionTarget(net.double(), LABELS, regions()), x.double())
    torch.testing.assert_close(scores.double(), exact, rtol=0.1 if dtype == torch.bfloat16 else 1e-4, atol=0.2)


def test_autocast_and_noise_of_another_dtype() -> None:
    net, x = Net().float(), images().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert scores_of(RegionTarget(net, LABELS, regions()), x).dtype == torch.float32
    low = RegionTarget(net.bfloat16(), LABELS, regions())
    tunnel = ca.NoiseTunnel(ca.Saliency(low))
    own = low.arguments(x.bfloat16())
    values = tunnel.attribute(x.bfloat16(), additional_forward_args=own, nt_samples=2, stdevs=0.1)
    assert values.isfinite().all()


class Classifier(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"label": 7}, ValueError, r"label: expected a class in \[0, 4\)"),
        ({"label": -1}, ValueError, "label"),
        ({"label": 1.0}, TypeError, "label"),
        ({"label": True}, TypeError, "label"),
        ({"label": torch.tensor([0, 1])}, ValueError, r"labels \(2\) and regions \(3\), got 3 images"),
        ({"label": torch.tensor([0, 1, 9])}, ValueError, "label"),
        ({"label": torch.tensor([0, 1, -3])}, ValueError, "label"),
        ({"label": torch.tensor([0.0, 1.0, 2.0])}, TypeError, "label"),
        ({"score": "probability"}, ValueError, "'logit', 'margin'"),
        ({"region": torch.zeros(3, *SIZE, dtype=torch.bool)}, ValueError, r"region.*none in images 0, 1, 2 of 3"),
        ({"region": torch.ones(3, 5, 5, dtype=torch.bool)}, ValueError, "region: expected the output's size"),
        (
            {"region": torch.ones(2, *SIZE, dtype=torch.bool)},
            ValueError,
            r"regions \(2\), got 3 images",
        ),
        ({"region": torch.ones(3, 1, *SIZE, dtype=torch.bool)}, ValueError, r"region\[:, 0\]"),
        ({"region": torch.ones(3, *SIZE)}, TypeError, "bool"),
        ({"region": [[True]]}, TypeError, "region"),
        ({"model": lambda x: x}, TypeError, "model"),
        ({"model": Classifier()}, ValueError, "nothing dense"),
    ],
)
def test_bad_arguments_say_what_is_wrong(wrong: dict[str, Any], error: type[Exception], message: str) -> None:
    given: dict[str, Any] = {"model": Net(), "label": 1, "region": regions(), "score": "logit", **wrong}
    with pytest.raises(error, match=message):
        scores_of(RegionTarget(**given), images())


def test_a_label_that_is_nowhere_predicted_is_an_empty_region() -> None:
    net = Net()
    nn.init.constant_(net.classifier.bias, -100.0)
    with torch.no_grad():
        net.classifier.bias[0] = 100.0
    with pytest.raises(ValueError, match=r"none in images 0, 1, 2 of 3, .*image 0 has 0, not 2; image 1 has 0, not 2"):
        RegionTarget(net, 2).arguments(images())


def test_nan_is_named() -> None:
    net, x = Net(), images()
    x[1] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        RegionTarget(net, LABELS, regions()).freeze(x)


def test_the_model_is_run_in_evaluation_mode_and_left_as_it_was() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5)).double()
    net[2].eval()
    net(images())[:, 0].sum().backward()
    before = snapshot(net)
    target = RegionTarget(net, 1, regions()[0])
    x = images()
    scores = target(x)
    torch.testing.assert_close(scores, target(x), rtol=0, atol=0)
    ca.IntegratedGradients(target).attribute(x, n_steps=3)
    with pytest.raises(RuntimeError):
        target(images()[:, :2])
    assert_same(snapshot(net), before)
    assert not x.requires_grad


def test_state_is_the_models_and_copies_are_independent() -> None:
    net = Net()
    target = RegionTarget(net, LABELS, regions())
    assert list(target.state_dict()) == [f"model.{name}" for name in net.state_dict()]
    twin = copy.deepcopy(target)
    with torch.no_grad():
        net.classifier.bias += 1
    assert not torch.equal(scores_of(twin, images()), scores_of(target, images()))
    assert "label=[0, 3, 1]" in repr(target)
