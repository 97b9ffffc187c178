"""Which label and region each of captum's rows gets."""

from collections.abc import Callable
from functools import partial
from typing import Any

import captum.attr as ca
import numpy as np
import pytest
import torch
from attribution_cases import DRAWN, LABELS, WINDOW, Net, images, regions, squares
from captum.metrics import infidelity, sensitivity_max
from torch import Tensor, nn

from perpixel.attribution.captum.target import RegionTarget

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:captum.*")

MASK = {"feature_mask": squares()}

OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("IntegratedGradients", {"n_steps": 5}),
    ("IntegratedGradients", {"n_steps": 5, "internal_batch_size": 6}),
    ("Saliency", {"abs": False}),
    ("InputXGradient", {}),
    ("DeepLift", {}),
    ("DeepLiftShap", {"baselines": DRAWN}),
    ("GuidedBackprop", {}),
    ("Deconvolution", {}),
    ("LRP", {}),
    ("Occlusion", WINDOW),
    ("Occlusion", {**WINDOW, "perturbations_per_eval": 3}),
    ("Occlusion", {**WINDOW, "perturbations_per_eval": 5}),
    ("FeatureAblation", {**MASK, "perturbations_per_eval": 5}),
    ("LayerGradCam", {}),
    ("LayerGradientXActivation", {}),
    ("LayerIntegratedGradients", {"n_steps": 4, "internal_batch_size": 6}),
    ("LayerConductance", {"n_steps": 4}),
    ("InternalInfluence", {"n_steps": 4}),
    ("LayerDeepLift", {}),
    ("LayerDeepLiftShap", {"baselines": DRAWN}),
    ("LayerFeatureAblation", {"layer_mask": torch.arange(6)[None, :, None, None], "perturbations_per_eval": 4}),
    ("GuidedGradCam", {}),
]


def made(kind: str, target: nn.Module, net: Net) -> Any:
    layered = kind.startswith("Layer") or kind in ("InternalInfluence", "GuidedGradCam")
    return getattr(ca, kind)(target, net.features[0]) if layered else getattr(ca, kind)(target)


@pytest.mark.parametrize(("kind", "options"), OPTIONS, ids=lambda value: value if isinstance(value, str) else "")
def test_labels_and_regions_follow_captums_rows(kind: str, options: dict[str, Any]) -> None:
    net, x, region = Net(), images(), regions()
    target = RegionTarget(net, LABELS, region)
    bare = made(kind, target, net).attribute(x, **options)
    given = made(kind, target, net).attribute(x, additional_forward_args=target.arguments(x), **options)
    torch.testing.assert_close(bare, given, rtol=0, atol=0)
    for n in range(3):
        one = RegionTarget(net, int(LABELS[n]), region[n])
        alone = made(kind, one, net).attribute(x[n : n + 1], **options)
        torch.testing.assert_close(bare[n : n + 1], alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("samples", [{}, {"nt_samples_batch_size": 2}, {"nt_samples_batch_size": 3}])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("IntegratedGradients", {"n_steps": 3}),
        ("IntegratedGradients", {"n_steps": 3, "internal_batch_size": 7}),
        ("DeepLift", {}),
        ("Occlusion", {**WINDOW, "perturbations_per_eval": 4}),
        ("LayerGradCam", {}),
    ],
)
def test_a_noise_tunnel_without_noise_is_the_method(
    kind: str, options: dict[str, Any], samples: dict[str, int]
) -> None:
    net, x = Net(), images()
    target = RegionTarget(net, LABELS, regions())
    plain = made(kind, target, net).attribute(x, **options)
    tunnel = ca.NoiseTunnel(made(kind, target, net))
    noisy = tunnel.attribute(x, nt_samples=4, stdevs=0.0, **samples, **options)
    torch.testing.assert_close(noisy, plain, rtol=1e-9, atol=1e-9)


def twice(call: Callable[..., Tensor], target: RegionTarget, x: Tensor, **options: Any) -> None:
    """With and without the target's arguments, from the same random numbers."""
    drawn = []
    for arguments in ({}, {"additional_forward_args": target.arguments(x)}):
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002 (captum draws from it)
        drawn.append(call(x, **options, **arguments))
    torch.testing.assert_close(drawn[0], drawn[1], rtol=1e-4, atol=1e-5)


class LeastSquares:
    """A linear fit for Lime, which wants scikit-learn for its own."""

    def fit(self, loader: Any, **_: Any) -> None:
        for features, values, weights in loader:
            table = torch.cat([features, torch.ones(len(features), 1)], 1) * weights.sqrt()[:, None]
            self.found = torch.linalg.lstsq(table, (values * weights.sqrt())[:, None]).solution[:-1, 0]

    def representation(self) -> Tensor:
        return self.found


@pytest.mark.parametrize("rows", [1, 3, 4])
def test_sampling_methods_draw_the_same_with_and_without_arguments(rows: int) -> None:
    net, x = Net(), images()
    target = RegionTarget(net, LABELS, regions())
    shapley, lime = ca.ShapleyValueSampling(target), ca.Lime(target, LeastSquares())
    options = {**MASK, "perturbations_per_eval": rows}
    twice(shapley.attribute, target, x, n_samples=2, **options)
    twice(lime.attribute, target, x, n_samples=16, **options)
    twice(ca.GradientShap(target).attribute, target, x, baselines=DRAWN, n_samples=rows + 1)


def test_captums_metrics_know_the_rows_too() -> None:
    net, x = Net(), images()
    target = RegionTarget(net, LABELS, regions())
    values = ca.Saliency(target).attribute(x, abs=False)

    def noise(inputs: Tensor) -> tuple[Tensor, Tensor]:
        drawn = torch.randn_like(inputs) / 10
        return drawn, inputs - drawn

    def infidelity_of(inputs: Tensor, **options: Any) -> Tensor:
        return infidelity(target, noise, inputs, values, n_perturb_samples=4, **options)

    for limit in (None, 6):
        twice(infidelity_of, target, x, max_examples_per_batch=limit)
    for method, options in (
        (ca.IntegratedGradients(target), {"n_steps": 3}),
        (ca.NoiseTunnel(ca.IntegratedGradients(target)), {"n_steps": 3, "nt_samples": 2, "stdevs": 0.0}),
        (ca.DeepLiftShap(target), {"baselines": DRAWN}),
    ):
        twice(partial(sensitivity_max, method.attribute), target, x, n_perturb_samples=3, **options)


def test_rows_of_unknown_order_are_refused_not_guessed() -> None:
    net, x = Net(), images()
    target = RegionTarget(net, LABELS, regions()).freeze(x)
    with pytest.raises(ValueError, match=r"order is not known.*additional_forward_args"):
        target(x.repeat(2, 1, 1, 1))
    with pytest.raises(ValueError, match="3 rows"):
        target(x[:1])
    with pytest.raises(ValueError, match=r"images.*3"):
        target.arguments(x[:2])
    for alike in (RegionTarget(net, 1, regions()[0]), RegionTarget(net, LABELS[:1], regions()[:1]).freeze(x[:1])):
        assert alike(x.repeat(2, 1, 1, 1)).shape == (6,)


def test_a_captum_call_that_does_not_show_its_inputs_is_refused_not_guessed() -> None:
    net, x = Net(), images()
    captum: dict[str, Any] = {"__name__": "captum.attr.of_tomorrow"}
    exec("def attribute(target, given):\n    return target(given / 2)", captum)
    label = int(net(x).argmax(1).flatten().mode().values)
    for target in (RegionTarget(net, label), RegionTarget(net, LABELS, regions())):
        with pytest.raises(ValueError, match=r"order is not known.*additional_forward_args"):
            captum["attribute"](target, x)
    frozen = RegionTarget(net, label, regions()[0]).freeze(x)
    assert torch.equal(captum["attribute"](frozen, x), frozen(x / 2))


def test_samplers_and_metrics_may_use_the_region_found_at_the_first_call() -> None:
    net, x = Net(), images()
    label = int(net(x).argmax(1).flatten().mode().values)
    target = RegionTarget(net, label)
    for given in (x, x.clone().requires_grad_()):
        values = ca.NoiseTunnel(ca.Saliency(target)).attribute(given, nt_samples=4, nt_samples_batch_size=2)
        ca.GradientShap(target).attribute(given, baselines=DRAWN)
        ca.Lime(target, LeastSquares()).attribute(given, n_samples=8, **MASK)
        infidelity(target, lambda inputs: (torch.ones_like(inputs), inputs - 1), given, values, n_perturb_samples=3)
        sensitivity_max(ca.IntegratedGradients(target).attribute, given, n_perturb_samples=2, n_steps=3)


@pytest.mark.parametrize(("kind", "options"), OPTIONS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_region_found_on_some_images_is_not_used_for_others(kind: str, options: dict[str, Any]) -> None:
    net, x, others = Net(), images(), images(seed=4)
    label = int(net(x).argmax(1).flatten().mode().values)
    target = RegionTarget(net, label)
    first = made(kind, target, net).attribute(x, **options)
    torch.testing.assert_close(made(kind, target, net).attribute(x.clone(), **options), first, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"images: expected those whose prediction fixed the region.*freeze\(images\)"):
        made(kind, target, net).attribute(others, **options)
    with pytest.raises(ValueError, match="images: expected those whose prediction"):
        target.arguments(others)
    expected = made(kind, RegionTarget(net, label), net).attribute(others, **options)
    found = made(kind, target.freeze(others), net).attribute(others, **options)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    made(kind, target, net).attribute(x, **options)  # frozen on purpose: for any images
