"""Whether the rules of a captum method hold for a network: why not, and what to do instead."""

import warnings
from collections.abc import Callable

from torch import Tensor, nn

from perpixel.attribution.captum.layers import copy_for_each_run
from perpixel.attribution.captum.operations import Operation, Operations, operations_of

DEEP_LIFT = ("DeepLift", "DeepLiftShap", "LayerDeepLift", "LayerDeepLiftShap")
GUIDED = ("GuidedBackprop", "GuidedGradCam", "Deconvolution")
LRP = ("LRP", "LayerLRP")
_MIXING = ("native_layer_norm", "native_group_norm", "softmax", "max_pool2d_with_indices", "adaptive_max_pool2d")
_POOLING = ("max_pool2d_with_indices", "max_pool3d_with_indices", "mkldnn_max_pool2d")
_ADVICE = "Use IntegratedGradients, GradientShap or Occlusion, which hold for any network"


def reasons(method: str, found: Operations, score: str = "logit") -> list[str]:
    """Why captum's class `method` does not hold for the network; empty for those that hold for any. Covered are:

    DeepLIFT's rescale rule: linear operations, and the layers in captum's SUPPORTED_NON_LINEAR, each a module of its
        own; captum gives plain gradients to all else.
    Guided backpropagation and deconvolution, which change the gradient of ReLU alone: linear operations, max pooling,
        and nn.ReLU modules.
    LRP: linear operations, the layers in captum's SUPPORTED_LAYERS_WITH_RULES, those with a `rule` of their own, and
        SUPPORTED_NON_LINEAR_LAYERS, which relevance passes unchanged; all as modules.
    """
    if method in DEEP_LIFT:
        from captum.attr._core.deep_lift import SUPPORTED_NON_LINEAR

        what = "has no rule, and gets its plain gradient"
        listed = _unsupported(found, lambda layer: type(layer) in SUPPORTED_NON_LINEAR, what, what)
        if score == "margin" and found.channels not in (1, 2):
            listed.append("score='margin' has a maximum over the classes, which gets its plain gradient")
        return listed
    if method in GUIDED:
        runs = [run for run in found.nonlinear if run.kind not in _POOLING]
        what = "keeps its plain gradient, with both signs"
        changed = Operations(runs, found.products, runs=found.runs)
        return _unsupported(changed, lambda layer: isinstance(layer, nn.ReLU), what, what)
    if method in LRP:
        product = "has no rule, and multiplies the relevance"
        return _unsupported(found, _has_lrp_rule, "has no rule", product, lrp=True)
    return []


def prepare_model(method: str, model: nn.Module, images: Tensor, score: str, layer: nn.Module | None) -> None:
    """Warn where the method's rules do not hold, and help where captum alone would stop; the model is `borrowed`.

    Layers that LRP refuses get a rule: activations the identity, others epsilon, which is exact for linear layers such
    as transposed convolutions and upsampling. Those that run several times without weights, but for the explained
    `layer`, get a copy for each run.
    """
    if method not in (*DEEP_LIFT, *GUIDED, *LRP):
        return
    found = operations_of(model, images)
    listed = "; ".join(reasons(method, found, score))
    if listed:
        warnings.warn(f"{method} is not valid for this network as it is: {listed}. {_ADVICE}.", stacklevel=3)
    hooked = {run.layer for run in found.nonlinear}
    if method in LRP:
        from captum.attr._utils.lrp_rules import EpsilonRule, IdentityRule

        hooked = set(found.runs)
        activations = {run.layer for run in found.nonlinear if run.kind not in _MIXING}
        for module in model.modules():
            if not module._modules and not _has_lrp_rule(module):
                module.rule = IdentityRule() if module in activations else EpsilonRule()
    several = {module: times for module, times in found.runs.items() if times > 1 and module in hooked}
    copy_for_each_run(model, {m: n for m, n in several.items() if m is not layer and not list(m.parameters())})


def _has_lrp_rule(layer: nn.Module) -> bool:
    from captum.attr._core.lrp import SUPPORTED_LAYERS_WITH_RULES, SUPPORTED_NON_LINEAR_LAYERS

    return type(layer) in (*SUPPORTED_LAYERS_WITH_RULES, *SUPPORTED_NON_LINEAR_LAYERS) or hasattr(layer, "rule")


def _unsupported(
    found: Operations, covered: Callable[[nn.Module], bool], what: str, product: str, *, lrp: bool = False
) -> list[str]:
    """Reasons for activations that no covered layer runs, for products, sums (LRP) and layers that run several times.

    Activations that are called as functions are named as such.
    """
    named: dict[str, list[Operation]] = {}
    for run in sorted(found.nonlinear, key=lambda run: bool(run.layer._modules)):
        if not covered(run.layer):
            name = f"{run.kind} called as a function" if run.layer._modules else type(run.layer).__name__
            named.setdefault(name, []).append(run)
    both = "gives its relevance to both sides in full; captum wants captum.attr._utils.custom_modules.Addition_Module"
    groups = [(name, runs, what) for name, runs in named.items()]
    groups += [
        ("a product of two maps", found.products, product),
        ("a sum of two maps", found.sums if lrp else [], both),
    ]
    listed = []
    for name, runs, why in groups:
        if runs:
            where = repr(runs[0].name) if runs[0].name else type(runs[0].layer).__name__
            listed.append(f"{name} ({len(runs)}, first in {where}) {why}")
    matters = (lambda layer: not isinstance(layer, (nn.Dropout, nn.Identity))) if lrp else covered
    reused = {layer: times for layer, times in found.runs.items() if times > 1 and matters(layer)}
    if reused:
        kinds = ", ".join(dict.fromkeys(type(layer).__name__ for layer in reused))
        times_run = f"{len(reused)} {kinds}, run up to {max(reused.values())} times in one pass"
        shared = any(True for layer in reused for _ in layer.parameters())
        helped = "" if shared else "; each use has a copy of its own for this call"
        listed.append(f"reused layers ({times_run}), of which captum keeps one input{helped}")
    return listed
