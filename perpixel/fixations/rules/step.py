"""What a rule sees: units of the result of one operation, the operation, and the values it was computed from."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.node import Node, map_arg

from perpixel.checks import check_number, complain
from perpixel.fixations.points import Units
from perpixel.fixations.rules.geometry import Window, WindowTable
from perpixel.fixations.trace.run import Run

Moves = list[tuple[Node, Units]]


@dataclass(frozen=True)
class Share:
    """As `k`: the smallest number of contributions that captures `share` of the unit's activation, 0 < share <= 1."""

    share: float

    def __post_init__(self) -> None:
        check_number("share", self.share, low=0.0, high=1.0, open_low=True)


K = int | Share


@dataclass(frozen=True)
class Conventions:
    """What all rules of one walk go by.

    shift: "full", "partial" or "none". published: the conventions of Seg-Unravel. elements: weigh every contribution on
    its own, not the channels first. k: asked for each step by the node and its sizes.
    """

    shift: str
    published: bool
    elements: bool
    k: Callable[["Step"], K]

    def keep_place(self, dilation: tuple[int, int]) -> bool:
        """Whether points stay where they are in a convolution of this dilation."""
        return self.shift == "none" or (self.shift == "partial" and max(dilation) > 1)


@dataclass(frozen=True, slots=True)
class Step:
    """One operation: `node` of the graph, with access to what it was computed from."""

    node: Node
    run: Run
    conventions: Conventions

    @property
    def module(self) -> nn.Module | None:
        """The layer, if the operation is one."""
        return self.run.layers[str(self.node.target)] if self.node.op == "call_module" else None

    @property
    def operands(self) -> list[Node]:
        """The tensors the operation was computed from, in order, constants and weights left out."""
        return self.run.operands(self.node)

    @property
    def k(self) -> K:
        """How many inputs a point moves to."""
        return self.conventions.k(self)

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

    def places(self, node: Node | None = None) -> int:
        """The number of places of an image in an operand (H · W), or in the result."""
        return math.prod(self.shape(node)[2:])

    def image(self, units: Units) -> Tensor | int:
        """The image of every unit."""
        return 0 if self.shape()[0] == 1 else units.pixel // self.places()

    def index(self, units: Units) -> Tensor:
        """The place of every unit in its image's part of the result, row-major (channel, y, x)."""
        places = self.places()
        return units.channel * places + units.pixel - self.image(units) * places

    def at_index(self, units: Units, index: Tensor, node: Node, *, distinct: bool = False) -> Units:
        """The units at these places in the same images' part of an operand."""
        places = self.places(node)
        channel = index // places
        pixel = index - channel * places + self.image(units) * places
        return units.at(pixel, channel, distinct=distinct)

    def read(self, node: Node, units: Units) -> Tensor:
        """The values of an operand of the result's shape, or of one that broadcasts to it, where the units are."""
        value, shape = self.value(node), self.shape()
        if not isinstance(value, Tensor):
            return torch.full((len(units),), float(value), device=units.pixel.device)
        if value.shape == torch.Size(shape) and len(shape) > 1:
            return Memory.of(value).at(units.pixel, units.channel)
        index = list(torch.unravel_index(self.index(units), shape[1:]))
        index = [torch.as_tensor(self.image(units), device=units.pixel.device).expand(len(units)), *index]
        index = index[len(index) - value.ndim :]
        return value[tuple(i if size > 1 else torch.zeros_like(i) for i, size in zip(index, value.shape))]

    def table(self, window: Window, order: list[int]) -> WindowTable:
        """Where the windows of the result lie in its first operand; kept for runs on images of this size."""
        tables, source, device = self.run.plan.tables, self.operands[0], self.run.images.device
        key = window, tuple(order), self.shape(source), self.shape()
        if key not in tables:
            tables[key] = WindowTable(window, order, self.shape(source), self.shape(), device)
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

    def check(self, scores: Tensor, node: Node) -> None:
        """ValueError naming `node`, at the end of the walk at the latest, if scores taken from it are not numbers."""
        self.run.watch(node, scores)


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


@dataclass(slots=True)
class Memory:
    """A tensor (N, C, ...) in one row, copied only if it must be; together: whether the channels of a pixel lie so."""

    row: Tensor
    channels: int
    places: int
    together: bool

    @staticmethod
    def of(x: Tensor) -> "Memory":
        """That of `x`."""
        x = x.detach() if x.requires_grad else x
        channels, places = x.shape[1] if x.ndim > 1 else 1, math.prod(x.shape[2:])
        if x.ndim > 2:
            spread = x.movedim(1, -1)
            if spread.is_contiguous():
                return Memory(spread.view(-1), channels, places, True)
        return Memory(x.reshape(-1), channels, places, False)

    def index(self, pixel: Tensor, channel: Tensor) -> Tensor:
        """Where the values at these pixels and channels lie."""
        if self.together:
            return pixel * self.channels + channel
        if self.row.shape[0] == self.channels * self.places:
            return pixel + channel * self.places
        return pixel + (pixel // self.places * (self.channels - 1) + channel) * self.places

    def at(self, pixel: Tensor, channel: Tensor) -> Tensor:
        """The values there, computed with in float32 where the tensor is coarser."""
        values = self.row.take(self.index(pixel, channel))
        return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
