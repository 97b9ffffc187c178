"""Products of two tensors element by element, one of which is a gate; and which of two factors weighs the other."""

import math

import numpy as np
from torch import nn
from torch.fx.node import Node

from perpixel.fixations.points import Units
from perpixel.fixations.rules.joins import onto
from perpixel.fixations.rules.step import Moves, Step
from perpixel.fixations.trace.operations import operation

_PASSED = {  # what leaves every weight one, up to a factor
    *("dropout", "to", "type_as", "float", "double", "half", "bfloat16", "contiguous", "clone", "detach"),
    *("view", "reshape", "permute", "transpose", "flatten", "unflatten", "squeeze", "unsqueeze", "expand", "expand_as"),
    *("interpolate", "masked_fill", "getitem", "unfold"),
}
_PASSED_LAYERS = (nn.Dropout, nn.Identity, nn.Upsample)
_NAMES = (  # what makes weights, the surest first
    ("softmax",),
    ("sigmoid", "hardsigmoid"),
    ("relu", "relu6", "softplus", "hardtanh", "tanh", "silu", "gelu", "mish", "hardswish", "leaky_relu", "elu"),
)
_LAYERS = (
    (nn.Softmax, nn.Softmax2d),
    (nn.Sigmoid, nn.Hardsigmoid),
    (nn.ReLU, nn.ReLU6, nn.Softplus, nn.Hardtanh, nn.Tanh, nn.SiLU, nn.GELU, nn.Mish, nn.Hardswish, nn.LeakyReLU),
)
_DIVISIONS = ("div", "truediv", "true_divide")


def gate(units: Units, step: Step) -> Moves:
    """Through a product to the gated operand; where the gate is negative, the sign turns over."""
    source, other = _gated(step)
    if step.conventions.published:
        return [onto(source, units, step)]
    if isinstance(other, Node):
        negative = step.read(other, units) < 0
    else:
        negative = np.full(len(units), float(other) < 0)  # type: ignore[arg-type]
    return [onto(source, units.flipped(negative) if negative.any() else units, step)]


def reads_gate(step: Step) -> list[Node]:
    """The gate."""
    other = _gated(step)[1]
    return [other] if isinstance(other, Node) and not step.conventions.published else []


def follows_gate(step: Step) -> list[Node]:
    """The gated operand."""
    return [_gated(step)[0]]


def glu(units: Units, step: Step) -> Moves:
    """To the same place in the first half of what is gated by its second half."""
    source = step.operands[0]
    index = np.unravel_index(step.element(units), step.shape())
    element = np.ravel_multi_index(index, step.shape(source))
    return [(source, step.at_element(units, element, source, distinct=units.distinct))]


def weighs(node: Node, step: Step) -> int:
    """How surely a factor is what weighs the other one: 3 out of a softmax, 2 a sigmoid, 1 another activation, else 0.

    It may be rearranged, resized, scaled by a number, or have gone through dropout since.
    """
    while True:
        layer = step.run.layers[str(node.target)] if node.op == "call_module" else None
        scaled = operation(node) in ("mul", *_DIVISIONS) and node.all_input_nodes == [node.args[0]]
        if not (operation(node) in _PASSED or scaled or isinstance(layer, _PASSED_LAYERS)):
            break
        node = node.all_input_nodes[0]
    ways = zip(_NAMES, _LAYERS)
    return next(
        (3 - i for i, (n, of) in enumerate(ways) if operation(node).rstrip("_") in n or isinstance(layer, of)), 0
    )


def _gated(step: Step) -> tuple[Node, object]:
    """Which factor of a product is followed, and the other one; of a quotient what is divided."""
    factors = [*step.node.args, *step.node.kwargs.values()][:2]
    tracked = [a for a in factors if isinstance(a, Node) and a in step.run.tracked]
    if operation(step.node) in _DIVISIONS:
        if factors[0] in tracked:
            return factors[0], factors[1]  # type: ignore[return-value]
        raise step.refuse("a quotient is followed where what is divided depends on the images")
    if len(tracked) == 1:
        return tracked[0], factors[1] if factors[0] is tracked[0] else factors[0]
    one, two = tracked
    for measure in (smallness, weighs):
        of_one, of_two = measure(one, step), measure(two, step)
        if of_one != of_two:
            return (two, one) if of_one > of_two else (one, two)  # type: ignore[operator]
    expected = "smaller than the other, or out of a sigmoid, or the only one out of an activation"
    raise step.refuse(f"a product is followed where one factor is a gate: {expected}")


def smallness(node: Node, step: Step) -> tuple[int, bool]:
    """By the size of an image's part, before it was expanded, and whether it was."""
    given = node
    while operation(node) in ("expand", "expand_as"):
        node = node.all_input_nodes[0]
    return -math.prod(step.shape(node)[1:]), node is not given
