"""How far to trust an attribution: removal curves, reset weights, other baselines, the object alone."""

from perpixel.attribution.faithfulness.baselines import BaselineSensitivity, Completeness, baseline_sensitivity
from perpixel.attribution.faithfulness.curves import Curve
from perpixel.attribution.faithfulness.faithfulness import faithfulness
from perpixel.attribution.faithfulness.infidelity import Infidelity
from perpixel.attribution.faithfulness.object_alone import ObjectAlone, object_alone
from perpixel.attribution.faithfulness.randomised_weights import RandomisedWeights, randomised_weights
from perpixel.attribution.faithfulness.result import Faithfulness

__all__ = [
    "BaselineSensitivity",
    "Completeness",
    "Curve",
    "Faithfulness",
    "Infidelity",
    "ObjectAlone",
    "RandomisedWeights",
    "baseline_sensitivity",
    "faithfulness",
    "object_alone",
    "randomised_weights",
]
