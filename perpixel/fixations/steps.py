"""The rules of one walk, node by node."""

import contextlib
from collections.abc import Iterable

from torch.fx.node import Node

from perpixel.fixations.rules import joins
from perpixel.fixations.rules.placement import CUTS
from perpixel.fixations.rules.step import Conventions, Rule, Step
from perpixel.fixations.rules.table import FixationRules
from perpixel.fixations.trace.graph import Trace
from perpixel.fixations.trace.operations import operation
from perpixel.fixations.trace.run import Run


class Steps:
    """The rules of one walk, by node: what a run asks to know what it must keep, and where the points of a node go."""

    def __init__(self, trace: Trace, rules: FixationRules, conventions: Conventions) -> None:
        self.trace, self.rules, self.conventions = trace, rules, conventions
        self._known: dict[Node, Rule | None] = {} if rules.extra else trace.rules

    def at(self, node: Node, run: Run) -> tuple[Step, Rule | None]:
        """The step at a node and the rule for it, if there is one."""
        source = _giver(node, run)
        step = Step(node, run, self.conventions) if source is None else Step(source, run, self.conventions, node)
        if node not in self._known:
            self._known[node] = self.rules.rule(step.node, step.module)
        return step, self._known[node]

    def follows(self, node: Node, run: Run) -> Iterable[Node]:
        """The nodes the points of `node` may move to."""
        step, rule = self.at(node, run)
        with contextlib.suppress(NotImplementedError):  # raised if points come here
            found = step.operands if rule is None else rule.follows(step)
            return found if step.item is None else [*found, step.node]
        return step.operands

    def reads(self, node: Node, run: Run) -> Iterable[Node]:
        """The nodes whose values the move needs."""
        step, rule = self.at(node, run)
        with contextlib.suppress(NotImplementedError):
            return [] if rule is None else rule.reads(step)
        return []

    def inner(self, node: Node) -> Iterable[Node]:
        """The nodes that are passed over because `node` and they are one operation."""
        if node not in self.trace.inner:
            self.trace.inner[node] = joins.inner_nodes(node)
        return self.trace.inner[node]


def _giver(node: Node, run: Run) -> Node | None:
    """The operation whose first result `node` takes out of several that are not parts of one."""
    if operation(node) != "getitem" or node.args[1] != 0:
        return None
    source = node.args[0]
    several = isinstance(source, Node) and source not in run.shapes and operation(source) not in CUTS
    return source if several else None  # type: ignore[return-value]
