"""What a rule sees: units of the result of one operation, the operation, and the values it was computed from."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx.node import Node, map_arg

from perpixel.checks import check_number, complain
from perpixel.fixations.points import Array, Units
from perpixel.fixations.rules.geometry import Window, WindowTable, as_map
from perpixel.fixations.rules.values import Values, block, pick
from perpixel.fixations.trace.run import Run

Moves = list[tuple[Node, Units]]


@dataclass(frozen=True)
class Share:
    """As `k`: the smallest number of contributions that captures `share` of the unit's activation, 0 < share <= 1."""

    share: float

    def __post_init__(self) -> None:
        check_number("share", self.share, low=0.0, high=1.0, open_low=True)


Count = int | Share


@dataclass(frozen=True)
class Conventions:
    """What all rules of one walk go by.

    shift: "full", "partial" or "none". published: the conventions of Seg-Unravel. elements: weigh every contribution on
    its own, not the channels first. k: asked for each step by the node and its sizes; None for 1. attends: points of
    attention's output go to the tokens it looks at, not to their own.
    """

    shift: str
    published: bool
    elements: bool
    k: Callable[["Step"], Count] | None
    attends: bool = True

    def keep_place(self, dilation: tuple[int, int]) -> bool:
        """Whether points stay where they are in a convolution of this dilation."""
        return self.shift == "none" or (self.shift == "partial" and max(dilation) > 1)


@dataclass(frozen=True, slots=True)
class Step:
    """One operation: `node` of the graph, with access to what it was computed from.

    item: the node of the result where the operation gives several tensors.
    """

    node: Node
    run: Run
    conventions: Conventions
    item: Node | None = None

    @property
    def module(self) -> nn.Module | None:
        """The layer, if the operation is one."""
        return self.run.layers[str(self.node.target)] if self.node.op == "call_module" else None

    @property
    def operands(self) -> list[Node]:
        """The tensors the operation was computed from, in order, constants and weights left out."""
        return self.run.operands(self.node)

    @property
    def k(self) -> Count:
        """How many inputs a point moves to."""
        return 1 if self.conventions.k is None else self.conventions.k(self)

    def value(self, node: Node) -> Tensor:
        """A tensor the operation was computed from; kept only if the rule says that it reads it."""
        return self.run.values[node]

    def shape(self, node: Node | None = None) -> tuple[int, ...]:
        """The shape of an operand, or of the result."""
        return self.run.shapes[(self.item or self.node) if node is None else node]

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

    def places(self, node: Node | None = None) -> int:
        """The number of places of an image in an operand (H · W), or in the result."""
        return math.prod(self.shape(node)[2:])

    def image(self, units: Units) -> Array | int:
        """The image of every unit."""
        return 0 if self.shape()[0] == 1 else units.pixel // self.places()

    def index(self, units: Units) -> Array:
        """The place of every unit in its image's part of the result, row-major (channel, y, x)."""
        places = self.places()
        return units.channel * places + units.pixel - self.image(units) * places

    def at_index(self, units: Units, index: Array, node: Node, *, distinct: bool = False) -> Units:
        """The units at these places in the same images' part of an operand."""
        places = self.places(node)
        channel = index // places
        return units.at(index - channel * places + self.image(units) * places, channel, distinct=distinct)

    def element(self, units: Units) -> Array:
        """The place of every unit in the result, row-major, whatever its first dimension counts."""
        return self.image(units) * math.prod(self.shape()[1:]) + self.index(units)

    def at_element(self, units: Units, element: Array, node: Node, *, distinct: bool = False) -> Units:
        """The units at these places of an operand."""
        places, channels = self.places(node), math.prod(self.shape(node)[1:2])
        row = element // places
        first = row // channels
        return units.at(element + (first - row) * places, row - first * channels, distinct=distinct)

    def read(self, node: Node, units: Units) -> Array:
        """The values of an operand of the result's shape, or of one that broadcasts to it, where the units are."""
        value, shape = self.value(node), self.shape()
        if not isinstance(value, Tensor):
            return np.full(len(units), float(value))
        if len(shape) > 1 and value.shape == torch.Size(shape):
            return Values.of(value).at(units.pixel, units.channel)
        if value.ndim == len(shape) and value.shape == (*shape[:2], *[1] * (value.ndim - 2)):  # a value per channel
            return pick(block(value.reshape(-1)), self.image(units) * shape[1] + units.channel)
        place = np.unravel_index(self.index(units), shape[1:])
        index = [np.broadcast_to(self.image(units), len(units)), *place][len(shape) - value.ndim :]
        index = [i if size > 1 else np.zeros_like(i) for i, size in zip(index, value.shape)]
        return pick(
            block(value.reshape(-1)),
            np.ravel_multi_index(index, value.shape) if index else np.zeros(len(units), np.int64),
        )

    def table(self, window: Window, order: list[int]) -> WindowTable:
        """Where the windows of the result lie in its first operand; kept for runs on images of this size."""
        tables, source = self.run.plan.tables, self.operands[0]
        key = window, tuple(order), self.shape(source), self.shape()
        if key not in tables:
            tables[key] = WindowTable(window, order, as_map(self.shape(source)), as_map(self.shape()))
        return tables[key]

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

    def watch(self, scores: Array, node: Node) -> None:
        """ValueError naming `node`, at the end of the walk at the latest, if scores taken from it are not numbers."""
        self.run.scores.add(node, scores)


@dataclass(frozen=True)
class Rule:
    """How points move through one operation.

    move: (units of the result, step) -> pairs of an operand and the units on it; mass that comes back on no operand
    counts as dropped. reads: the nodes whose values `move` asks for, known once the result is computed; the values of
    all others are freed. follows: the operands points may move to.
    stays: every unit goes to the same unit of the one operand. keeps_channel: every unit keeps its channel.
    jumps: a result of one place per image comes from all over the map. work: how many contributions are looked at for
    a unit; where that is much in all, equal units are looked for first.
    """

    move: Callable[[Units, Step], Moves]
    reads: Callable[[Step], Iterable[Node]] = lambda step: step.operands
    follows: Callable[[Step], Iterable[Node]] = lambda step: step.operands
    stays: bool = False
    keeps_channel: bool = False
    jumps: bool = False
    work: Callable[[Step], int] = lambda step: 1


def nothing(step: Step) -> list[Node]:
    """Read no value."""
    return []
