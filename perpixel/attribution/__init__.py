"""Which image parts decide a label: captum for dense prediction, influence maps, and how far to trust either."""

from perpixel.attribution.baseline_checks import BaselineSensitivity, Completeness, baseline_sensitivity
from perpixel.attribution.baselines import baseline_images, fill
from perpixel.attribution.captum_metrics import Infidelity
from perpixel.attribution.context import Attribution, RadialProfile, context_share, density_ratio, radial_profile
from perpixel.attribution.curves import Curve
from perpixel.attribution.evidence import EvidenceShare, Pointing, evidence_share, pointing
from perpixel.attribution.explain import explain
from perpixel.attribution.faithfulness import faithfulness
from perpixel.attribution.faithfulness_report import Faithfulness
from perpixel.attribution.influence import influence
from perpixel.attribution.influence_classes import ClassMatrix
from perpixel.attribution.influence_result import Evidence, Influence
from perpixel.attribution.object_alone import ObjectAlone, object_alone
from perpixel.attribution.patches import connected_segments
from perpixel.attribution.randomised import RandomisedWeights, randomised_weights
from perpixel.attribution.targets import RegionTarget

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
