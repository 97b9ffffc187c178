"""Whether the rules of a captum method hold for a network: why not, and what to do instead."""

import warnings
from collections.abc import Callable

from torch import Tensor, nn

from perpixel.attribution.captum.layers import copy_for_each_run
from perpixel.attribution.captum.operations import Operation, Operations, operations_of

_MIXING = ("native_layer_norm", "native_group_norm", "softmax", "max_pool2d_with_indices", "adaptive_max_pool2d")
_ADVICE = "Use IntegratedGradients, GradientShap or Occlusion, which hold for any network"


def deep_lift_reasons(found: Operations, score: str = "logit") -> list[str]:
    """Why DeepLIFT's rescale rule does not cover the network: captum gives plain gradients to all that has no rule.

    Covered: linear operations, and the layers in captum's SUPPORTED_NON_LINEAR, each a module of its own.
    """
    from captum.attr._core.deep_lift import SUPPORTED_NON_LINEAR

    covered = tuple(SUPPORTED_NON_LINEAR)
    reasons = _uncovered(found, lambda layer: type(layer) in covered, "has no rule, and gets its plain gradient")
    reasons += _listed("a product of two maps", found.products, "has no rule, and gets its plain gradient")
    reasons += _reused(found, lambda layer: type(layer) in covered)
    if score == "margin":
        reasons.append("score='margin' has a maximum over the classes, which gets its plain gradient")
    return reasons


def guided_reasons(found: Operations, score: str = "logit") -> list[str]:
    """Why guided backpropagation or deconvolution does not cover the network: both change the gradient of ReLU alone.

    Covered: linear operations, max pooling, and nn.ReLU modules.
    """
    pooling = ("max_pool2d_with_indices", "max_pool3d_with_indices", "mkldnn_max_pool2d")
    runs = [run for run in found.nonlinear if run.kind not in pooling]
    kept = "keeps its plain gradient, with both signs"
    reasons = _uncovered(Operations(nonlinear=runs), lambda layer: isinstance(layer, nn.ReLU), kept)
    reasons += _listed("a product of two maps", found.products, kept)
    return reasons + _reused(found, lambda layer: isinstance(layer, nn.ReLU))


def lrp_reasons(found: Operations, score: str = "logit") -> list[str]:
    """Why captum's layer-wise relevance propagation does not cover the network.

    Covered: linear operations, the layers in captum's SUPPORTED_LAYERS_WITH_RULES, those with a `rule` of their own,
    and SUPPORTED_NON_LINEAR_LAYERS, which relevance passes unchanged; all as modules.
    """
    from captum.attr._core.lrp import SUPPORTED_LAYERS_WITH_RULES, SUPPORTED_NON_LINEAR_LAYERS

    covered = (*SUPPORTED_LAYERS_WITH_RULES, *SUPPORTED_NON_LINEAR_LAYERS)

    def known(layer: nn.Module) -> bool:
        return type(layer) in covered or hasattr(layer, "rule")

    reasons = _uncovered(found, known, "has no rule")
    reasons += _listed("a product of two maps", found.products, "has no rule, and multiplies the relevance")
    advice = "gives its relevance to both sides in full; captum wants captum.attr._utils.custom_modules.Addition_Module"
    reasons += _listed("a sum of two maps", found.sums, advice)
    return reasons + _reused(found, lambda layer: not isinstance(layer, (nn.Dropout, nn.Identity)))


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


def warn_if_not_valid(method: str, found: Operations, score: str, stacklevel: int) -> list[str]:
    """A UserWarning with every reason why captum's class `method` does not hold for the network; the reasons."""
    reasons = FAMILIES[method](found, score) if method in FAMILIES else []
    if reasons:
        listed = "; ".join(reasons)
        warnings.warn(
            f"{method} is not valid for this network as it is: {listed}. {_ADVICE}.", stacklevel=stacklevel + 1
        )
    return reasons


def prepare_model(method: str, model: nn.Module, images: Tensor, score: str, layer: nn.Module | None) -> None:
    """Warn where the method's rules do not hold, and help where captum alone would stop; the model is `borrowed`.

    Layers that LRP refuses get a rule, and those that run several times without weights, but for the explained `layer`,
    a copy for each run.
    """
    if method not in FAMILIES:
        return
    found = operations_of(model, images)
    warn_if_not_valid(method, found, score, stacklevel=3)
    if "LRP" in method:
        _lend_rules(model, found)
    hooked = set(found.runs) if "LRP" in method else {run.layer for run in found.nonlinear}
    several = {module: times for module, times in found.runs.items() if times > 1 and module in hooked}
    copy_for_each_run(model, {m: n for m, n in several.items() if m is not layer and not list(m.parameters())})


def _lend_rules(model: nn.Module, found: Operations) -> None:
    """Give every layer that captum's LRP refuses a rule: activations the identity, others epsilon.

    Epsilon is exact for linear layers such as transposed convolutions and upsampling.
    """
    from captum.attr._core.lrp import SUPPORTED_LAYERS_WITH_RULES, SUPPORTED_NON_LINEAR_LAYERS
    from captum.attr._utils.lrp_rules import EpsilonRule, IdentityRule

    activations = {run.layer for run in found.nonlinear if run.kind not in _MIXING}
    for layer in model.modules():
        known = (*SUPPORTED_LAYERS_WITH_RULES, *SUPPORTED_NON_LINEAR_LAYERS)
        if not layer._modules and type(layer) not in known and not hasattr(layer, "rule"):
            layer.rule = IdentityRule() if layer in activations else EpsilonRule()


def _uncovered(found: Operations, covered: Callable[[nn.Module], bool], what: str) -> list[str]:
    """Reasons for activations that no covered layer runs, those that are called as functions named as such."""
    named: dict[str, list[Operation]] = {}
    for run in sorted(found.nonlinear, key=lambda run: bool(run.layer._modules)):
        if not covered(run.layer):
            name = f"{run.kind} called as a function" if run.layer._modules else type(run.layer).__name__
            named.setdefault(name, []).append(run)
    return [reason for name, runs in named.items() for reason in _listed(name, runs, what)]


def _reused(found: Operations, matters: Callable[[nn.Module], bool]) -> list[str]:
    reused = {layer: times for layer, times in found.runs.items() if times > 1 and matters(layer)}
    if not reused:
        return []
    kinds = ", ".join(dict.fromkeys(type(layer).__name__ for layer in reused))
    runs = f"{len(reused)} {kinds}, run up to {max(reused.values())} times in one pass"
    helped = "; each use has a copy of its own for this call"
    shared = any(True for layer in reused for _ in layer.parameters())
    return [f"reused layers ({runs}), of which captum keeps one input{'' if shared else helped}"]


def _listed(name: str, runs: list[Operation], what: str) -> list[str]:
    if not runs:
        return []
    where = repr(runs[0].name) if runs[0].name else type(runs[0].layer).__name__
    return [f"{name} ({len(runs)}, first in {where}) {what}"]
