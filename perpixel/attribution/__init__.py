"""Which image parts decide a label: captum for dense prediction, influence maps, and how far to trust either."""

from perpixel.attribution.baselines import baseline_images, fill
from perpixel.attribution.captum.explain import explain
from perpixel.attribution.captum.target import RegionTarget
from perpixel.attribution.faithfulness.baselines import BaselineSensitivity, Completeness, baseline_sensitivity
from perpixel.attribution.faithfulness.curves import Curve
from perpixel.attribution.faithfulness.faithfulness import faithfulness
from perpixel.attribution.faithfulness.infidelity import Infidelity
from perpixel.attribution.faithfulness.object_alone import ObjectAlone, object_alone
from perpixel.attribution.faithfulness.randomised_weights import RandomisedWeights, randomised_weights
from perpixel.attribution.faithfulness.result import Faithfulness
from perpixel.attribution.influence.class_matrix import ClassMatrix
from perpixel.attribution.influence.influence import influence
from perpixel.attribution.influence.patches import connected_segments
from perpixel.attribution.influence.result import Evidence, Influence
from perpixel.attribution.measures.context import (
    Attribution,
    RadialProfile,
    context_share,
    density_ratio,
    radial_profile,
)
from perpixel.attribution.measures.evidence import EvidenceShare, Pointing, evidence_share, pointing

__all__ = [
    "Attribution",
    "BaselineSensitivity",
    "ClassMatrix",
    "Completeness",
    "Curve",
    "Evidence",
    "EvidenceShare",
    "Faithfulness",
    "Infidelity",
    "Influence",
    "ObjectAlone",
    "Pointing",
    "RadialProfile",
    "RandomisedWeights",
    "RegionTarget",
    "baseline_images",
    "baseline_sensitivity",
    "connected_segments",
    "context_share",
    "density_ratio",
    "evidence_share",
    "explain",
    "faithfulness",
    "fill",
    "influence",
    "object_alone",
    "pointing",
    "radial_profile",
    "randomised_weights",
]
