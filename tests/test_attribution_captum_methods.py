"""captum's methods through `explain`: the values of captum called by hand, in batches, by class and by object."""

import inspect
from typing import Any

import captum.attr as ca
import numpy as np
import pytest
import torch
from attribution_cases import DRAWN, LABELS, METHODS, QUICK, SIZE, WINDOW, Linear, Net, images, regions, squares
from torch import Tensor, nn
from torch.nn import functional as F

from perpixel.attribution import RegionTarget, baseline_images, explain

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is not valid for this network"),
    pytest.mark.filterwarnings(r"ignore:\s*(Input Tensor 0 did not|Setting (forward|backward))"),  # captum by hand
]

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
    ("FeatureAblation", {"feature_mask": squares()}, {}),
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


RANDOM = "FeaturePermutation LayerFeaturePermutation GradientShap LayerGradientShap KernelShap Lime NoiseTunnel "
RANDOM += "ShapleyValueSampling"


@pytest.mark.parametrize("kind", [name for name in METHODS if name not in RANDOM.split()])
def test_a_batch_equals_its_images_one_by_one(kind: str) -> None:
    net, x, region = Net("out"), images(), regions()
    options = QUICK.get(kind, {})
    whole = explain(net, x, LABELS, region=region, method=kind, **options)
    for n in range(3):
        alone = explain(net, x[n : n + 1], int(LABELS[n]), region=region[n], method=kind, **options)
        torch.testing.assert_close(whole.values[n : n + 1], alone.values, rtol=1e-6, atol=1e-9)
        if whole.delta is not None:
            torch.testing.assert_close(whole.delta[n : n + 1], alone.delta, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", ["GradientShap", "LayerGradientShap", "ShapleyValueSampling", "NoiseTunnel"])
def test_sampling_methods_draw_as_captum_does(kind: str) -> None:
    net, x, region = Net("out"), images(1), regions(1)
    target = ByHand(net, 1, region)
    options: dict[str, Any] = {"baselines": DRAWN}
    layer = {"layer": "features.3"} if "Layer" in kind else {}
    by_hand = getattr(ca, kind)(target, *([net.features[3]] if layer else [])) if kind != "NoiseTunnel" else None
    if kind == "ShapleyValueSampling":
        options = {"feature_mask": squares(), "n_samples": 3}
    elif by_hand is None:
        by_hand, options = ca.NoiseTunnel(ca.Saliency(target)), {"abs": False}
    drawn = []
    for run in (
        lambda: explain(net, x, 1, region=region, method=kind, **options, **layer).values,
        lambda: by_hand.attribute(x.clone(), **options).detach().double(),
    ):
        torch.manual_seed(3)
        np.random.seed(3)  # noqa: NPY002 (captum draws from it)
        drawn.append(run())
    found, expected = drawn
    if layer:
        expected = F.interpolate(expected.sum(1, keepdim=True), size=SIZE, mode="bilinear").expand_as(x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_every_name_is_a_class_of_captums() -> None:
    classes = [getattr(ca, name) for name in METHODS]
    assert all(issubclass(kind, ca.Attribution) for kind in classes)
    concrete = {name for name, kind in vars(ca).items() if inspect.isclass(kind) and issubclass(kind, ca.Attribution)}
    left_out = {name for name in concrete - set(METHODS) if not name.startswith(("Neuron", "LLM", "Layer", "Remote"))}
    bases = "Attribution DataLoaderAttribution GradientAttribution InternalAttribution PerturbationAttribution"
    assert left_out <= {*bases.split(), "InterpretableEmbeddingBase", "LimeBase"}


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
        change = target(x, *target.arguments(x)) - target(torch.zeros_like(x), *target.arguments(x))
    found = explain(net, x, LABELS, region=regions(), n_steps=150)
    assert found.delta is not None
    torch.testing.assert_close(found.values.sum((1, 2, 3)) - change, found.delta, rtol=1e-4, atol=1e-4)
    assert float((found.delta.abs() / change.abs()).max()) < 0.02
    linear = Linear()
    shut = explain(
        linear, x, LABELS, region=regions(), method="Occlusion", sliding_window_shapes=(3, 4, 4), strides=(3, 4, 4)
    )
    with torch.no_grad():
        scores = RegionTarget(linear, LABELS, regions())(x, *target.arguments(x))
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
    net, x = Net("out"), images()
    forms: list[Any] = [name, baseline_images(name, x), lambda given: baseline_images(name, given)]
    forms += [None] if name == "zero" else []
    found, *same = (explain(net, x, 1, region=regions(), baselines=form, n_steps=4).values for form in forms)
    for values in same:
        torch.testing.assert_close(values, found, rtol=0, atol=0)
    one = explain(net, x, 1, region=regions(), method="Occlusion", baselines=name, **WINDOW)
    target = ByHand(net, 1, regions())
    by_hand = ca.Occlusion(target).attribute(x, baselines=baseline_images(name, x), **WINDOW)
    torch.testing.assert_close(one.values, by_hand.double(), rtol=1e-5, atol=1e-6)
