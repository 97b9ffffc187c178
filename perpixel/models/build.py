"""`build`: one door to every network of this folder."""

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any

from torch import nn

from perpixel.checks import check_integer, check_option, complain

# name -> the file of this folder that has the function of that name
NETWORKS = {
    "small_fcn": "small",
    "fcn32s_vgg16": "fcn",
    "fcn16s_vgg16": "fcn",
    "fcn8s_vgg16": "fcn",
    "fcn32s_alexnet": "fcn",
    "fcn32s_googlenet": "fcn",
    "deeplab_largefov_vgg16": "deeplab",
    "deeplab_v2_vgg16": "deeplab",
    "deeplab_v2_resnet101": "deeplab",
    "single_skip": "skips",
    "deconvolution_stack": "deconvolution",
}


def build(name: str, num_classes: int, *, weights: Any = None, **options: Any) -> nn.Module:
    """The network `name` for `num_classes`: images (N, 3, H, W) -> logits (N, C, H, W), one channel for C = 1.

    Args:
        name: One of NETWORKS; its function of that name, here in `perpixel.models`, says what its options are.
        num_classes: C.
        weights: torchvision's weights of the backbone, such as "DEFAULT" or a member of VGG16_Weights; None: random.
        **options: Keyword-only arguments of that function.

    Raises:
        ValueError: an unknown name, or weights that the backbone does not have; both are listed.
        TypeError: an option that the network does not have.
    """
    if name not in NETWORKS:
        remedy = "Those of torchvision: torchvision.models.get_model(name, num_classes=...)."
        raise ValueError(complain("name", f"one of {', '.join(NETWORKS)}", repr(name), remedy))
    check_integer("num_classes", num_classes, low=1)
    maker = builder(name)
    known = builder_options(maker)
    for option in options:
        if option not in known:
            expected = f"options of {name} ({', '.join(known) or 'none'})"
            raise TypeError(complain("options", expected, repr(option), "Remove or rename it."))
    if "weights" in inspect.signature(maker).parameters:
        options["weights"] = weights
    elif weights is not None:
        remedy = "There are none for it: leave it out."
        raise ValueError(complain("weights", f"None for {name}", repr(weights), remedy))
    return maker(num_classes, **options)


def builder(name: str) -> Callable[..., nn.Module]:
    """The function that builds the network `name`."""
    check_option("name", name, tuple(NETWORKS))
    maker: Callable[..., nn.Module] = getattr(import_module(f"perpixel.models.{NETWORKS[name]}"), name)
    return maker


def builder_options(maker: Callable[..., nn.Module]) -> list[str]:
    """Its keyword-only arguments but the weights."""
    parameters = inspect.signature(maker).parameters.values()
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "weights"]
