"""captum's methods by name, class or object, put on a target."""

import copy
import difflib
import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from perpixel.checks import check_integer, complain

_METHODS = (
    "Deconvolution DeepLift DeepLiftShap FeatureAblation FeaturePermutation GradientShap GuidedBackprop GuidedGradCam "
    "InputXGradient IntegratedGradients KernelShap LRP Lime NoiseTunnel Occlusion Saliency ShapleyValueSampling "
    "ShapleyValues"
)
_LAYER_METHODS = (
    "InternalInfluence LayerConductance LayerDeepLift LayerDeepLiftShap LayerFeatureAblation LayerFeaturePermutation "
    "LayerGradCam LayerGradientShap LayerGradientXActivation LayerIntegratedGradients LayerLRP"
)
_COUNTS = (
    "internal_batch_size",
    "n_samples",
    "n_steps",
    "nt_samples",
    "nt_samples_batch_size",
    "perturbations_per_eval",
)
_OWN = {  # options that are explain's to set
    **dict.fromkeys(("inputs", "target", "additional_forward_args"), "Say what to explain with label= and region=."),
    "return_input_shape": "Values always come at image size.",
}
NAMES = tuple(f"{_METHODS} {_LAYER_METHODS}".split())
NOISE = ("nt_type", "nt_samples", "nt_samples_batch_size", "stdevs", "draw_baseline_from_distrib")


class Method:
    """A captum method, not yet on a network: `kind` is its class; `on(target, layer)` gives the object.

    `noise`: whether a NoiseTunnel is around it. TypeError or ValueError for a method that explains no score, and for
    options of `attribute` that it has not.
    """

    def __init__(self, method: Any, options: Mapping[str, Any]) -> None:
        from captum import attr

        found = _find(method)
        self.noise = attr.NoiseTunnel in (found, type(found))
        if self.noise:
            found = attr.Saliency if inspect.isclass(found) else found.attribution_method
        self.given = None if inspect.isclass(found) else found
        self.kind: type = found if inspect.isclass(found) else type(found)
        if issubclass(self.kind, attr.NeuronAttribution) or self.kind.__name__ in ("LayerActivation", "Attribution"):
            expected, came = (
                "a method that explains the score of a region",
                f"{self.kind.__name__}, which explains no score",
            )
            raise ValueError(complain("method", expected, came, "Use it with captum."))
        own = self.parameters()
        self.noise = self.noise or any(name in options and name not in own for name in NOISE)
        self._check(options)

    @property
    def name(self) -> str:
        return f"NoiseTunnel({self.kind.__name__})" if self.noise else self.kind.__name__

    @property
    def layered(self) -> bool:
        """Whether it explains a layer's values."""
        return self.takes_layer and self.kind.__name__ != "GuidedGradCam"

    @property
    def takes_layer(self) -> bool:
        return "layer" in inspect.signature(self.kind).parameters

    @property
    def own_layer(self) -> nn.Module | None:
        """The layer of a given object."""
        holder = getattr(self.given, "grad_cam", self.given)
        return getattr(holder, "layer", None)

    def parameters(self) -> tuple[str, ...]:
        """Names of the options of its `attribute`."""
        call = inspect.unwrap(self.kind.attribute)  # type: ignore[attr-defined]
        return tuple(name for name in inspect.signature(call).parameters if name not in ("self", "kwargs"))

    def on(self, target: nn.Module, layer: nn.Module | None) -> Any:
        """The captum object that explains `target`."""
        from captum.attr import NoiseTunnel

        if self.given is not None:
            bound = _rebound(self.given, target)
        else:
            bound = self.kind(target, layer) if self.takes_layer else self.kind(target)
        return NoiseTunnel(bound) if self.noise else bound

    def _check(self, options: Mapping[str, Any]) -> None:
        """TypeError or ValueError for an option that the method has not, that `explain` sets itself, or no count."""
        known = {*self.parameters(), *(NOISE if self.noise else ())} - {*_OWN}
        for name, value in options.items():
            if name in _OWN:
                raise TypeError(complain(name, "no such option", value, _OWN[name]))
            if name in _COUNTS and value is not None:
                check_integer(name, value, low=1)
            if name not in known:
                remedy = f"It takes {', '.join(sorted(known))}."
                raise TypeError(complain(name, f"an option of captum's {self.name}", "another name", remedy))


def _find(method: Any) -> Any:
    """The class of captum's that a name stands for, or the given class or object itself."""
    from captum import attr

    if isinstance(method, str):
        if method in NAMES and hasattr(attr, method):
            return getattr(attr, method)
        close = difflib.get_close_matches(method, NAMES, 4)
        remedy = f"Did you mean {' or '.join(close)}?" if close else f"There are {', '.join(NAMES)}."
        raise ValueError(complain("method", "the name of a captum method that explains a score", method, remedy))
    if isinstance(method, attr.Attribution) or (inspect.isclass(method) and issubclass(method, attr.Attribution)):
        return method
    remedy = "Pass 'IntegratedGradients', say."
    raise TypeError(complain("method", "a captum method: its name, class, or an object of it", method, remedy))


def _rebound(given: Any, target: nn.Module) -> Any:
    """A copy of a captum object that explains `target`; what it wraps is copied too."""
    from captum.attr import Attribution

    bound, old = copy.copy(given), given.forward_func
    for name, value in vars(given).items():
        if value is old:
            setattr(bound, name, target)
        elif isinstance(value, Attribution):
            setattr(bound, name, _rebound(value, target))
        elif isinstance(value, list):
            setattr(bound, name, list(value))
    return bound
