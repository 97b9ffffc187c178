"""How points move through each operation: the table of rules, and one file per family of operations."""

from perpixel.fixations.rules.step import Rule, Share, Step
from perpixel.fixations.rules.table import RULES, FixationRules, fixation_rules

__all__ = ["RULES", "FixationRules", "Rule", "Share", "Step", "fixation_rules"]
