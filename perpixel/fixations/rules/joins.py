"""Moves where branches meet: sums, maxima, concatenations, gates; and through normalisation and plain activations."""

import math

import numpy as np
from torch import nn
from torch.fx.node import Node

from perpixel.fixations.points import Units
from perpixel.fixations.rules.pooling import along
from perpixel.fixations.rules.step import Moves, Step
from perpixel.fixations.rules.values import block, host
from perpixel.fixations.trace.operations import operation

_WEIGHTS = {
    "batch_norm": 3,
    "instance_norm": 3,
    "group_norm": 2,
    "layer_norm": 2,
    "rms_norm": 2,
}  # their places as arguments
_BY_ELEMENT = (nn.LayerNorm, nn.RMSNorm)
_REDUCTIONS = ("sum", "mean", "amax", "amin")
_JOINS = {"add": "add", "maximum": "maximum", "max": "maximum", "minimum": "minimum", "min": "minimum"}


def same(units: Units, step: Step) -> Moves:
    """To the same unit of the only operand."""
    return [(step.operands[0], units)]


def normalise(units: Units, step: Step) -> Moves:
    """To the same unit; where the channel's scale is negative, the sign turns over."""
    position = _WEIGHTS.get(operation(step.node), 0)
    weight = None if step.conventions.published else step.argument("weight", position)
    if weight is None:
        return same(units, step)
    negative = host(block(weight.reshape(-1)) < 0)
    if not negative.any():
        return same(units, step)
    by_element = isinstance(step.module, _BY_ELEMENT) or operation(step.node) in ("layer_norm", "rms_norm")
    place = step.index(units) % len(negative) if by_element else units.channel
    return [(step.operands[0], units.flipped(negative.take(place)))]


def power(units: Units, step: Step) -> Moves:
    """To the same unit; where it is negative and an even power is not, the sign turns over."""
    exponent = step.argument("exponent", 1) if operation(step.node) == "pow" else 2
    if not isinstance(exponent, (int, float)) or exponent <= 0:
        raise step.refuse("a power is followed where its exponent is a positive number")
    if exponent % 2 or step.conventions.published:
        return same(units, step)
    return [(step.operands[0], units.flipped(step.read(step.operands[0], units) < 0))]


def join(units: Units, step: Step) -> Moves:
    """To the branch with the largest signed value, in a minimum to the smallest; the first of equal ones.

    Along a dimension: as `reduce`.
    """
    if not is_join(step):
        return along(units, step)
    joined = branches(step)
    if len(joined) == 1:
        return [onto(joined[0][0], _turned(units, joined[0][1], step), step)]
    values = np.stack([step.read(node, units) * np.float32(factor) for node, factor in joined])
    step.watch(values, joined[0][0])
    if operation(step.node) in ("minimum", "min"):
        values = -values
    elif units.minus is not None:
        values = np.where(units.minus, -values, values)
    winner = values.argmax(0)
    moves = []
    for place, (branch, factor) in enumerate(joined):
        won = (winner == place).nonzero()[0]
        if len(won):
            part = units if len(won) == len(units) else units.take(won)
            moves.append(onto(branch, _turned(part, factor, step), step))
    return moves


def is_join(step: Step) -> bool:
    """Whether tensors are joined, not the places of one."""
    return operation(step.node) not in ("max", "min") or len(_nodes(step.node)) == 2


def reads_join(step: Step) -> list[Node]:
    """The branches, where there is a choice."""
    if not is_join(step):
        return step.operands
    joined = [node for node, _ in branches(step)]
    return joined if len(joined) > 1 else []


def follows_join(step: Step) -> list[Node]:
    """The branches, and the nodes between them and the result."""
    return [*step.operands, *(node for node, _ in branches(step)), *inner_nodes(step.node)]


def reduce(units: Units, step: Step) -> Moves:
    """Through a sum, mean or maximum of stacked branches as through a join, of a map over its places as a pooling."""
    return join(units, step) if _own(step.node) else along(units, step)


def reads_reduce(step: Step) -> list[Node]:
    """The branches, or the map."""
    return reads_join(step) if _own(step.node) else step.operands


def inner_nodes(node: Node) -> list[Node]:
    """The nodes that are one n-ary join together with `node`: the same operation, used nowhere else."""
    own = _own(node)
    return [*own, *(inner for operand in own for inner in inner_nodes(operand))]


def cat(units: Units, step: Step) -> Moves:
    """To the operand whose part of the result the unit lies in."""
    tensors = step.node.args[0] if step.node.args else step.node.kwargs["tensors"]
    return _parts(units, step, [(node, step.run.shapes[node]) for node in tensors])  # type: ignore


def stack(units: Units, step: Step) -> Moves:
    """To the operand that the unit was taken from."""
    tensors = step.node.args[0] if step.node.args else step.node.kwargs["tensors"]
    dim, shape = step.argument("dim", 1, 0) % len(step.shape()), step.shape()
    return _parts(units, step, [(node, (*shape[:dim], 1, *shape[dim + 1 :])) for node in tensors])  # type: ignore


def where(units: Units, step: Step) -> Moves:
    """To the operand that the condition names."""
    condition, *choices = _choices(step)
    first = step.read(condition, units) != 0  # type: ignore[arg-type]
    moves: Moves = []
    for node, mask in zip(choices, (first, ~first)):
        if isinstance(node, Node) and node in step.run.tracked and mask.any():
            moves.append(onto(node, units.take(mask), step))
    return moves


def reads_where(step: Step) -> list[Node]:
    """The condition."""
    return [_choices(step)[0]]  # type: ignore[list-item]


def follows_where(step: Step) -> list[Node]:
    """What is chosen from."""
    return [node for node in _choices(step)[1:] if isinstance(node, Node) and node in step.run.tracked]


def _choices(step: Step) -> list[object]:
    fills = operation(step.node) == "masked_fill"
    given = [*step.node.args, *(step.node.kwargs.values() if fills else ())]
    if len(given) != 3 or (step.node.kwargs and not fills):
        raise step.refuse("a choice is followed where it has a condition and two tensors")
    first, second, third = given
    if fills:
        return [second, third, first]
    return [second, first, third] if step.node.op == "call_method" else [first, second, third]


def _parts(units: Units, step: Step, parts: list[tuple[Node, tuple[int, ...]]]) -> Moves:
    """To the part of the result, joined of these nodes' tensors in these shapes, that the unit lies in."""
    shape = step.shape()
    dim = step.argument("dim", 1, 0) % len(shape)
    inner = math.prod(shape[dim + 1 :])
    index = step.element(units)
    outer, place = index // (inner * shape[dim]), index // inner % shape[dim]
    rest = index % inner
    moves: Moves = []
    start = 0
    for node, of_node in parts:
        length = of_node[dim]
        inside = ((place >= start) & (place < start + length)).nonzero()[0]
        if node in step.run.tracked and len(inside):
            unit = (outer * length + place - start) * inner + rest
            part = units.take(inside)
            moves.append((node, step.at_element(part, unit[inside], node, distinct=part.distinct)))
        start += length
    return moves


def _own(node: Node) -> list[Node]:
    """The operands of `node` that are one join together with it; for the sum of a stack, the stack."""
    operands = [n for n in node.all_input_nodes if len(n.users) == 1]
    if operation(node) in _REDUCTIONS:
        return [n for n in operands if operation(n) == "stack" and _dim(n, 0) == _dim(node, None)]
    return [n for n in operands if _kind(node) and _kind(n) == _kind(node)]


def _dim(node: Node, default: int | None) -> object:
    return node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else default)


def _kind(node: Node) -> str:
    """Which n-ary join a node is a part of; "" for none."""
    name = _JOINS.get(operation(node), "")
    return name if name and (name == "add" or len(_nodes(node)) == 2) and not node.kwargs.get("alpha") else ""


def _given(node: Node) -> list[object]:
    """The arguments of a node, those of lists on their own."""
    given = (*node.args, *node.kwargs.values())
    return [item for a in given for item in (a if isinstance(a, (tuple, list)) else (a,))]


def _nodes(node: Node) -> list[Node]:
    return [a for a in _given(node) if isinstance(a, Node)]


def branches(step: Step) -> list[tuple[Node, float]]:
    """The tensors that are joined, in order, and the factor each has in the join."""
    own = inner_nodes(step.node)

    def under(node: Node) -> list[tuple[Node, float]]:
        found: list[tuple[Node, float]] = []
        second = float(node.kwargs.get("alpha", 1))  # type: ignore[arg-type]
        second = -second if operation(node) == "sub" else second
        for place, operand in enumerate(_given(node)):
            if isinstance(operand, Node) and operand in own:
                found += under(operand)
            elif isinstance(operand, Node) and operand in step.run.tracked:
                factor = -1.0 if operation(node) == "neg" else second if place == 1 else 1.0
                found.append((operand, factor))
        return found

    return under(step.node)


def _turned(units: Units, factor: float, step: Step) -> Units:
    if factor > 0 or step.conventions.published:
        return units
    return units.flipped(np.ones(len(units), np.bool_))


def onto(branch: Node, units: Units, step: Step) -> tuple[Node, Units]:
    """The units on an operand that may have been broadcast to the result."""
    shape, result = step.shape(branch), step.shape()
    if shape == result:
        return branch, units
    if len(shape) != len(result) or shape[0] != result[0]:
        raise step.refuse(f"an operand of shape {shape} is broadcast to {result}")
    index = step.index(units)
    unit = np.zeros_like(index)
    for length, place in zip(shape[1:], np.unravel_index(index, result[1:])):
        unit = unit * length + (place if length > 1 else 0)
    return branch, step.at_index(units, unit, branch)
