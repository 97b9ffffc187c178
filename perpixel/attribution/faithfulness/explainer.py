"""What explains another network, or from another baseline, as an attribution was made; its maps, checked."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from perpixel.attribution.captum.explain import explain
from perpixel.attribution.captum.methods import NAMES, Method
from perpixel.attribution.captum.options import DISTRIBUTION
from perpixel.attribution.measures.context import Attribution
from perpixel.attribution.measures.evidence import as_map, as_mass
from perpixel.borrow import random_numbers
from perpixel.checks import complain

Explainer = Callable[..., Tensor | Attribution]  # (network, images), some with baselines=


def explainer_of(
    explainer: Explainer | str | None, attribution: Attribution | Tensor, label: Tensor, region: Tensor, score: str
) -> Explainer | None:
    """As given, or by the method of the attribution; None if neither is known. The region stays as it is."""
    layer = None
    if explainer is None:
        if not isinstance(attribution, Attribution) or attribution.method not in NAMES:
            return None
        explainer, layer = attribution.method, attribution.layer
    if not isinstance(explainer, str):
        if not callable(explainer):
            expected = "a callable on (network, images), or the name of a method of perpixel.explain"
            raise TypeError(complain("explainer", expected, explainer, "Return the values of the network given."))
        return explainer
    how: dict[str, Any] = {"region": region, "score": score, "method": explainer, "layer": layer}

    def by_method(network: nn.Module, images: Tensor, baselines: Tensor | None = None) -> Tensor:
        return explain(network, images, label, **how, baselines=baselines).pixels

    known = Method(explainer, {})
    takes = "baselines" in known.parameters() and known.kind.__name__ not in DISTRIBUTION
    return by_method if takes else lambda network, images: by_method(network, images)


def takes_baselines(explainer: Explainer) -> bool:
    """Whether it can be called with `baselines=`."""
    parameters = inspect.signature(explainer).parameters.values()
    return any(p.name == "baselines" or p.kind is p.VAR_KEYWORD for p in parameters)


def maps_of(explainer: Explainer, network: nn.Module, images: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """The explainer's maps (N, H, W) and their masses, checked; the caller's random state stays as it was."""
    with torch.inference_mode(False), torch.enable_grad(), random_numbers(images.device, seed):
        values = explainer(network, images.clone())
    size = (len(images), *images.shape[-2:])
    return as_map("explainer", values, size).to(images.device), as_mass("explainer", values, size).to(images.device)
