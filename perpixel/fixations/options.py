"""What others pass on to `fixations`, checked before there is a model to try it on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from perpixel.checks import check_integer, check_option, complain
from perpixel.fixations.rules.step import Share
from perpixel.fixations.rules.table import FixationRules, fixation_rules

K = int | Share | str | Mapping[str, int | Share]
Shift = Literal["full", "partial", "none"]


@dataclass(frozen=True)
class FixationOptions:
    """How points are followed: `rules`, `k` and `shift` of `fixations`; `**vars(options)` passes them on.

    `rules` is a `FixationRules` afterwards. TypeError or ValueError for what `fixations` would refuse with any model.
    """

    rules: str | FixationRules = "modern"
    k: K = 1
    shift: Shift = "partial"

    def __post_init__(self) -> None:
        object.__setattr__(self, "rules", fixation_rules(self.rules))
        object.__setattr__(self, "k", _check_k(self.k))
        check_option("shift", self.shift, get_args(Shift))


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
