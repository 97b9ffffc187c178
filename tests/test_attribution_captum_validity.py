"""Which methods hold for which networks, and which operations are seen."""

import re
import warnings
from collections import Counter
from functools import cache
from typing import Any

import pytest
import torch
from attribution_cases import Net, images, regions
from model_state import assert_same, snapshot
from torch import Tensor, nn
from torch.nn import functional as F

from perpixel.attribution import explain
from perpixel.attribution.captum.operations import Operations, operations_of
from perpixel.attribution.captum.validity import DEEP_LIFT, GUIDED, LRP, reasons


def vgg_like() -> nn.Module:
    """Plain convolutions, batch norm, in-place ReLU modules, pooling, learned upsampling: FCN-32s in small."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 4), (4, 8)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
        layers += [nn.MaxPool2d(2, ceil_mode=True)]
    return nn.Sequential(*layers, nn.Dropout2d(), nn.Conv2d(8, 4, 1), nn.ConvTranspose2d(4, 4, 4, stride=4)).eval()


@cache
def torchvision_operations(name: str) -> Operations:
    from torchvision.models import segmentation

    net = getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=4)
    return operations_of(net.eval(), torch.randn(2, 3, 32, 32))


def listed(net: nn.Module, kind: str, size: int = 32) -> str:
    return "; ".join(reasons(kind, operations_of(net, torch.randn(2, 3, size, size))))


@pytest.mark.parametrize("kind", [*DEEP_LIFT, *GUIDED, *LRP])
def test_a_plain_network_gives_no_warning(kind: str) -> None:
    net = vgg_like()
    assert listed(net, kind) == ""
    region = torch.zeros(32, 32, dtype=torch.bool)
    region[4:20, 4:20] = True
    options = {"layer": "4"} if kind.startswith("Layer") else {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = explain(net, torch.randn(2, 3, 32, 32), 1, region=region, method=kind, **options)
    assert found.values.isfinite().all()


@pytest.mark.parametrize("kind", ["DeepLift", "LayerDeepLiftShap", "GuidedBackprop", "Deconvolution", "LRP"])
def test_hardswish_and_squeeze_and_excitation_are_named(kind: str) -> None:
    text = "; ".join(reasons(kind, torchvision_operations("deeplabv3_mobilenet_v3_large")))
    assert re.search(r"Hardswish \(20, first in 'backbone\.0\.2'\)", text)
    assert re.search(r"Hardsigmoid \(8, first in 'backbone\.4\.block\.2\.scale_activation'\)", text)
    assert re.search(r"product of two maps \(8, first in 'backbone\.4\.block\.2'\)", text)
    assert "reused" not in text
    assert "ReLU" not in text


@pytest.mark.parametrize("kind", ["DeepLift", "GuidedBackprop", "Deconvolution", "LRP"])
def test_the_reused_relu_of_a_residual_block_is_named(kind: str) -> None:
    text = "; ".join(reasons(kind, torchvision_operations("fcn_resnet50")))
    assert "reused layers (16 ReLU, run up to 3 times in one pass)" in text
    assert ("sum of two maps (16" in text) == (kind == "LRP")
    assert "product" not in text


def test_attention_and_layer_norm_are_named() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_sizes": [8, 16, 16, 16], "num_attention_heads": [1, 1, 2, 2], "depths": [1, 1, 1, 1]}
    net = transformers.SegformerForSemanticSegmentation(
        transformers.SegformerConfig(num_labels=4, decoder_hidden_size=16, **sizes)
    ).eval()
    text = listed(net, "DeepLift", 64)
    assert all(name in text for name in ("LayerNorm", "GELU", "attention"))


class Functional(nn.Module):
    """What is often called as a function."""

    def __init__(self, call: Any) -> None:
        super().__init__()
        self.first, self.last, self.call = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1), call
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.call(self.first(x)))


FUNCTIONS: dict[str, tuple[Any, str]] = {
    "relu": (F.relu, "relu called as a function"),
    "relu_": (lambda x: x.relu_(), "relu called as a function"),
    "clamp": (lambda x: x.clamp(min=0), "clamp called as a function"),
    "silu": (F.silu, "silu called as a function"),
    "sigmoid": (torch.sigmoid, "sigmoid called as a function"),
    "softmax": (lambda x: x.softmax(1), "softmax called as a function"),
    "gate": (lambda x: x * x, "a product of two maps"),
    "matmul": (lambda x: x @ x.transpose(2, 3), "a product of two maps"),
    "divided": (lambda x: 1 / (x + 10), "reciprocal"),
    "ratio": (lambda x: x / (x + 10), "a product of two maps"),
    "group norm": (lambda x: F.group_norm(x, 2), "group_norm"),
    "power": (lambda x: x**2, "pow"),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("kind", ["DeepLift", "GuidedBackprop", "LRP"])
def test_functions_are_seen(name: str, kind: str) -> None:
    function, expected = FUNCTIONS[name]
    assert expected in listed(Functional(function), kind)


LINEAR: list[Any] = [
    lambda x: x,
    lambda x: x * 3 - 1,
    lambda x: 2 * x / 5,
    lambda x: x * torch.ones(1, 4, 1, 1),
    lambda x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True),
    lambda x: F.interpolate(x, scale_factor=0.5, mode="nearest"),
    lambda x: F.avg_pool2d(x, 2),
    lambda x: F.adaptive_avg_pool2d(x, 3),
    lambda x: x.mean((2, 3), keepdim=True),
    lambda x: torch.cat([x, x.flip(1)], 1)[:, :4],
    lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    lambda x: F.pixel_shuffle(torch.cat([x] * 4, 1), 2),
    lambda x: x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, 4).transpose(1, 2).reshape(x.shape),
    lambda x: F.dropout(x, training=False),
    lambda x: x.contiguous(memory_format=torch.channels_last),
    lambda x: torch.stack(x.unbind(1), 1).roll(1, 2),
    lambda x: x.to(torch.float64).to(x.dtype),
    lambda x: -x,
]


@pytest.mark.parametrize("place", range(len(LINEAR)))
def test_linear_operations_are_not(place: int) -> None:
    seen = operations_of(Functional(LINEAR[place]), torch.randn(1, 3, 8, 8))
    assert [*seen.nonlinear, *seen.products, *seen.sums] == []


def test_batch_norm_in_evaluation_is_linear_and_what_does_not_see_the_image_is_left_out() -> None:
    class WithGrid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            place = torch.linspace(0, 1, x.shape[-1]).sin().exp().relu()
            return self.head(self.norm(self.conv(x)) * place)

    seen = operations_of(WithGrid().eval(), torch.randn(1, 3, 8, 8))
    assert [*seen.nonlinear, *seen.products, *seen.sums] == []


def test_operations_count_runs_and_leaves_the_network_alone() -> None:
    net = Net("out")
    shared = nn.Sequential(net.features[0], nn.ReLU(), nn.Conv2d(6, 6, 1).double(), nn.Identity())
    shared.append(shared[1])
    before = snapshot(shared)
    seen = operations_of(shared, images())
    assert_same(snapshot(shared), before)
    assert seen.runs[shared[1]] == 2
    assert Counter(use.name for use in seen.nonlinear) == {"1": 2}
    with pytest.raises(RuntimeError):
        operations_of(shared, images()[:, :2])
    assert_same(snapshot(shared), before)


def test_layers_count_by_their_very_type_for_deep_lift_alone() -> None:
    class Softplus(nn.Softplus):
        pass

    covered = operations_of(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Softplus(), nn.Softmax(1)), torch.randn(1, 3, 4, 4))
    assert reasons("DeepLift", covered) == []
    assert len(reasons("Deconvolution", covered)) == len(reasons("LRP", covered)) == 2
    assert len(reasons("DeepLift", covered, "margin")) == 1
    derived = operations_of(nn.Sequential(nn.Conv2d(3, 4, 1), Softplus()), torch.randn(1, 3, 4, 4))
    assert len(reasons("DeepLift", derived)) == 1
    assert reasons("IntegratedGradients", derived) == []


def test_a_rule_of_the_users_own_is_enough_for_lrp() -> None:
    from captum.attr._utils.lrp_rules import EpsilonRule

    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Hardswish()).eval()
    assert "Hardswish" in listed(net, "LRP")
    net[1].rule = EpsilonRule()  # type: ignore[assignment]
    assert listed(net, "LRP") == ""


def test_the_warning_points_at_the_caller() -> None:
    net = Net("out")
    net.features[4] = nn.Hardswish()
    for given in ({"method": "DeepLift"}, {"method": "DeepLift", "nt_samples": 2}):
        with pytest.warns(UserWarning, match=r"DeepLift is not valid for this.*Hardswish.*IntegratedGr") as caught:
            explain(net, images(), 1, region=regions(), **given)
        assert [str(one.filename) for one in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        explain(net, images(), 1, region=regions(), n_steps=2)


def test_the_margins_maximum_is_named_for_deep_lift() -> None:
    with pytest.warns(UserWarning, match="score='margin'"):
        explain(Net("out"), images(), 1, region=regions(), method="DeepLift", score="margin")
