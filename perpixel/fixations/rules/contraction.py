"""Products of two tensors, whatever the order of their dimensions, seen as one of matrices."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from torch.fx.node import Node

from perpixel.fixations.points import Array
from perpixel.fixations.rules.step import Step


@dataclass(frozen=True, slots=True)
class Product:
    """left (B, I, S) times right (B, S, J), as which any product of two tensors is seen.

    axes: what each dimension of left, right and the result counts; None where one of size 1 is broadcast. groups: what
    B, I, S and J are made of, and size: how long each axis is. follows_right: whether the right one is followed;
    is_attention: whether the other one is attention's probabilities.
    """

    left: Any
    right: Any
    axes: tuple[tuple[Any, ...], tuple[Any, ...], tuple[Any, ...]]
    groups: tuple[list[Any], list[Any], list[Any], list[Any]]
    size: dict[Any, int]
    follows_right: bool
    is_attention: bool

    @property
    def source(self) -> Node:
        return self.right if self.follows_right else self.left

    def length(self, group: list[Any]) -> int:
        return math.prod(self.size[axis] for axis in group)

    def matrices(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """(B, I, S) and (B, S, J)."""
        batch, rows, summed, columns = self.groups
        return self._ordered(left, 0, [batch, rows, summed]), self._ordered(right, 1, [batch, summed, columns])

    def _ordered(self, tensor: Tensor, which: int, groups: list[list[Any]]) -> Tensor:
        axes = [axis for axis in self.axes[which] if axis is not None]
        tensor = tensor.detach()[tuple(0 if axis is None else slice(None) for axis in self.axes[which])]
        order = [axes.index(axis) for group in groups for axis in group]
        return tensor.permute(order).reshape([self.length(group) for group in groups])

    def places(self, element: Array) -> list[Array]:
        """B, I and J of these elements of the result."""
        axes = self.axes[2]
        at = dict(zip(axes, np.unravel_index(element, [self.size[axis] for axis in axes])))
        found = []
        for group in (self.groups[0], self.groups[1], self.groups[3]):
            place = np.zeros_like(element)
            for axis in group:
                place = place * self.size[axis] + at[axis]
            found.append(place)
        return found

    def element(self, entry: Array, row: Array, place: Array, column: Array) -> Array:
        """The element of the followed tensor at B, I or J, and S."""
        batch, rows, summed, columns = self.groups
        at: dict[Any, Array] = {}
        for group, number in (
            (batch, entry),
            (summed, place),
            (columns, column) if self.follows_right else (rows, row),
        ):
            at |= zip(group, np.unravel_index(number, [self.size[axis] for axis in group])) if group else ()
        element = np.zeros_like(entry)
        for axis in self.axes[1 if self.follows_right else 0]:
            element = element if axis is None else element * self.size[axis] + at[axis]
        return element


def matmul_operands(step: Step) -> tuple[Node, Node, tuple[Any, ...]]:
    """Left and right of matmul, bmm or @, and the axes of both and of the result."""
    given = [*step.node.args, *step.node.kwargs.values()]
    if len(given) != 2 or not all(isinstance(n, Node) for n in given):
        raise step.refuse("a product of matrices is followed where it has two operands and no other argument")
    left, right = given
    lengths = [len(step.shape(n)) for n in (left, right, None)]  # type: ignore[arg-type]
    if min(lengths) < 2:
        raise step.refuse("a product is followed where both operands are matrices")
    return left, right, matrix_axes(*lengths)  # type: ignore[return-value]


def matrix_axes(left: int, right: int, result: int) -> tuple[tuple[int, ...], ...]:
    """Of (.., I, S) times (.., S, J), by how many dimensions they have; S is -1."""
    *batch, row, column = range(result)
    return (*batch[result - left :], row, -1), (*batch[result - right :], -1, column), (*batch, row, column)


def einsum_operands(step: Step) -> tuple[Node, Node, tuple[Any, ...]]:
    """Left and right of an einsum of two, and the axes of both and of the result: its letters."""
    equation, *given = step.node.args
    if len(given) == 1 and isinstance(given[0], (tuple, list)):
        given = [*given[0]]
    if not isinstance(equation, str) or len(given) != 2:
        raise step.refuse("einsum is followed where it has an equation in letters and two operands")
    terms, _, result = equation.replace(" ", "").partition("->")
    if "->" not in equation:
        letters = terms.replace(",", "").replace(".", "")
        result = "..." + "".join(sorted(letter for letter in {*letters} if letters.count(letter) == 1))
    texts, nodes = [*terms.split(","), result], [*given, None]
    return *given, tuple(_letters(text, len(step.shape(node))) for text, node in zip(texts, nodes))  # type: ignore


def _letters(text: str, dimensions: int) -> tuple[Any, ...]:
    """What every dimension counts; those that dots stand for have numbers, from the last one."""
    before, dots, after = text.partition("...")
    return (*before, *(reversed(range(dimensions - len(before + after))) if dots else ()), *after)


def contraction(step: Step, left: Node, right: Node, axes: Any, *, follows_right: bool, is_attention: bool) -> Product:
    """Two operands with these axes as one product of matrices; an axis in one operand alone must be kept."""
    shapes = [step.shape(left), step.shape(right), step.shape()]
    size: dict[Any, int] = {}
    for of, shape in zip(axes, shapes):
        for axis, length in zip(of, shape):
            size[axis] = max(size.get(axis, 1), length)
    one, two = (
        tuple(axis if length == size[axis] else None for axis, length in zip(of, shape))
        for of, shape in zip(axes, shapes[:2])
    )
    kept = axes[2]
    groups = (
        [axis for axis in kept if axis in one and axis in two],
        [axis for axis in kept if axis in one and axis not in two],
        [axis for axis in one if axis in two and axis not in kept],
        [axis for axis in kept if axis not in one],
    )
    for of, used in ((one, groups[:3]), (two, (groups[0], groups[2], groups[3]))):
        named = [axis for axis in of if axis is not None]
        if sorted(map(str, named)) != sorted(str(axis) for group in used for axis in group):
            raise step.refuse("a tensor that is added up on its own, or whose diagonal is taken")
    return Product(left, right, (one, two, kept), groups, size, follows_right, is_attention)
