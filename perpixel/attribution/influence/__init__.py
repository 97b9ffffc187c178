"""Every patch's effect on every pixel's every class logit, from one forward pass per patch."""

from perpixel.attribution.influence.class_matrix import ClassMatrix
from perpixel.attribution.influence.influence import influence
from perpixel.attribution.influence.patches import connected_segments
from perpixel.attribution.influence.result import Evidence, Influence

__all__ = ["ClassMatrix", "Evidence", "Influence", "connected_segments", "influence"]
