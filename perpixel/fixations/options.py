"""How points are followed: the options of `fixations` as one, and what the rules make of them."""

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from torch import nn

from perpixel.checks import check_integer, check_option, complain
from perpixel.fixations.rules.step import Conventions, Count, Share, Step
from perpixel.fixations.rules.table import FixationRules, fixation_rules
from perpixel.fixations.trace.graph import Trace
from perpixel.fixations.trace.operations import operation

_MATRICES = ("linear", "matmul", "__matmul__", "bmm", "mm", "einsum", "scaled_dot_product_attention")  # places are kept

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


def conventions_of(options: FixationOptions, trace: Trace) -> Conventions:
    """What the rules go by; ValueError if `k` names layers or nodes that the trace does not have."""
    rules = fixation_rules(options.rules)
    published, elements = rules.base == "seg-unravel", rules.select == "element"
    return Conventions(options.shift, published, elements, _counts(options.k, trace), rules.attention == "value")


def _check_k(k: K) -> K:
    if isinstance(k, Mapping):
        return {name: _check_count(f"k[{name!r}]", count) for name, count in k.items()}
    return k if isinstance(k, str) and k == "resolution" else _check_count("k", k)


def _check_count(argument: str, k: object) -> Count:
    if isinstance(k, Share):
        return k
    if isinstance(k, str):
        raise ValueError(complain(argument, "an integer, a Share or 'resolution'", k, "Choose one of these."))
    return check_integer(argument, k, low=1)


def _counts(k: K, trace: Trace) -> Callable[[Step], Count] | None:
    """How many inputs a point moves to, by step; None for one everywhere."""
    if k == 1:
        return None
    if k == "resolution":
        return _finer
    if not isinstance(k, Mapping):
        return lambda step: k  # type: ignore[return-value]
    names = {name for node in trace.nodes for name in (node.name, str(node.target))}
    for name in k:
        if name not in names:
            close = difflib.get_close_matches(str(name), names, 5)
            remedy = f"The closest are {', '.join(close)}." if close else "See model.named_modules()."
            raise ValueError(complain("k", "names of layers or nodes as keys", name, remedy))
    return lambda step: k.get(step.node.name, k.get(str(step.node.target), 1))


def _finer(step: Step) -> Count:
    """The increase of spatial resolution from the operation's result to its source."""
    if isinstance(step.module, nn.Linear) or operation(step.node) in _MATRICES:
        return 1
    before, after = (math.prod(shape[2:]) for shape in (step.shape(step.operands[0]), step.shape()))
    return max(1, round(before / max(after, 1)))
