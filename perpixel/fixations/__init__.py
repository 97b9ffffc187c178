"""Segmentation fixations: from every labelled pixel back to the image points it rests on."""

from perpixel.fixations.backtrace import fixations
from perpixel.fixations.points import Points
from perpixel.fixations.result import Fixations, PointMap
from perpixel.fixations.rules import RULES, FixationRules
from perpixel.fixations.step import Rule, Share, Step

__all__ = ["RULES", "FixationRules", "Fixations", "PointMap", "Points", "Rule", "Share", "Step", "fixations"]
