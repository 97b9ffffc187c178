"""What a rule sees: points on the result of one operation, the operation, and the values it was computed from."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.node import Node, map_arg

from perpixel.checks import check_number, complain
from perpixel.fixations.points import Points
from perpixel.fixations.rules.geometry import flat
from perpixel.fixations.trace.graph import Run, nan_message
from perpixel.fixations.tracks import Array, Tracks

Moves = list[tuple[Node, Points]]
TrackMoves = list[tuple[Node, Tracks]]


@dataclass(frozen=True)
class Share:
    """As `k`: the smallest number of contributions that captures `share` of the unit's activation, 0 < share <= 1."""

    share: float

    def __post_init__(self) -> None:
        check_number("share", self.share, low=0.0, high=1.0, open_low=True)


K = int | Share


@dataclass(frozen=True)
class Way:
    """How one run walks back.

    shift: "full", "partial" or "none". published: the conventions of Seg-Unravel. elements: weigh every contribution on
    its own, not the channels first. classes: number of labels. k: asked for each step by the node and its sizes.
    """

    shift: str
    published: bool
    elements: bool
    classes: int
    k: Callable[["Step"], K]


@dataclass(frozen=True)
class Step:
    """One operation: `node` of the graph, with access to what it was computed from."""

    node: Node
    run: Run
    way: Way

    @property
    def module(self) -> nn.Module | None:
        """The layer, if the operation is one."""
        return self.run.layers[str(self.node.target)] if self.node.op == "call_module" else None

    @property
    def operands(self) -> list[Node]:
        """The tensors the operation was computed from, in order, constants and weights left out."""
        return self.run.operands(self.node)

    def value(self, node: Node) -> Tensor:
        """A tensor the operation was computed from; kept only if the rule says that it reads it."""
        return self.run.values[node]

    def shape(self, node: Node | None = None) -> tuple[int, ...]:
        """The shape of an operand, or of the result."""
        return self.run.shapes[self.node if node is None else node]

    def argument(self, name: str, position: int, default: Any = None) -> Any:
        """A setting of the operation: attribute `name` of the layer, or argument of the function at `position`."""
        if self.node.op == "call_module":
            return getattr(self.module, name, default)
        given: Any = default
        if name in self.node.kwargs:
            given = self.node.kwargs[name]
        elif position < len(self.node.args):
            given = self.node.args[position]
        return map_arg(given, lambda node: self.run.values[node])

    def image(self, points: Points) -> Tensor | int:
        """The image of every point."""
        return 0 if self.run.images.shape[0] == 1 else points.group // self.way.classes

    def at(self, node: Node, points: Points) -> Tensor:
        """The values of a 'node' of the result's shape, or one that broadcasts to it, where the points are."""
        value, shape = self.value(node), self.shape()
        if not isinstance(value, Tensor):
            return torch.full((len(points),), float(value), device=points.unit.device)
        if value.shape == torch.Size(shape) and len(shape) > 1:
            values, (per_image, per_channel, per_pixel) = flat(value)
            area = per_image // shape[1]
            channel = points.unit // area
            pixel = points.unit - channel * area
            return values[self.image(points) * per_image + channel * per_channel + pixel * per_pixel]
        index = list(torch.unravel_index(points.unit, shape[1:]))
        index = [torch.as_tensor(self.image(points), device=points.unit.device).expand(len(points)), *index]
        index = index[len(index) - value.ndim :]
        return value[tuple(i if size > 1 else torch.zeros_like(i) for i, size in zip(index, value.shape))]

    def units(self, node: Node | None = None) -> int:
        """The number of units per image of an operand, or of the result."""
        return math.prod(self.shape(node)[1:])

    def refuse(self, why: str) -> NotImplementedError:
        """The error for an operation that cannot be followed."""
        return NotImplementedError(
            complain(
                f"node {self.node.name!r}",
                "an operation the points can be followed through",
                f"{self.node.op} {self.node.target}: {why}",
                "Give it a rule with FixationRules(extra={operation: rule}).",
            )
        )

    def watch(self, node: Node, scores: Array) -> None:
        """As `check`, once the walk is over."""
        self.run.watched.append((node, scores))

    def check(self, scores: Tensor, node: Node) -> None:
        """ValueError naming `node` if the scores taken from its values are not numbers."""
        if bool(scores.isnan().any()):
            raise ValueError(nan_message(node.name))


@dataclass(frozen=True)
class Rule:
    """How points move through one operation.

    move: (points on the result, step) -> pairs of an operand and the points on it; mass that comes back on no operand
    counts as dropped. reads: the nodes whose values `move` asks for, known once the result is computed; the values of
    all others are freed. follows: the operands points may move to. swift: `move` for k = 1 on the CPU, where it pays;
    it may decline with None.
    """

    move: Callable[[Points, Step], Moves]
    reads: Callable[[Step], Iterable[Node]] = lambda step: step.operands
    follows: Callable[[Step], Iterable[Node]] = lambda step: step.operands
    swift: Callable[[Tracks, Step], TrackMoves | None] = lambda tracks, step: None


Rules = Mapping[Any, Rule]


def nothing(step: Step) -> list[Node]:
    """Read no value."""
    return []
