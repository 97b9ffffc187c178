"""Checks of what is passed on to `perpixel.fixations`, before there is a model to try it on."""

from collections.abc import Mapping
from typing import Any

from perpixel.checks import check_integer, check_option, complain
from perpixel.fixations import FixationRules, Share
from perpixel.fixations.rules.table import fixation_rules

K = int | Share | str | Mapping[str, int | Share]


def fixation_options(rules: str | FixationRules, k: K, shift: str) -> dict[str, Any]:
    """The three as keyword arguments of `fixations`, or TypeError or ValueError."""
    options = ("full", "partial", "none")
    return {"rules": fixation_rules(rules), "k": _check_k(k), "shift": check_option("shift", shift, options)}


def _check_k(k: K) -> K:
    if isinstance(k, Share) or k == "resolution":
        return k
    if isinstance(k, str):
        raise ValueError(complain("k", "an integer, a Share, 'resolution' or a mapping", k, "Choose one of these."))
    if isinstance(k, Mapping):
        for name, count in k.items():
            if not isinstance(count, Share):
                check_integer(f"k[{name!r}]", count, low=1)
        return dict(k)
    return check_integer("k", k, low=1)
