"""What a node of the graph calls, and how to call it so that its input is not overwritten."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.node import Node
from torch.nn import functional as F


def operation(node: Node) -> str:
    """The bare name of the function or method a node calls; "" for any other node."""
    return "" if node.op not in ("call_method", "call_function") else name_of(node.target)


def name_of(target: Any) -> str:
    """The bare name of a function or method."""
    return target if isinstance(target, str) else getattr(target, "__name__", "")


def compute(node: Node, args: Any, kwargs: Any, layers: Mapping[str, nn.Module], overwrite: bool = False) -> Any:
    """What an operation gives for `args` and `kwargs`; the hooks of layers are not called."""
    target: Any = node.target
    if node.op == "call_module":
        layer = out_of_place(layers[target], overwrite)
        return type(layer).forward(layer, *args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], target)(*args[1:], **kwargs)
    return target(*args, **kwargs)


def out_of_place(layer: nn.Module, overwrite: bool = False) -> nn.Module:
    """The layer, or a stand-in with the same parameters that overwrites its input only if it may."""
    if layer.__dict__.get("inplace", overwrite) == overwrite:
        return layer
    twin = object.__new__(type(layer))
    twin.__dict__.update(layer.__dict__, inplace=overwrite)
    return twin


def without_overwriting(target: Any) -> Any:
    """The function or method of the same name without "_" at its end, if there is one; else the same."""
    name = name_of(target)
    if not name.endswith("_") or name.endswith("__"):
        return target
    if isinstance(target, str):
        return name[:-1] if hasattr(Tensor, name[:-1]) else target
    return getattr(torch, name[:-1], None) or getattr(F, name[:-1], target)
