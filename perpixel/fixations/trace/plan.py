"""What a run asks about the operations, and what it finds out once for all that follow."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from torch import nn
from torch.fx.node import Node

if TYPE_CHECKING:
    from perpixel.fixations.trace.run import Run

_MAKERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.BatchNorm2d, nn.GroupNorm)


class Reader(Protocol):
    """What a run asks about a node, once it is computed."""

    def follows(self, node: Node, run: "Run") -> Iterable[Node]:
        """The nodes the points of `node` may move to."""

    def reads(self, node: Node, run: "Run") -> Iterable[Node]:
        """The nodes whose values the move needs."""

    def inner(self, node: Node) -> Iterable[Node]:
        """The nodes that are passed over because `node` and they are one operation."""


@dataclass
class Plan:
    """What one run found out about the graph: the next needs not ask again."""

    shapes: dict[Node, tuple[int, ...]] = field(default_factory=dict)
    tracked: set[Node] = field(default_factory=set)  # nodes whose tensor depends on the images
    reads: dict[Node, list[Node]] = field(default_factory=dict)  # what the move back from a node reads
    keeps: "Counter[Node]" = field(default_factory=Counter)  # how many moves back still read a node
    frees: dict[Node, list[Node]] = field(default_factory=dict)  # what nobody needs once a node is computed
    overwrites: set[Node] = field(default_factory=set)  # activations that may be computed in their input's memory
    tables: dict[Any, Any] = field(default_factory=dict)  # where the places of results look
    checked: bool = False  # whether every operation that points might reach was tried


def may_overwrite(node: Node, layers: Mapping[str, nn.Module]) -> bool:
    """Whether a node is an activation that overwrites, right after a layer that made its input and nothing else."""
    if node.op != "call_module" or len(node.args) != 1 or node.kwargs:
        return False
    (source,) = node.args
    if not isinstance(source, Node) or source.op != "call_module" or len(source.users) != 1:
        return False
    return getattr(layers[str(node.target)], "inplace", False) and isinstance(layers[str(source.target)], _MAKERS)
