"""Which label and region each of captum's rows gets: those that go with it, or the same for all, or an error."""

from collections.abc import Callable
from typing import Any

import captum.attr as ca
import numpy as np
import pytest
import torch
from attribution_cases import DRAWN, LABELS, METHODS, WINDOW, Net, images, regions, squares
from captum.metrics import infidelity, sensitivity_max
from torch import Tensor

from perpixel.attribution.captum.target import RegionTarget

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:captum.*")

MASK = {"feature_mask": squares()}
CHANNELS = {"layer_mask": torch.arange(8)[None, :, None, None]}
NOISE = {"nt_samples": 4, "stdevs": 0.5}
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("IntegratedGradients", {"n_steps": 5}),
    ("IntegratedGradients", {"n_steps": 5, "internal_batch_size": 3}),
    ("IntegratedGradients", {"n_steps": 5, "internal_batch_size": 6}),
    ("Saliency", {"abs": False}),
    ("InputXGradient", {}),
    ("DeepLift", {}),
    ("DeepLiftShap", {"baselines": DRAWN}),
    ("GuidedBackprop", {}),
    ("GuidedGradCam", {}),
    ("Deconvolution", {}),
    ("LRP", {}),
    ("GradientShap", {"baselines": DRAWN, "n_samples": 1}),
    ("GradientShap", {"baselines": DRAWN, "n_samples": 4}),
    ("Occlusion", WINDOW),
    ("Occlusion", {**WINDOW, "perturbations_per_eval": 5}),
    ("FeatureAblation", {**MASK, "perturbations_per_eval": 5}),
    ("FeaturePermutation", MASK),
    ("ShapleyValues", {"feature_mask": squares(8), "perturbations_per_eval": 3}),
    ("ShapleyValueSampling", {**MASK, "n_samples": 2, "perturbations_per_eval": 4}),
    ("Lime", {**MASK, "n_samples": 16}),
    ("Lime", {**MASK, "n_samples": 15, "perturbations_per_eval": 3}),  # three rows, all of one image
    ("KernelShap", {**MASK, "n_samples": 15, "perturbations_per_eval": 3}),
    ("LayerGradCam", {}),
    ("LayerGradientXActivation", {}),
    ("LayerGradientShap", {"baselines": DRAWN, "n_samples": 2}),
    ("LayerIntegratedGradients", {"n_steps": 4, "internal_batch_size": 6}),
    ("LayerConductance", {"n_steps": 4}),
    ("InternalInfluence", {"n_steps": 4}),
    ("LayerDeepLift", {}),
    ("LayerDeepLiftShap", {"baselines": DRAWN}),
    ("LayerLRP", {}),
    ("LayerFeatureAblation", {**CHANNELS, "perturbations_per_eval": 4}),
    ("LayerFeaturePermutation", CHANNELS),
    ("NoiseTunnel Saliency", {"abs": False, "nt_samples_batch_size": 1, **NOISE}),
    ("NoiseTunnel Saliency", {"abs": False, "nt_samples_batch_size": 2, **NOISE}),
    ("NoiseTunnel IntegratedGradients", {"n_steps": 3, "internal_batch_size": 7, **NOISE}),
    ("NoiseTunnel DeepLift", NOISE),
    ("NoiseTunnel Occlusion", {**WINDOW, "perturbations_per_eval": 4, "nt_samples_batch_size": 3, **NOISE}),
    ("NoiseTunnel LayerGradCam", NOISE),
]


class LeastSquares:
    """A linear fit for Lime, which wants scikit-learn for its own."""

    def fit(self, loader: Any, **_: Any) -> None:
        for features, values, weights in loader:
            table = torch.cat([features, torch.ones(len(features), 1)], 1) * weights.sqrt()[:, None]
            self.found = torch.linalg.lstsq(table, (values * weights.sqrt())[:, None]).solution[:-1, 0]

    def representation(self) -> Tensor:
        return self.found


def attribute(kind: str, target: RegionTarget, x: Tensor, **options: Any) -> Tensor:
    """captum called by hand, from the same random numbers every time."""
    *tunnel, kind = kind.split()
    layered = kind.startswith("Layer") or kind in ("InternalInfluence", "GuidedGradCam")
    given = [LeastSquares()] if kind == "Lime" else [target.model.features[3]] if layered else []
    method = getattr(ca, kind)(target, *given)
    if kind == "KernelShap":
        method.interpretable_model = LeastSquares()
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 (captum draws from it)
    return (ca.NoiseTunnel(method) if tunnel else method).attribute(x.clone(), **options)


def check_rows(call: Callable[..., Tensor]) -> None:
    """`call` gives each image what it gives it with its label and region for all, and nothing without arguments."""
    net, x, region = Net(), images(), regions()
    target = RegionTarget(net, LABELS, region)
    found = call(target, x, additional_forward_args=target.arguments(x))
    for n in range(3):
        alone = call(RegionTarget(net, int(LABELS[n]), region[n]), x)
        torch.testing.assert_close(found[n], alone[n], rtol=1e-5, atol=1e-6)
    for differ in (target, RegionTarget(net, 1, region), RegionTarget(net, LABELS, region[0]).freeze(x)):
        with pytest.raises(ValueError, match=r"one of each for all rows.*additional_forward_args=target.arguments"):
            call(differ, x)


@pytest.mark.parametrize(("kind", "options"), OPTIONS, ids=lambda value: value if isinstance(value, str) else "")
def test_labels_and_regions_go_with_captums_rows(kind: str, options: dict[str, Any]) -> None:
    check_rows(lambda target, x, **arguments: attribute(kind, target, x, **options, **arguments))


def test_every_method_is_tried() -> None:
    assert {kind.split()[0] for kind, _ in OPTIONS} == set(METHODS)


@pytest.mark.parametrize("limit", [None, 3, 6])
def test_captums_infidelity_takes_the_arguments_too(limit: int | None) -> None:
    def noise(inputs: Tensor) -> tuple[Tensor, Tensor]:
        drawn = torch.randn_like(inputs) / 10
        return drawn, inputs - drawn

    def infidelity_of(target: RegionTarget, x: Tensor, **arguments: Any) -> Tensor:
        torch.manual_seed(0)
        options = {"n_perturb_samples": 4, "max_examples_per_batch": limit, **arguments}
        return infidelity(target, noise, x, torch.ones_like(x), **options)

    check_rows(infidelity_of)


@pytest.mark.parametrize("kind", ["IntegratedGradients", "DeepLiftShap"])
def test_captums_sensitivity_takes_the_arguments_too(kind: str) -> None:
    options = {"n_steps": 3} if kind == "IntegratedGradients" else {"baselines": DRAWN}

    def sensitivity_of(target: RegionTarget, x: Tensor, **arguments: Any) -> Tensor:
        torch.manual_seed(0)
        return sensitivity_max(getattr(ca, kind)(target).attribute, x, n_perturb_samples=3, **options, **arguments)

    check_rows(sensitivity_of)


def test_one_label_and_one_region_are_for_any_rows() -> None:
    net, x = Net(), images()
    predicted = int(net(x)[:1].argmax(1).flatten().mode().values)
    for label, region in ((1, regions()[0]), (LABELS[1:2], regions(1)), (predicted, None)):
        alike = RegionTarget(net, label, region).freeze(x[:1])
        expected = alike(x, torch.full((3,), int(label)), alike.region.expand(3, -1, -1))
        assert torch.equal(alike(x), expected)
    values = ca.IntegratedGradients(alike).attribute(x[:1], n_steps=3)
    given = ca.IntegratedGradients(alike).attribute(x[:1], n_steps=3, additional_forward_args=alike.arguments(x[:1]))
    assert torch.equal(values, given)
