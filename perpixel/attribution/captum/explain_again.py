"""Making an attribution again, for another network or another baseline."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from perpixel.attribution.captum.explain import explain
from perpixel.attribution.captum.methods import NAMES, Method
from perpixel.attribution.captum.options import DISTRIBUTION
from perpixel.attribution.measures.context import Attribution
from perpixel.checks import complain


@dataclass(frozen=True)
class Again:
    """`call(network, images)` gives values for another network; with `baselines=`, too, if `takes_baselines`."""

    call: Callable[..., Tensor | Attribution]
    takes_baselines: bool

    def with_baseline(self, network: nn.Module, images: Tensor, baseline: Tensor) -> Tensor | Attribution:
        return self.call(network, images, baselines=baseline)


def explainer_of(
    explainer: Callable[..., Tensor | Attribution] | str | None,
    attribution: Attribution | Tensor,
    label: Tensor,
    region: Tensor,
    score: str,
) -> Again | None:
    """As told, or by the method of the attribution; None if neither is known. The region stays as it is."""
    layer = None
    if explainer is None:
        if not isinstance(attribution, Attribution) or attribution.method not in NAMES:
            return None
        explainer, layer = attribution.method, attribution.layer
    if not isinstance(explainer, str):
        if not callable(explainer):
            expected = "a callable on (network, images), or the name of a method of perpixel.explain"
            raise TypeError(complain("explainer", expected, explainer, "Return the values of the network given."))
        parameters = inspect.signature(explainer).parameters.values()
        return Again(explainer, any(p.name == "baselines" or p.kind is p.VAR_KEYWORD for p in parameters))
    method = explainer
    known = Method(method, {})

    def by_method(network: nn.Module, images: Tensor, **options: Any) -> Tensor:
        how: dict[str, Any] = {"region": region, "score": score, "method": method, "layer": layer}
        return explain(network, images, label, **how, **options).pixels

    return Again(by_method, "baselines" in known.parameters() and known.kind.__name__ not in DISTRIBUTION)
