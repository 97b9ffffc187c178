"""Networks by name, which of their layers train, and networks with random weights as controls; their seeds."""

import copy
import inspect
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, get_args, get_type_hints

import numpy as np
import torch
from torch import Tensor, nn

from perpixel.checks import complain
from perpixel.models import NETWORKS, AtrousPyramid, build, fetching
from perpixel.outputs import dense_logits
from recipes.kit.command_line import named
from recipes.kit.settings import ModelSettings


def seed_everything(seed: int) -> None:
    """Seed torch (all devices), numpy and `random`."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  (transforms of others may draw from it)
    torch.manual_seed(seed)


def build_network(settings: ModelSettings, num_classes: int) -> nn.Module:
    """The named network for `num_classes`, weights at random but for `weights_backbone`."""
    import torchvision

    options: dict[str, Any] = dict(settings.options)
    if settings.name in NETWORKS:
        for option in ("weights", "aux_loss"):
            if getattr(settings, option):
                came = f"{option}={getattr(settings, option)!r}"
                raise ValueError(complain(f"model.{option}", f"nothing for {settings.name}", came, "Leave it out."))
        with named("model.options.", weights="model.weights_backbone", options="model.options"):
            return build(settings.name, num_classes, weights=settings.weights_backbone, **options)
    known = torchvision.models.list_models(module=torchvision.models.segmentation)
    if settings.name not in known:
        expected = f"one of {', '.join(NETWORKS)}, or of torchvision's {', '.join(known)}"
        raise ValueError(complain("model.name", expected, settings.name, "Choose one of these."))
    builder = torchvision.models.get_model_builder(settings.name)
    _check_known(options, builder, settings.name)
    if "aux_loss" in inspect.signature(builder).parameters:
        options["aux_loss"] = settings.aux_loss
    elif settings.aux_loss:
        remedy = "Leave model.aux_loss out."
        raise ValueError(complain("model.aux_loss", "false", f"true, but {settings.name} has none", remedy))
    make = partial(torchvision.models.get_model, settings.name, weights=None, num_classes=num_classes, **options)
    if settings.weights_backbone is None:
        return make(weights_backbone=None)
    (kind,) = {*get_args(get_type_hints(builder)["weights_backbone"])} - {type(None)}
    name = settings.weights_backbone.rpartition(".")[2]
    if name not in kind.__members__:
        expected = f"one of {', '.join(kind.__members__)}"
        came = settings.weights_backbone
        raise ValueError(complain("model.weights_backbone", expected, came, "Choose one of these."))
    weights = kind[name]
    with fetching(weights, "model.weights_backbone"):
        return make(weights_backbone=weights)


def _check_known(options: Mapping[str, Any], builder: Callable[..., nn.Module], name: str) -> None:
    """TypeError for an option the network does not have: torchvision's builders take any, and leave it unused."""
    parameters = [p.name for p in inspect.signature(builder).parameters.values() if p.kind is p.KEYWORD_ONLY]
    known = [name for name in parameters if name not in ("weights", "weights_backbone", "num_classes", "aux_loss")]
    for option in options:
        if option not in known:
            expected = f"options of {name} ({', '.join(known) or 'none'})"
            raise TypeError(complain("model.options", expected, option, "Remove or rename it."))


def layers_to_logits(network: nn.Module, size: tuple[int, int] = (64, 64)) -> list[str]:
    """Names of the modules with parameters of their own that the logits depend on, in the order they run.

    Found with a copy, by one forward pass on a blank image and the gradient of the main logits: an auxiliary head is
    not among them.
    """
    network = copy.deepcopy(network).eval().requires_grad_(True)
    order: list[str] = []
    own = _own_parameters(network)
    for name in own:
        network.get_submodule(name).register_forward_pre_hook(
            lambda _m, _i, name=name: order.append(name) if name not in order else None
        )
    parameters = [p for of_module in own.values() for p in of_module]
    with torch.enable_grad():
        image = torch.zeros(1, 3, *size, device=parameters[0].device, dtype=parameters[0].dtype)
        gradients = torch.autograd.grad(dense_logits(network(image)).sum(), parameters, allow_unused=True)
    used = {p for p, g in zip(parameters, gradients) if g is not None}
    return [name for name in order if not used.isdisjoint(own[name])]


def _own_parameters(network: nn.Module) -> dict[str, list[nn.Parameter]]:
    parameters = {name: list(module.parameters(recurse=False)) for name, module in network.named_modules()}
    return {name: own for name, own in parameters.items() if own}


def select_layers(network: nn.Module, layers: str, head: str | None = None) -> tuple[list[str], str]:
    """Names of the modules that train ("last-3", "head" or "all") and of the classifier; freezes all the rest.

    The classifier is `head`, the one that the network names itself, or the last layer. A layer is a convolution or
    linear map; normalisation layers go with the one they follow, those of a classifier or pyramid count as one, and
    what comes after the classifier, such as the scores of skips and learned upsampling, goes with it.
    """
    path, own = layers_to_logits(network), _own_parameters(network)
    weighty = [name for name in path if any(p.ndim >= 2 for p in own[name])]
    if not weighty:
        remedy = "Choose another network."
        raise ValueError(complain("model.name", "a network with convolutions", type(network).__name__, remedy))
    declared = getattr(network, "classifier_layer", None)
    classifier = head or (declared if isinstance(declared, str) else weighty[-1])
    wholes = [classifier, *(name for name, layer in network.named_modules() if isinstance(layer, AtrousPyramid))]
    layer_of = {name: next((w for w in wholes if f"{name}.".startswith(f"{w}.")), name) for name in path}
    order = list(dict.fromkeys(layer_of[name] for name in weighty))
    if classifier not in order:
        remedy = f"Layers before the logits: {', '.join(weighty[-4:])}."
        raise ValueError(complain("model.head", "a layer the logits depend on", classifier, remedy))
    if layers == "all":
        chosen = list(own)
    else:
        place = order.index(classifier)
        first = order[max(0, place - 2) if layers == "last-3" else place]
        chosen = path[[layer_of[name] for name in path].index(first) :]
    trained = {p for name in chosen for p in own[name]}
    for parameter in network.parameters():
        parameter.requires_grad_(parameter in trained)
    return chosen, classifier


def random_network(settings: ModelSettings, num_classes: int, seed: int, batches: Sequence[Tensor]) -> nn.Module:
    """The network with random weights, to evaluate; its normalisation layers know the statistics of `batches`.

    Without those, a fresh network's activations shrink or grow from layer to layer as no trained one's do.
    """
    seed_everything(seed + 1000)
    network = build_network(replace(settings, weights_backbone=None), num_classes).eval()
    moving: list[Any] = [m for m in network.modules() if getattr(m, "running_mean", None) is not None]
    for layer in moving:
        layer.reset_running_stats()
        layer.momentum = None  # the plain average over the batches
        layer.train()
    with torch.no_grad():
        for images in batches if moving else ():
            network(images)
    return network.eval()
