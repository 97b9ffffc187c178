"""Whether the rules of a captum method hold for a network: why not, and what to do instead."""

import warnings
from collections.abc import Callable, Iterable

from torch import nn

from perpixel.attribution.captum.operations import Census, Use

_MIXING = ("native_layer_norm", "native_group_norm", "softmax", "max_pool2d_with_indices", "adaptive_max_pool2d")
_ADVICE = "Use IntegratedGradients, GradientShap or Occlusion, which hold for any network"


def deep_lift_reasons(census: Census, score: str = "logit") -> list[str]:
    """Why DeepLIFT's rescale rule does not cover the network: captum gives plain gradients to all that has no rule.

    Covered: linear operations, and the layers in captum's SUPPORTED_NON_LINEAR, each a module of its own.
    """
    from captum.attr._core.deep_lift import SUPPORTED_NON_LINEAR

    covered = tuple(SUPPORTED_NON_LINEAR)
    reasons = _uncovered(census, lambda layer: type(layer) in covered, "has no rule, and gets its plain gradient")
    reasons += _listed("a product of two maps", census.products, "has no rule, and gets its plain gradient")
    reasons += _reused(census, lambda layer: type(layer) in covered)
    if score == "margin":
        reasons.append("score='margin' has a maximum over the classes, which gets its plain gradient")
    return reasons


def guided_reasons(census: Census, score: str = "logit") -> list[str]:
    """Why guided backpropagation or deconvolution does not cover the network: both change the gradient of ReLU alone.

    Covered: linear operations, max pooling, and nn.ReLU modules.
    """
    pooling = ("max_pool2d_with_indices", "max_pool3d_with_indices", "mkldnn_max_pool2d")
    uses = [use for use in census.nonlinear if use.operation not in pooling]
    kept = "keeps its plain gradient, with both signs"
    reasons = _uncovered(Census(nonlinear=uses), lambda layer: isinstance(layer, nn.ReLU), kept)
    reasons += _listed("a product of two maps", census.products, kept)
    return reasons + _reused(census, lambda layer: isinstance(layer, nn.ReLU))


def lrp_reasons(census: Census, score: str = "logit") -> list[str]:
    """Why captum's layer-wise relevance propagation does not cover the network.

    Covered: linear operations, the layers in captum's SUPPORTED_LAYERS_WITH_RULES, those with a `rule` of their own,
    and SUPPORTED_NON_LINEAR_LAYERS, which relevance passes unchanged; all as modules.
    """
    from captum.attr._core.lrp import SUPPORTED_LAYERS_WITH_RULES, SUPPORTED_NON_LINEAR_LAYERS

    covered = (*SUPPORTED_LAYERS_WITH_RULES, *SUPPORTED_NON_LINEAR_LAYERS)

    def known(layer: nn.Module) -> bool:
        return type(layer) in covered or hasattr(layer, "rule")

    reasons = _uncovered(census, known, "has no rule")
    reasons += _listed("a product of two maps", census.products, "has no rule, and multiplies the relevance")
    advice = "gives its relevance to both sides in full; captum wants captum.attr._utils.custom_modules.Addition_Module"
    reasons += _listed("a sum of two maps", census.sums, advice)
    return reasons + _reused(census, lambda layer: not isinstance(layer, (nn.Dropout, nn.Identity)))


def lend_rules(model: nn.Module, census: Census) -> None:
    """Give every layer that captum's LRP refuses a rule, inside `untouched`: activations the identity, others epsilon.

    Epsilon is exact for linear layers such as transposed convolutions and upsampling.
    """
    from captum.attr._core.lrp import SUPPORTED_LAYERS_WITH_RULES, SUPPORTED_NON_LINEAR_LAYERS
    from captum.attr._utils.lrp_rules import EpsilonRule, IdentityRule

    activations = {use.layer for use in census.nonlinear if use.operation not in _MIXING}
    for layer in model.modules():
        known = (*SUPPORTED_LAYERS_WITH_RULES, *SUPPORTED_NON_LINEAR_LAYERS)
        if not layer._modules and type(layer) not in known and not hasattr(layer, "rule"):
            layer.rule = IdentityRule() if layer in activations else EpsilonRule()


FAMILIES: dict[str, Callable[..., list[str]]] = {
    "DeepLift": deep_lift_reasons,
    "DeepLiftShap": deep_lift_reasons,
    "LayerDeepLift": deep_lift_reasons,
    "LayerDeepLiftShap": deep_lift_reasons,
    "GuidedBackprop": guided_reasons,
    "GuidedGradCam": guided_reasons,
    "Deconvolution": guided_reasons,
    "LRP": lrp_reasons,
    "LayerLRP": lrp_reasons,
}


def warn_if_not_valid(method: str, census: Census, score: str, stacklevel: int) -> list[str]:
    """A UserWarning with every reason why captum's class `method` does not hold for the network; the reasons."""
    reasons = FAMILIES[method](census, score) if method in FAMILIES else []
    if reasons:
        listed = "; ".join(reasons)
        warnings.warn(
            f"{method} is not valid for this network as it is: {listed}. {_ADVICE}.", stacklevel=stacklevel + 1
        )
    return reasons


def _uncovered(census: Census, covered: Callable[[nn.Module], bool], what: str) -> list[str]:
    """Reasons for activations that no covered layer runs, those that are called as functions named as such."""
    uses = [use for use in census.nonlinear if not covered(use.layer)]
    layers = [use for use in uses if not use.layer._modules]
    functions = [use for use in uses if use.layer._modules]
    reasons = []
    for kind in dict.fromkeys(type(use.layer).__name__ for use in layers):
        reasons += _listed(kind, [use for use in layers if type(use.layer).__name__ == kind], what)
    for operation in dict.fromkeys(use.operation for use in functions):
        name = f"{operation} called as a function"
        reasons += _listed(name, [use for use in functions if use.operation == operation], what)
    return reasons


def _reused(census: Census, matters: Callable[[nn.Module], bool]) -> list[str]:
    reused = {layer: times for layer, times in census.calls.items() if times > 1 and matters(layer)}
    if not reused:
        return []
    kinds = ", ".join(dict.fromkeys(type(layer).__name__ for layer in reused))
    runs = f"{len(reused)} {kinds}, run up to {max(reused.values())} times in one pass"
    helped = "; each use has a copy of its own for this call"
    shared = any(True for layer in reused for _ in layer.parameters())
    return [f"reused layers ({runs}), of which captum keeps one input{'' if shared else helped}"]


def _listed(kind: str, uses: Iterable[Use], what: str) -> list[str]:
    uses = list(uses)
    if not uses:
        return []
    kind = kind or ", ".join(dict.fromkeys(use.operation for use in uses))
    first = f"first in {uses[0].name!r}" if uses[0].name else f"first in {type(uses[0].layer).__name__}"
    return [f"{kind} ({len(uses)}, {first}) {what}"]
