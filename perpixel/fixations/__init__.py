"""Segmentation fixations: from every labelled pixel back to the image points it rests on."""

from perpixel.fixations.options import FixationOptions
from perpixel.fixations.points import Units
from perpixel.fixations.result import Fixations, PointMap
from perpixel.fixations.rules.step import Rule, Share, Step
from perpixel.fixations.rules.table import RULES, FixationRules
from perpixel.fixations.walk import fixations

__all__ = [
    "RULES",
    "FixationOptions",
    "FixationRules",
    "Fixations",
    "PointMap",
    "Rule",
    "Share",
    "Step",
    "Units",
    "fixations",
]
