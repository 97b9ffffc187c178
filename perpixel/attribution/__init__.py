"""Which image parts decide a label: captum for dense prediction, and numbers on the context."""

from perpixel.attribution.baselines import baseline_images, fill
from perpixel.attribution.context import Attribution, RadialProfile, context_share, density_ratio, radial_profile
from perpixel.attribution.explain import explain
from perpixel.attribution.targets import RegionTarget

__all__ = [
    "Attribution",
    "RadialProfile",
    "RegionTarget",
    "baseline_images",
    "context_share",
    "density_ratio",
    "explain",
    "fill",
    "radial_profile",
]
