"""`explain`: captum's values by every method, its defaults, its errors, and a model that nothing has happened to."""

import copy
import inspect
import warnings
from typing import Any

import captum.attr as ca
import numpy as np
import pytest
import torch
from attribution_cases import LABELS, SIZE, Linear, Net, images, regions, square_features
from test_model_untouched import assert_same, snapshot
from torch import Tensor, nn
from torch.nn import functional as F

from perpixel.attribution import Attribution, RegionTarget, explain
from perpixel.attribution.captum.methods import NAMES as ALL_NAMES

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is not valid for this network"),
    pytest.mark.filterwarnings(r"ignore:\s*(Input Tensor 0 did not|Setting (forward|backward))"),  # captum by hand
]
NAMES = [name for name in ALL_NAMES if hasattr(ca, name)]  # of this captum
WINDOW = {"sliding_window_shapes": (3, 4, 4), "strides": (3, 3, 3)}
DRAWN = torch.randn(2, 3, *SIZE, dtype=torch.float64)
BY_HAND: list[tuple[str, dict[str, Any], dict[str, Any]]] = [  # name, options of both, what explain adds by default
    ("IntegratedGradients", {"n_steps": 5}, {}),
    ("Saliency", {}, {"abs": False}),
    ("Saliency", {"abs": True}, {}),
    ("InputXGradient", {}, {}),
    ("DeepLift", {}, {}),
    ("DeepLiftShap", {"baselines": DRAWN}, {}),
    ("GuidedBackprop", {}, {}),
    ("Deconvolution", {}, {}),
    ("LRP", {}, {}),
    ("Occlusion", WINDOW, {}),
    ("Occlusion", {"sliding_window_shapes": (3, 8, 8), "perturbations_per_eval": 9}, {}),
    ("FeatureAblation", {"feature_mask": square_features()}, {}),
]
LAYERED: list[tuple[str, dict[str, Any]]] = [
    ("LayerGradCam", {}),
    ("LayerGradCam", {"relu_attributions": True}),
    ("LayerGradientXActivation", {}),
    ("LayerIntegratedGradients", {"n_steps": 4}),
    ("LayerConductance", {"n_steps": 4}),
    ("InternalInfluence", {"n_steps": 4}),
    ("LayerDeepLift", {}),
    ("LayerDeepLiftShap", {"baselines": DRAWN}),
    ("LayerLRP", {}),
]


class ByHand(nn.Module):
    """What a user writes without perpixel: the score, tensor by tensor, for images in order."""

    def __init__(self, net: nn.Module, label: int, region: Tensor) -> None:
        super().__init__()
        self.net, self.label, self.region = net, label, region

    def forward(self, x: Tensor) -> Tensor:
        return (self.net(x)["out"][:, self.label] * self.region).sum((1, 2))


@pytest.mark.parametrize(("kind", "options", "added"), BY_HAND, ids=lambda v: v if isinstance(v, str) else "")
def test_values_equal_captum_called_by_hand(kind: str, options: dict[str, Any], added: dict[str, Any]) -> None:
    net, x, region = Net("out"), images(), regions()[1]
    found = explain(net, x, 2, region=region, method=kind, **options)
    by_hand = ByHand(net, 2, region)
    if kind == "LRP":  # its sum has to be a layer with the epsilon rule
        by_hand = RegionTarget(net, 2, region)
    expected = getattr(ca, kind)(by_hand).attribute(x.clone(), **options, **added)
    torch.testing.assert_close(found.values, expected.detach().double(), rtol=1e-6, atol=1e-9)
    assert found.values.shape == x.shape
    assert found.method == kind
    assert torch.equal(found.region, region.expand(3, -1, -1))


@pytest.mark.parametrize(("kind", "options"), LAYERED, ids=lambda v: v if isinstance(v, str) else "")
def test_layer_values_are_summed_over_channels_and_upsampled(kind: str, options: dict[str, Any]) -> None:
    net, x, region = Net("out"), images(), regions()[1]
    found = explain(net, x, 2, region=region, method=kind, layer="features.3", **options)
    target = RegionTarget(net, 2, region) if "LRP" in kind else ByHand(net, 2, region)
    map_ = getattr(ca, kind)(target, net.features[3]).attribute(x.clone(), **options)
    map_ = (map_[0] if isinstance(map_, tuple) else map_).detach().sum(1, keepdim=True)
    expected = F.interpolate(map_, size=SIZE, mode="bilinear", align_corners=False).expand_as(x)
    torch.testing.assert_close(found.values, expected, rtol=1e-6, atol=1e-9)
    assert found.layer == "features.3"
    torch.testing.assert_close(found.pixels, expected[:, 0], rtol=1e-6, atol=1e-9)


ALL: dict[str, dict[str, Any]] = {
    "IntegratedGradients": {"n_steps": 3},
    "LayerIntegratedGradients": {"n_steps": 3},
    "LayerConductance": {"n_steps": 3},
    "InternalInfluence": {"n_steps": 3},
    "LayerLRP": {"layer": "features.3"},
    "ShapleyValues": {"feature_mask": (square_features(8))},
}
RANDOM = {"FeaturePermutation", "LayerFeaturePermutation", "GradientShap", "LayerGradientShap", "KernelShap", "Lime"}
RANDOM |= {"NoiseTunnel", "ShapleyValueSampling"}


@pytest.mark.parametrize("kind", [name for name in NAMES if name not in RANDOM])
def test_a_batch_equals_its_images_one_by_one(kind: str) -> None:
    net, x, region = Net("out"), images(), regions()
    options = ALL.get(kind, {})
    whole = explain(net, x, LABELS, region=region, method=kind, **options)
    for n in range(3):
        alone = explain(net, x[n : n + 1], int(LABELS[n]), region=region[n], method=kind, **options)
        torch.testing.assert_close(whole.values[n : n + 1], alone.values, rtol=1e-6, atol=1e-9)
        if whole.delta is not None:
            torch.testing.assert_close(whole.delta[n : n + 1], alone.delta, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", ["GradientShap", "LayerGradientShap", "ShapleyValueSampling", "NoiseTunnel"])
def test_sampling_methods_draw_as_captum_does(kind: str) -> None:
    net, x, region = Net("out"), images(1), regions(1)
    found = []
    options: dict[str, Any] = {"baselines": DRAWN} if "Gradient" in kind else {}
    if kind == "ShapleyValueSampling":
        options = {"feature_mask": square_features(), "n_samples": 3}
    target = ByHand(net, 1, region)
    objects = {
        "GradientShap": lambda: ca.GradientShap(target),
        "LayerGradientShap": lambda: ca.LayerGradientShap(target, net.features[3]),
        "ShapleyValueSampling": lambda: ca.ShapleyValueSampling(target),
        "NoiseTunnel": lambda: ca.NoiseTunnel(ca.Saliency(target)),
    }
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002 (captum draws from it)
    found = explain(
        net, x, 1, region=region, method=kind, **options, **({"layer": "features.3"} if "Layer" in kind else {})
    )
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    signed = {"abs": False} if kind == "NoiseTunnel" else {}
    expected = objects[kind]().attribute(x.clone(), **options, **signed).detach().double()
    if kind.startswith("Layer"):
        expected = F.interpolate(expected.sum(1, keepdim=True), size=SIZE, mode="bilinear").expand_as(x)
    torch.testing.assert_close(found.values, expected, rtol=1e-5, atol=1e-7)


def test_every_name_is_a_class_of_captums() -> None:
    classes = [getattr(ca, name) for name in NAMES]
    assert all(issubclass(kind, ca.Attribution) for kind in classes)
    concrete = {name for name, kind in vars(ca).items() if inspect.isclass(kind) and issubclass(kind, ca.Attribution)}
    left_out = {name for name in concrete - set(NAMES) if not name.startswith(("Neuron", "LLM", "Layer", "Remote"))}
    assert left_out <= {
        "Attribution",
        "DataLoaderAttribution",
        "GradientAttribution",
        "InternalAttribution",
        "InterpretableEmbeddingBase",
        "LimeBase",
        "PerturbationAttribution",
    }


@pytest.mark.parametrize("made", ["class", "object", "on a target", "on a function"])
def test_a_class_or_an_object_is_put_on_the_model(made: str) -> None:
    net, x = Net("out"), images()
    other = Net("out")
    method: Any = {
        "class": lambda: ca.Saliency,
        "object": lambda: ca.Saliency(other),
        "on a target": lambda: ca.Saliency(RegionTarget(other, 0)),
        "on a function": lambda: ca.Saliency(lambda inputs: inputs.sum((1, 2, 3))),
    }[made]()
    was = None if made == "class" else method.forward_func
    found = explain(net, x, LABELS, region=regions(), method=method)
    torch.testing.assert_close(found.values, explain(net, x, LABELS, region=regions(), method="Saliency").values)
    assert made == "class" or method.forward_func is was


def test_objects_within_objects_and_their_layers_are_kept() -> None:
    net, x = Net("out"), images()
    given = ca.NoiseTunnel(ca.LayerGradCam(net, net.features[0]))
    found = explain(net, x, 1, region=regions(), method=given, nt_samples=2, stdevs=0)
    plain = explain(net, x, 1, region=regions(), method="LayerGradCam", layer=net.features[0])
    assert found.layer == plain.layer == "features.0"
    assert found.method == "NoiseTunnel(LayerGradCam)"
    torch.testing.assert_close(found.values, plain.values, rtol=1e-6, atol=1e-9)
    guided = ca.GuidedGradCam(net, net.features[0])
    named = explain(net, x, 1, region=regions(), method="GuidedGradCam", layer="features.0")
    torch.testing.assert_close(explain(net, x, 1, region=regions(), method=guided).values, named.values)
    integrated = ca.IntegratedGradients(net, multiply_by_inputs=False)
    assert not torch.allclose(
        explain(net, x, 1, region=regions(), method=integrated, n_steps=3).values,
        explain(net, x, 1, region=regions(), n_steps=3).values,
    )


def test_options_of_a_noise_tunnel_put_one_around_any_method() -> None:
    net, x = Net("out"), images()
    plain = explain(net, x, LABELS, region=regions(), n_steps=4)
    noisy = explain(net, x, LABELS, region=regions(), n_steps=4, nt_samples=5, nt_type="smoothgrad", stdevs=0)
    assert noisy.method == "NoiseTunnel(IntegratedGradients)"
    torch.testing.assert_close(noisy.values, plain.values, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(noisy.delta, plain.delta, rtol=1e-5, atol=1e-6)
    squared = explain(net, x, LABELS, region=regions(), method="Saliency", nt_type="smoothgrad_sq", stdevs=0)
    torch.testing.assert_close(squared.values, explain(net, x, LABELS, region=regions(), method="Saliency").values ** 2)
    assert explain(net, x, 1, region=regions(), nt_type="vargrad", nt_samples=2, n_steps=2).delta is None
    own = explain(net, x, 1, region=regions(), method="GradientShap", stdevs=0.1)
    assert own.method == "GradientShap"


def test_integrated_gradients_and_occlusion_add_up_to_the_change_of_the_score() -> None:
    net, x = Net("out"), images()
    target = RegionTarget(net, LABELS, regions()).freeze(x)
    with torch.no_grad():
        change = target(x) - target(torch.zeros_like(x))
    found = explain(net, x, LABELS, region=regions(), n_steps=300)
    assert found.delta is not None
    torch.testing.assert_close(found.values.sum((1, 2, 3)) - change, found.delta, rtol=1e-4, atol=1e-4)
    assert float((found.delta.abs() / change.abs()).max()) < 0.02
    linear = Linear()
    shut = explain(
        linear, x, LABELS, region=regions(), method="Occlusion", sliding_window_shapes=(3, 4, 4), strides=(3, 4, 4)
    )
    with torch.no_grad():
        scores = RegionTarget(linear, LABELS, regions())(x)
    torch.testing.assert_close(shut.values.sum((1, 2, 3)) / 48, scores, rtol=1e-5, atol=1e-5)


def test_methods_without_a_bound_have_no_delta() -> None:
    net, x = Net("out"), images()
    assert explain(net, x, 1, region=regions(), method="Saliency").delta is None
    assert explain(net, x, 1, region=regions(), return_convergence_delta=False, n_steps=2).delta is None
    found = explain(net, x, 1, region=regions(), method="DeepLiftShap")
    assert found.delta is not None
    assert found.delta.shape == (3,)


@pytest.mark.parametrize("name", ["zero", "mean", "blur"])
def test_named_baselines(name: str) -> None:
    from perpixel.attribution import baseline_images

    net, x = Net("out"), images()
    found = explain(net, x, 1, region=regions(), baselines=name, n_steps=4)
    same = explain(net, x, 1, region=regions(), baselines=baseline_images(name, x), n_steps=4)
    function = explain(net, x, 1, region=regions(), baselines=lambda given: baseline_images(name, given), n_steps=4)
    torch.testing.assert_close(found.values, same.values, rtol=0, atol=0)
    torch.testing.assert_close(found.values, function.values, rtol=0, atol=0)
    if name == "zero":
        none = explain(net, x, 1, region=regions(), n_steps=4)
        torch.testing.assert_close(found.values, none.values, rtol=0, atol=0)
    one = explain(net, x, 1, region=regions(), method="Occlusion", baselines=name, **WINDOW)
    target = ByHand(net, 1, regions())
    by_hand = ca.Occlusion(target).attribute(x, baselines=baseline_images(name, x), **WINDOW)
    torch.testing.assert_close(one.values, by_hand.double(), rtol=1e-5, atol=1e-6)


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
    assert max(sizes[1:]) == 2  # after the pass that freezes the region


def test_many_images_are_explained_in_groups_and_large_ones_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x, labels = Net("out"), images(11), torch.arange(11) % 4
    region = regions().repeat(4, 1, 1)[:11]
    sizes: list[int] = []
    net.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    bases = images(11, seed=5)
    options: dict[str, Any] = {"n_steps": 3, "baselines": bases}
    found = explain(net, x, labels, region=region, **options)
    assert max(sizes[1:]) <= 8
    for n in (0, 7, 8, 10):
        own = {"n_steps": 3, "baselines": bases[n : n + 1]}
        alone = explain(net, x[n : n + 1], int(labels[n]), region=region[n], **own)
        torch.testing.assert_close(found.values[n : n + 1], alone.values)
        torch.testing.assert_close(found.delta[n : n + 1], alone.delta, rtol=1e-5, atol=1e-7)
    drawn = explain(net, x, labels, region=region, method="DeepLiftShap", baselines=images(11, seed=6))
    alone = explain(net, x[9:10], int(labels[9]), region=region[9], method="DeepLiftShap", baselines=images(11, seed=6))
    torch.testing.assert_close(drawn.values[9:10], alone.values)
    monkeypatch.setattr("perpixel.attribution.captum.options.PIXELS", 12 * 16 * 2)
    sizes.clear()
    small = explain(net, x, labels, region=region, **options)
    assert max(sizes[1:]) == 2
    torch.testing.assert_close(small.values, found.values)


def test_what_came_from_inference_mode_can_be_explained() -> None:
    net = Net("out")
    with torch.inference_mode():
        x, labels, region = images() + 0, LABELS + 0, net(images())["out"].argmax(1) >= 0
        inside = explain(net, x, labels, region=region, n_steps=2, score="margin")
    outside = explain(net, x, labels, region=region, n_steps=2, score="margin")
    torch.testing.assert_close(inside.values, outside.values)
    assert not inside.region.is_inference()


def test_the_default_region_is_the_prediction() -> None:
    net, x = Net("out"), images()
    predicted = net(x)["out"].argmax(1)
    label = int(predicted.flatten().mode().values)
    found = explain(net, x, label, n_steps=2)
    assert torch.equal(found.region, predicted == label)
    assert found.label == label
    assert found.size == SIZE
    torch.testing.assert_close(found.positive + found.negative, found.values)


def test_a_region_on_the_grid_comes_back_at_image_size() -> None:
    net, x = Net(grid=True), images()
    coarse = torch.zeros(3, 6, 8, dtype=torch.bool)
    coarse[:, 2:4, 3:5] = True
    found = explain(net, x, 1, region=coarse, method="Saliency")
    assert torch.equal(found.region, coarse.repeat_interleave(2, 1).repeat_interleave(2, 2))
    assert 0 < float(found.context_share()[0]) < 1


def test_precision() -> None:
    for dtype, expected in (
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
    ):
        net, x = Net("out").to(dtype), images().to(dtype)
        for kind in ("IntegratedGradients", "Occlusion", "LayerGradCam", "NoiseTunnel"):
            values = explain(net, x, 1, region=regions(), method=kind).values
            assert values.dtype == expected
            assert values.shape == x.shape
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert explain(Net("out").float(), images().float(), 1, region=regions(), n_steps=2).values.isfinite().all()
    with torch.no_grad():
        assert explain(Net("out"), images(), 1, region=regions(), n_steps=2).values.abs().sum() > 0
    net = Net("out")
    with torch.inference_mode():
        assert explain(net, images(), 1, region=regions(), n_steps=2).values.abs().sum() > 0


def busy() -> Net:
    """A network in use: gradients, mixed flags, a frozen weight, a hook of its owner's, a rule of his for LRP."""
    from captum.attr._utils.lrp_rules import GammaRule

    net = Net("out")
    net.features.append(nn.BatchNorm2d(8).double())
    net.features.append(nn.Dropout(0.5))
    net.train()
    net.features[2].eval()
    net(images())["out"].sum().backward()
    net.classifier.weight.requires_grad_(False)
    net.features[3].register_forward_hook(lambda *_: None)
    net.features[0].rule = GammaRule()
    return net


@pytest.mark.parametrize("kind", [name for name in NAMES if name not in ("KernelShap", "Lime")])
def test_everything_is_as_it_was(kind: str) -> None:
    net, x = busy(), images().requires_grad_()
    before, memory = snapshot(net), {name: p.data_ptr() for name, p in net.named_parameters()}
    values = x.detach().clone()
    explain(net, x, 1, region=regions(), method=kind, **ALL.get(kind, {}))
    assert_same(snapshot(net), before)
    assert memory == {name: p.data_ptr() for name, p in net.named_parameters()}
    assert x.requires_grad
    assert x.grad is None
    assert torch.equal(x, values)


class Failing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        raise RuntimeError("backward failed")


class FailsBackward(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Failing.apply(x)


@pytest.mark.parametrize(
    "kind", ["IntegratedGradients", "DeepLift", "GuidedBackprop", "LRP", "LayerGradCam", "NoiseTunnel"]
)
def test_failing_calls_leave_nothing_behind(kind: str) -> None:
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


class Frozen(nn.Module):
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
        ({"score": "loss"}, ValueError, "score"),
        ({"baselines": "black"}, ValueError, "'zero', 'mean', 'blur'"),
        ({"baselines": "inpaint"}, ValueError, "Influence"),
        ({"baselines": torch.zeros(5)}, ValueError, "broadcasts"),
        ({"baselines": torch.full((3, 1, 1), torch.nan)}, ValueError, "finite"),
        ({"baselines": [0]}, TypeError, "baselines"),
        ({"method": "Saliency", "baselines": "zero"}, TypeError, "baselines"),
        ({"method": "DeepLiftShap", "baselines": "zero"}, ValueError, "at least two"),
        ({"method": "GradientShap", "baselines": torch.zeros(2, 3, 4, 4)}, ValueError, "baselines"),
        ({"label": 4}, ValueError, "label"),
        ({"region": torch.zeros(3, *SIZE, dtype=torch.bool)}, ValueError, "region"),
        ({"region": torch.ones(3, 5, 5, dtype=torch.bool)}, ValueError, "region"),
        ({"images": torch.zeros(3, *SIZE)}, ValueError, "images"),
        ({"images": torch.zeros(0, 3, *SIZE)}, ValueError, "images"),
        ({"images": torch.zeros(3, 3, *SIZE)}, TypeError, "float64"),
        ({"images": torch.zeros(3, 3, *SIZE, dtype=torch.long)}, TypeError, "images"),
        ({"model": lambda x: x}, TypeError, "model"),
        ({"model": nn.Flatten()}, ValueError, "nothing dense"),
        ({"model": Frozen()}, ValueError, "NaN"),
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


def test_captums_chatter_is_not_passed_on() -> None:
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


class Shared(nn.Module):
    """One ReLU for all, as in torchvision's residual blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = (
            nn.Conv2d(3, 6, 3, padding=1),
            nn.Conv2d(6, 6, 3, padding=1),
            nn.Conv2d(6, 4, 1),
        )
        self.relu = nn.ReLU(inplace=True)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.first(x))
        return self.last(self.relu(self.second(x) + x))


class Separate(Shared):
    def __init__(self) -> None:
        super().__init__()
        self.other = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.first(x))
        return self.last(self.other(self.second(x) + x))


@pytest.mark.parametrize(
    "kind", ["DeepLift", "DeepLiftShap", "GuidedBackprop", "Deconvolution", "LRP", "LayerDeepLift"]
)
def test_a_reused_activation_counts_as_one_for_each_use(kind: str) -> None:
    shared = Shared()
    apart = Separate()
    apart.load_state_dict(shared.state_dict())
    before = snapshot(shared)
    options = {"layer": "first"} if kind.startswith("Layer") else {}
    with pytest.warns(UserWarning, match=r"reused layers \(1 ReLU, run up to 2 times"):
        found = explain(shared, images(), LABELS, region=regions(), method=kind, **options)
    expected = explain(apart, images(), LABELS, region=regions(), method=kind, **options)
    torch.testing.assert_close(found.values, expected.values)
    assert_same(snapshot(shared), before)
    if "DeepLift" in kind:
        assert found.delta is not None
        assert float(found.delta.abs().max()) < 1e-6


def test_what_stands_in_for_a_reused_layer_answers_for_it() -> None:
    class Reads(Shared):
        def forward(self, x: Tensor) -> Tensor:
            assert self.relu.inplace in (True, False)
            return super().forward(x)

    net = Reads()
    with pytest.warns(UserWarning, match="reused"):
        assert explain(net, images(), 1, region=regions(), method="DeepLift").values.isfinite().all()


def test_a_layer_that_lrp_refuses_gets_a_rule_for_the_call() -> None:
    net = Net("out")
    net.features[4] = nn.LeakyReLU(0.0)
    plain = Net("out")
    plain.load_state_dict(net.state_dict())
    with pytest.warns(UserWarning, match="LeakyReLU"):
        found = explain(net, images(), LABELS, region=regions(), method="LRP")
    assert not hasattr(net.features[4], "rule")
    expected = explain(plain, images(), LABELS, region=regions(), method="LRP")
    torch.testing.assert_close(found.values, expected.values, rtol=1e-5, atol=1e-6)


def test_wrapped_networks_are_unwrapped() -> None:
    net = Net("out")
    expected = explain(net, images(), 1, region=regions(), method="LayerGradCam")
    found = explain(nn.DataParallel(net), images(), 1, region=regions(), method="LayerGradCam")
    torch.testing.assert_close(found.values, expected.values)
    compiled = explain(torch.compile(net, backend="eager"), images(), 1, region=regions(), method="LayerGradCam")
    torch.testing.assert_close(compiled.values, expected.values)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deep = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Conv2d(4, 8, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> list[Tensor]:
        first = self.stem(x)
        return [x, first, self.deep(first)]


class UNet(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.add_module(name, Encoder())
        self.up, self.head = nn.Conv2d(12, 8, 1), nn.Conv2d(8, 4, 1)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        _, first, deep = getattr(self, self.name)(x)
        up = F.interpolate(deep, size=first.shape[-2:], mode="nearest")
        return F.interpolate(self.head(self.up(torch.cat([up, first], 1))), size=x.shape[-2:], mode="bilinear")


def test_the_layer_is_the_last_of_the_backbone() -> None:
    for name in ("encoder", "backbone", "something"):
        found = explain(UNet(name), images(), 1, region=regions(), method="LayerGradCam")
        assert found.layer == f"{name}.deep"
    assert explain(Net("out"), images(), 1, region=regions(), method="LayerGradCam").layer == "features.4"
    plain = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Upsample(scale_factor=1)
    ).double()
    assert explain(plain, images(), 1, region=regions(), method="LayerGradCam").layer == "1"
    with pytest.raises(ValueError, match=r"layer='\.\.\.'"):
        explain(nn.Sequential(nn.Conv2d(3, 4, 1)).double(), images(), 1, region=regions(), method="LayerGradCam")


def integration(name: str) -> tuple[nn.Module, str]:
    if name == "torchvision":
        from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large

        return deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4), "backbone.16"
    if name == "smp":
        smp = pytest.importorskip("segmentation_models_pytorch")
        return smp.Unet("resnet18", encoder_weights=None, classes=4), "encoder.layer4"
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_sizes": [8, 16, 16, 16], "num_attention_heads": [1, 1, 2, 2], "depths": [1, 1, 1, 1]}
    config = transformers.SegformerConfig(num_labels=4, decoder_hidden_size=16, **sizes)
    return transformers.SegformerForSemanticSegmentation(config), ""


@pytest.mark.parametrize("name", ["torchvision", "smp", "transformers"])
def test_real_networks(name: str) -> None:
    net, layer = integration(name)
    x, region = torch.randn(2, 3, 32, 48), torch.zeros(32, 48, dtype=torch.bool)
    region[8:20, 10:30] = True
    before = snapshot(net)
    for kind in ("IntegratedGradients", "Occlusion", "LayerGradCam", "DeepLift", "GuidedBackprop", "NoiseTunnel"):
        options = {"n_steps": 3} if kind == "IntegratedGradients" else {}
        found = explain(net, x, torch.tensor([0, 2]), region=region, method=kind, **options)
        assert isinstance(found, Attribution)
        assert found.values.shape == x.shape
        assert found.values.isfinite().all()
        if kind == "LayerGradCam":
            assert found.layer
            assert not layer or found.layer == layer
    assert_same(snapshot(net), before)


def test_a_copy_of_an_attribution_is_equal() -> None:
    found = explain(Net("out"), images(), 1, region=regions(), n_steps=2)
    twin = copy.deepcopy(found)
    assert torch.equal(twin.values, found.values)
    assert twin.method == found.method
