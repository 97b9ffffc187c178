"""captum for dense prediction: a target for any of its classes, and `explain`, one door to its methods."""

from perpixel.attribution.captum.explain import explain
from perpixel.attribution.captum.target import RegionTarget

__all__ = ["RegionTarget", "explain"]
