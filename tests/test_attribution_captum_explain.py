"""`explain`: its defaults, its precision, its errors, and a model that nothing has happened to."""

import warnings
from typing import Any

import captum.attr as ca
import pytest
import torch
from attribution_cases import LABELS, METHODS, QUICK, SIZE, Net, busy, images, regions
from model_state import assert_same, snapshot
from torch import Tensor, nn

from perpixel.attribution import explain

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is not valid for this network"),
    pytest.mark.filterwarnings(r"ignore:\s*(Input Tensor 0 did not|Setting (forward|backward))"),  # captum by hand
]


def test_no_pass_holds_more_images_than_asked_for() -> None:
    sizes: list[int] = []
    net, x = Net("out"), images()
    net.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    for kind in ("IntegratedGradients", "Occlusion", "FeatureAblation", "LayerConductance", "ShapleyValueSampling"):
        explain(net, x, 1, region=regions(), method=kind)
    explain(net, x, 1, region=regions(), nt_samples=20, n_steps=5)
    assert max(sizes) <= 8
    explain(net, x, 1, region=regions(), internal_batch_size=30, n_steps=10)
    assert max(sizes) == 30
    sizes.clear()
    explain(net, x, 1, region=regions(), internal_batch_size=2, n_steps=4)
    assert max(sizes) == 2


def test_many_images_are_explained_in_groups_and_large_ones_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x, labels = Net("out"), images(11), torch.arange(11) % 4
    region = regions().repeat(4, 1, 1)[:11]
    sizes: list[int] = []
    net.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    bases = images(11, seed=5)
    options: dict[str, Any] = {"n_steps": 3, "baselines": bases}
    found = explain(net, x, labels, region=region, **options)
    assert max(sizes) <= 8
    for n in (7, 8):
        alone = explain(net, x[[n]], int(labels[n]), region=region[n], n_steps=3, baselines=bases[[n]])
        torch.testing.assert_close(found.values[[n]], alone.values)
        torch.testing.assert_close(found.delta[[n]], alone.delta, rtol=1e-5, atol=1e-7)
    sampled: dict[str, Any] = {"method": "DeepLiftShap", "baselines": images(11, seed=6)}
    drawn = explain(net, x, labels, region=region, **sampled)
    alone = explain(net, x[[9]], int(labels[9]), region=region[9], **sampled)
    torch.testing.assert_close(drawn.values[[9]], alone.values)
    monkeypatch.setattr("perpixel.attribution.captum.options.PIXELS", 12 * 16 * 2)
    sizes.clear()
    small = explain(net, x, labels, region=region, **options)
    assert max(sizes) == 2
    torch.testing.assert_close(small.values, found.values)


def test_what_came_from_inference_mode_can_be_explained() -> None:
    net = Net("out")
    with torch.inference_mode():
        x, labels, region = images() + 0, LABELS + 0, net(images())["out"].argmax(1) >= 0
        inside = explain(net, x, labels, region=region, n_steps=2, score="margin")
    outside = explain(net, x, labels, region=region, n_steps=2, score="margin")
    torch.testing.assert_close(inside.values, outside.values)
    assert inside.values.abs().sum() > 0
    assert not inside.region.is_inference()


def test_the_default_region_is_the_prediction() -> None:
    net, x = Net("out"), images()
    predicted = net(x)["out"].argmax(1)
    label = int(predicted.flatten().mode().values)
    found = explain(net, x, label, n_steps=2)
    assert torch.equal(found.region, predicted == label)
    assert found.label == label
    assert found.size == SIZE


def test_a_region_on_the_grid_comes_back_at_image_size() -> None:
    net, x = Net(grid=True), images()
    coarse = torch.zeros(3, 6, 8, dtype=torch.bool)
    coarse[:, 2:4, 3:5] = True
    found = explain(net, x, 1, region=coarse, method="Saliency")
    assert torch.equal(found.region, coarse.repeat_interleave(2, 1).repeat_interleave(2, 2))
    assert 0 < float(found.context_share()[0]) < 1


def test_precision() -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        net, x = Net("out").to(dtype), images().to(dtype)
        for kind in ("IntegratedGradients", "Occlusion", "LayerGradCam", "NoiseTunnel"):
            values = explain(net, x, 1, region=regions(), method=kind).values
            assert values.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            assert values.shape == x.shape
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert explain(Net("out").float(), images().float(), 1, region=regions(), n_steps=2).values.isfinite().all()
    with torch.no_grad():
        assert explain(Net("out"), images(), 1, region=regions(), n_steps=2).values.abs().sum() > 0


@pytest.mark.parametrize("kind", [name for name in METHODS if name not in ("KernelShap", "Lime")])
def test_model_and_images_are_left_as_they_were(kind: str) -> None:
    net, x = busy(), images().requires_grad_()
    before, memory = snapshot(net), {name: p.data_ptr() for name, p in net.named_parameters()}
    values = x.detach().clone()
    explain(net, x, 1, region=regions(), method=kind, **QUICK.get(kind, {}))
    assert_same(snapshot(net), before)
    assert memory == {name: p.data_ptr() for name, p in net.named_parameters()}
    assert x.requires_grad
    assert x.grad is None
    assert torch.equal(x, values)


class FailsBackward(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        def fail(_: Tensor) -> None:
            raise RuntimeError("backward failed")

        x = x.clone()
        if x.requires_grad:
            x.register_hook(fail)
        return x


@pytest.mark.parametrize(
    "kind", ["IntegratedGradients", "DeepLift", "GuidedBackprop", "LRP", "LayerGradCam", "NoiseTunnel"]
)
def test_failures_leave_nothing_behind(kind: str) -> None:
    net, x = busy(), images().requires_grad_()
    net.features.insert(4, FailsBackward())
    before = snapshot(net)
    with pytest.raises(RuntimeError, match=r"backward failed.*Choose"):
        explain(net, x, 1, region=regions(), method=kind, layer="features.0" if "Layer" in kind else None)
    with pytest.raises(ValueError, match="label"):
        explain(net, x, 9, region=regions(), method=kind)
    with pytest.raises(RuntimeError):
        explain(net, x.repeat(1, 2, 1, 1), 1, region=regions(), method=kind)
    assert_same(snapshot(net), before)
    assert x.requires_grad


class NotANumber(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :2] * 0 + torch.nan


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"method": "IntegratedGradient"}, ValueError, "Did you mean IntegratedGradients"),
        ({"method": "nonsense!"}, ValueError, "method"),
        ({"method": 3}, TypeError, "method"),
        ({"method": nn.ReLU}, TypeError, "method"),
        ({"method": ca.NeuronGradient}, ValueError, "explains no score"),
        ({"method": ca.LayerActivation}, ValueError, "explains no score"),
        ({"n_step": 3}, TypeError, "n_steps"),
        ({"target": 3}, TypeError, "label= and region="),
        ({"additional_forward_args": 3}, TypeError, "label= and region="),
        ({"method": "KernelShap", "return_input_shape": False}, TypeError, "image size"),
        ({"layer": "features.0"}, TypeError, "layer"),
        ({"method": "LayerGradCam", "layer": "features.9"}, ValueError, "named_modules"),
        ({"method": "LayerGradCam", "layer": nn.ReLU()}, ValueError, "named_modules"),
        ({"method": "LayerGradCam", "layer": 3}, TypeError, "layer"),
        ({"method": "LayerLRP"}, ValueError, "LayerLRP"),
        ({"baselines": "black"}, ValueError, "'zero', 'mean', 'blur'"),
        ({"baselines": "inpaint"}, ValueError, "Influence"),
        ({"baselines": torch.zeros(5)}, ValueError, "broadcasts"),
        ({"baselines": torch.full((3, 1, 1), torch.nan)}, ValueError, "finite"),
        ({"baselines": [0]}, TypeError, "baselines"),
        ({"method": "Saliency", "baselines": "zero"}, TypeError, "baselines"),
        ({"method": "DeepLiftShap", "baselines": "zero"}, ValueError, "at least two"),
        ({"method": "GradientShap", "baselines": torch.zeros(2, 3, 4, 4)}, ValueError, "baselines"),
        ({"region": torch.zeros(3, *SIZE, dtype=torch.bool)}, ValueError, "region"),
        ({"images": torch.zeros(3, *SIZE)}, ValueError, "images"),
        ({"images": torch.zeros(0, 3, *SIZE)}, ValueError, "images"),
        ({"images": torch.zeros(3, 3, *SIZE)}, TypeError, "float64"),
        ({"images": torch.zeros(3, 3, *SIZE, dtype=torch.long)}, TypeError, "images"),
        ({"model": lambda x: x}, TypeError, "model"),
        ({"model": nn.Flatten()}, ValueError, "nothing dense"),
        ({"model": NotANumber()}, ValueError, "NaN"),
        ({"method": "Occlusion", "sliding_window_shapes": (3, 40, 4)}, ValueError, "cannot exceed"),
        ({"n_steps": -1}, ValueError, "n_steps"),
        ({"internal_batch_size": 0}, ValueError, "internal_batch_size"),
        ({"nt_samples": 2.5}, TypeError, "nt_samples"),
        ({"nt_samples": 0}, ValueError, "nt_samples"),
        ({"nt_type": "smooth"}, ValueError, "smooth"),
        ({"method": "Occlusion", "perturbations_per_eval": -3}, ValueError, "perturbations_per_eval"),
        ({"method": "FeaturePermutation", "images": images(1), "region": regions(1)}, ValueError, "FeaturePermutation"),
    ],
)
def test_bad_arguments_say_what_is_wrong(wrong: dict[str, Any], error: type[Exception], message: str) -> None:
    given: dict[str, Any] = {"model": Net("out"), "images": images(), "label": 1, "region": regions(), **wrong}
    with pytest.raises(error, match=message):
        explain(given.pop("model"), given.pop("images"), given.pop("label"), **given)


def test_progress_is_captums(capsys: pytest.CaptureFixture[str]) -> None:
    explain(Net("out"), images(1), 1, region=regions(1), method="Occlusion", show_progress=True)
    assert "Occlusion attribution" in capsys.readouterr().err


def test_captums_own_warnings_are_not_passed_on() -> None:
    net = Net("out")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in ("IntegratedGradients", "DeepLift", "GuidedBackprop", "LRP", "LayerConductance", "Saliency"):
            explain(net, images(), 1, region=regions(), method=kind)


def test_lime_and_kernel_shap_without_scikit_learn_say_so() -> None:
    try:
        import sklearn  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError, match="pip install scikit-learn"):
            explain(Net("out"), images(), 1, region=regions(), method="KernelShap")
    else:
        torch.manual_seed(0)
        found = explain(Net("out"), images(), LABELS, region=regions(), method="KernelShap")
        assert found.values.isfinite().all()
