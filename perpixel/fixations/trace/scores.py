"""NaN among the scores that moves were decided by, looked for now and then, since each look costs."""

from typing import Any

import numpy as np
from torch.fx.node import Node

from perpixel.checks import complain

Array = np.ndarray[Any, Any]
_MANY = 1 << 20  # scores up to which looking at them is put off


class Scores:
    """The scores of values of nodes that were not looked at yet."""

    def __init__(self) -> None:
        self._added: list[tuple[Node, Array]] = []
        self._count = 0

    def add(self, node: Node, scores: Array) -> None:
        """ValueError naming `node`, at `check` at the latest, if these scores of its values are not numbers."""
        self._added.append((node, scores))
        self._count += scores.size
        if self._count > _MANY:
            self.check()

    def forget(self) -> None:
        """What was added so far may hold NaN."""
        self._added, self._count = [], 0

    def check(self) -> None:
        """ValueError if something added was not a number."""
        added = self._added
        self.forget()
        if added and np.isnan(np.concatenate([scores.ravel() for _, scores in added])).any():
            for node, scores in added:
                if np.isnan(scores).any():
                    raise ValueError(nan_message(node.name))


def nan_message(name: str) -> str:
    """The error for a tensor with NaN."""
    return complain(f"node {name!r}", "numbers as activations", "NaN", "Look for an overflow or a bad input upstream.")
