"""Rewrite a graph so that no operation overwrites its input, with the result the overwriting ones gave."""

import operator
from typing import Any

import torch
from torch import fx, nn
from torch.fx.node import Node
from torch.nn import functional as F

from perpixel.checks import complain

_OPERATORS: dict[Any, Any] = {
    getattr(operator, f"i{n}"): getattr(operator, n) for n in ("add", "sub", "mul", "truediv")
}
_SAME = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_VIEWS = {
    *("getitem", "view", "view_as", "reshape", "flatten", "chunk", "split", "narrow", "select", "unbind", "expand"),
    *("squeeze", "unsqueeze", "permute", "transpose", "swapaxes", "movedim", "detach", "contiguous"),
}


def without_in_place(graph: fx.Graph, model: nn.Module) -> None:
    """Replace the operations of `graph` that overwrite their input; what read the input later reads the result.

    TypeError naming the node where a part of a tensor is overwritten that is read again as a whole.
    """
    order = {node: place for place, node in enumerate(graph.nodes)}
    same: dict[Node, list[Node]] = {}  # node -> the nodes that stand for the very same tensor
    for node in graph.nodes:
        first = node.args[0] if node.args and isinstance(node.args[0], Node) else None
        overwrites = first is not None and _overwrites(node, model)
        if first is None or not (overwrites or _gives_its_input(node, model)):
            continue
        group = same.setdefault(first, [first])
        if overwrites:
            if node.target is operator.setitem or _read_elsewhere(first, node, group, order):
                remedy = "Write into a new tensor (torch.cat, torch.where) in the model's forward."
                came = f"node {node.name!r}, which overwrites a part of one"
                raise TypeError(complain("model", "no tensor overwritten in part", came, remedy))
            for other in group:
                for user in [user for user in other.users if order[user] > order[node]]:
                    user.replace_input_with(other, node)
            _replace(node)
        group.append(node)
        same[node] = group


def operation(node: Node) -> str:
    """The bare name of the function or method a node calls; "" for any other node."""
    if node.op == "call_method":
        return str(node.target)
    return getattr(node.target, "__name__", "") if node.op == "call_function" else ""


def _overwrites(node: Node, model: nn.Module) -> bool:
    if node.op == "call_module":
        return bool(getattr(model.get_submodule(str(node.target)), "inplace", False))
    name = operation(node)
    ends = name.endswith("_") and not name.endswith("__")
    return bool(node.kwargs.get("inplace", False)) or node.target in (*_OPERATORS, operator.setitem) or ends


def _gives_its_input(node: Node, model: nn.Module) -> bool:
    if node.op == "call_module":
        return isinstance(model.get_submodule(str(node.target)), _SAME)
    return operation(node) in ("dropout", "dropout2d", "contiguous")


def _replace(node: Node) -> None:
    if node.op == "call_method":
        node.target = str(node.target)[:-1]
    elif node.op == "call_function":
        name = operation(node)
        if name.endswith("_"):
            node.target = getattr(torch, name[:-1], None) or getattr(F, name[:-1])
        node.target = _OPERATORS.get(node.target, node.target)
        node.kwargs = {key: False if key == "inplace" else value for key, value in node.kwargs.items()}


def _read_elsewhere(first: Node, node: Node, group: list[Node], order: dict[Node, int]) -> bool:
    """Whether a view of `first`, or a tensor it is a view of, is read after `node`."""
    root = first
    while operation(root) in _VIEWS and isinstance(root.args[0], Node):
        root = root.args[0]
    family, stack = {root}, [root]
    while stack:
        for user in stack.pop().users:
            if user not in family and order[user] < order[node] and (operation(user) in _VIEWS or user in group):
                family.add(user)
                stack.append(user)
    return any(order[user] > order[node] for view in family.difference(group) for user in view.users)
