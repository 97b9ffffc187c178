"""A network of two classes that a network with one channel must equal in every answer."""

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from perpixel import fixations
from perpixel.attribution import explain, influence
from perpixel.outputs import dense_logits
from perpixel.weighting import FixationWeightedLoss


def doubled(net: nn.Module, head: str) -> Any:
    """A copy whose last layer, a convolution or a linear one, has the weights -w/2 and w/2 in place of w.

    Halves are exact in floating point, so that even choices among near values are the same.
    """
    two = copy.deepcopy(net)
    layer = two.get_submodule(head)
    for name in {"out_channels", "out_features"} & vars(layer).keys():
        setattr(layer, name, 2)
    layer.weight, layer.bias = (nn.Parameter(torch.cat([-old / 2, old / 2])) for old in (layer.weight, layer.bias))
    return two


def same(found: Any, expected: Any, name: str = "", rtol: float = 1e-6) -> None:
    """Equal down to the last field."""
    if dataclasses.is_dataclass(found):
        for field in dataclasses.fields(found):
            same(getattr(found, field.name), getattr(expected, field.name), f"{name}.{field.name}", rtol)
    elif isinstance(found, Tensor):
        torch.testing.assert_close(
            found, expected, rtol=rtol, atol=rtol / 1000, equal_nan=True, msg=lambda m: f"{name}: {m}"
        )
    elif isinstance(found, Mapping):
        assert found.keys() == expected.keys(), name
        for key in found:
            same(found[key], expected[key], f"{name}[{key}]")
    elif isinstance(found, (tuple, list)):
        assert len(found) == len(expected), name
        for one, other in zip(found, expected):
            same(one, other, name)
    elif not isinstance(found, nn.Module) and not callable(found):
        assert found == expected or found != found, name


def assert_binary_model_works(model: nn.Module, head: str, size: int) -> None:
    """One channel, masks of floats with a channel: fixations, influence, explanations and weights of its twin."""
    torch.manual_seed(0)
    images, masks = torch.randn(2, 3, size, size).double(), torch.rand(2, 1, size, size).round()
    one = model.double().eval()
    with torch.no_grad():
        logits = dense_logits(one(images))
        one.get_submodule(head).bias -= logits.median()
    two = doubled(one, head)
    assert logits.shape[1] == 1
    found, expected = (fixations(net, images) for net in (one, two))
    same(found, expected)
    assert set(found.points[:, 1].tolist()) == {0, 1}
    same(*(influence(net, images, patch=size // 2).of(1, score="margin") for net in (one, two)))
    for method in ("Saliency", "LayerGradCam"):
        same(*(explain(net, images, 0, method=method) for net in (one, two)))
    same(*(FixationWeightedLoss().weight_map(net, images, dense_logits(net(images)), masks) for net in (one, two)))
