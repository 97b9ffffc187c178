"""Moves that only change place: resizing, and whatever rearranges, cuts out, pads or repeats elements."""

import math
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx.node import Node, map_arg
from torch.nn import functional as F

from perpixel.fixations.points import Array, Units
from perpixel.fixations.rules.pooling import adaptive_pool
from perpixel.fixations.rules.step import Moves, Step
from perpixel.fixations.rules.values import block, pick
from perpixel.fixations.trace.operations import operation
from perpixel.upsampling import axis_matrix

CUTS = {"split", "split_with_sizes", "chunk", "tensor_split", "hsplit", "vsplit", "dsplit", "unbind"}
_WEIGHTS = 1 << 22  # looked at at once
_NEARLY = 1e-9  # weights closer than this are equal


def resize(units: Units, step: Step) -> Moves:
    """To the source pixel with the largest weight; the first of equal ones."""
    tables = step.run.plan.tables
    settings = ("mode", 3), ("scale_factor", 2), ("size", 1), ("align_corners", 4), ("antialias", 6)
    key = step.node, step.conventions.published, str([step.argument(*setting) for setting in settings])
    if key not in tables:
        tables[key] = _source_pixels(step)
    table = tables[key]
    if table is None:
        return adaptive_pool(units, step)
    source = step.operands[0]
    if step.shape()[0] == 1:
        return [(source, units.at(table.take(units.pixel), units.channel))]
    image = units.pixel // len(table)
    pixel = table.take(units.pixel - image * len(table)) + image * step.places(source)
    return [(source, units.at(pixel, units.channel))]


def _source_pixels(step: Step) -> Array | None:
    """For every pixel of the resized map, in one row, the pixel of the source to go to; None for means of areas."""
    mode = step.argument("mode", 3, "nearest")
    if mode == "area" and not step.conventions.published:
        return None
    sizes = tuple(zip(step.shape(step.operands[0])[-2:], step.shape()[-2:]))
    scale = step.argument("scale_factor", 2)
    if step.argument("recompute_scale_factor", 5) or step.argument("size", 1) is not None:
        scale = None
    scales = scale if isinstance(scale, (tuple, list)) else (scale, scale)
    align = step.argument("align_corners", 4)
    antialias = bool(step.argument("antialias", 6, False))
    tables = []
    for (before, after), factor in zip(sizes, scales):
        if step.conventions.published:
            table = _floored(before, after)
        else:
            table = _heaviest(before, after, None if factor is None else float(factor), mode, align, antialias)
        tables.append(table.numpy())
    return (tables[0][:, None] * sizes[1][0] + tables[1]).ravel()


def grid_sample(units: Units, step: Step) -> Moves:
    """To the source pixel with the largest weight, the first of equal ones; dropped where none has any."""
    source, grid = _sampled(step)
    settings = {"mode": step.argument("mode", 2, "bilinear"), "padding_mode": step.argument("padding_mode", 3, "zeros")}
    settings["align_corners"] = bool(step.argument("align_corners", 4))
    values, image = block(step.value(grid).reshape(-1)), step.image(units)
    pixel, there = image * np.ones_like(units.pixel), np.ones(len(units), np.bool_)
    for axis, length in enumerate(step.shape(source)[2:]):
        at = torch.from_numpy(pick(values, 2 * units.pixel + 1 - axis)).double()
        for start in range(0, len(at), _WEIGHTS // length):
            part = slice(start, start + _WEIGHTS // length)
            ones = torch.eye(length, dtype=at.dtype).view(1, length, length, 1)
            place = torch.stack([torch.zeros_like(at[part]), at[part]], 1).view(1, -1, 1, 2)
            weights = F.grid_sample(ones, place, **settings)[0, :, :, 0]
            high = weights.amax(0)
            there[part] &= high.numpy() > 0
            pixel[part] = pixel[part] * length + (weights >= high - _NEARLY).byte().argmax(0).numpy()
    return [(source, units.at(pixel, units.channel).take(there))]


def reads_sample(step: Step) -> list[Node]:
    """The grid."""
    return [_sampled(step)[1]]


def follows_sample(step: Step) -> list[Node]:
    """What is sampled."""
    return [_sampled(step)[0]]


def _sampled(step: Step) -> tuple[Node, Node]:
    given = [a for a in (*step.node.args, *step.node.kwargs.values()) if isinstance(a, Node)]
    if len(given) != 2 or given[0] not in step.run.tracked or len(step.shape()) != 4:
        raise step.refuse("sampling is followed on a map (N, C, H, W) that depends on the images")
    return given[0], given[1]


def reads_resize(step: Step) -> list[Node]:
    """Nothing, but for the means of mode "area"."""
    return step.operands if step.argument("mode", 3, "nearest") == "area" else []


def rearrange(units: Units, step: Step) -> Moves:
    """To the element that was put there, found by doing the same to the elements' numbers; padding drops the point."""
    source, chain = step.node, []
    while source is step.node or source not in step.run.shapes:  # a tuple of tensors: back to what it was cut from
        chain.append(source)
        source = next(n for n in source.all_input_nodes if n in step.run.tracked)
    before, after = step.shape(source), step.shape()
    if len(chain) == 1 and _only_reshapes(step):
        return [(source, step.at_element(units, step.element(units), source, distinct=units.distinct))]
    if any(operation(node) not in CUTS for node in chain[1:]):
        raise step.refuse(f"{chain[-1].target} gives several tensors that are not parts of one")
    numbers = torch.arange(1, 1 + math.prod(before), dtype=torch.float64, device=step.run.images.device).view(before)
    operand = source
    for node in reversed(chain):
        if _is_fold(node, step) and bool((_repeat(node, operand, torch.ones_like(numbers), step) > 1).any()):
            raise step.refuse("it adds up windows that overlap")
        numbers, operand = _repeat(node, operand, numbers, step), node
    if tuple(numbers.shape) != after:
        raise step.refuse(f"a tensor of shape {before} becomes one of {after}")
    found = pick(block(numbers.reshape(-1)), step.element(units)).astype(np.int64) - 1
    return [(source, step.at_element(units, found, source).take(found >= 0))]


def follows_rearrange(step: Step) -> list[Node]:
    """The tensor that is rearranged."""
    return step.operands[:1]


def _only_reshapes(step: Step) -> bool:
    name = operation(step.node) or type(step.module).__name__.lower()
    return name in ("flatten", "view", "reshape", "view_as", "reshape_as", "squeeze", "unsqueeze", "unflatten")


def _is_fold(node: Node, step: Step) -> bool:
    return operation(node) == "fold" or (node.op == "call_module" and isinstance(step.module, nn.Fold))


def _repeat(node: Node, operand: Node, numbers: Tensor, step: Step) -> Any:
    """What `node` gives with `numbers` in place of its operand; the number 0 stands for padding."""

    def given(n: Node) -> Any:
        if n is not operand and n in step.run.tracked:
            if operation(node) not in ("expand_as", "view_as", "reshape_as"):
                raise step.refuse("what depends on the images says where its elements go")
            return numbers.new_empty(step.run.shapes[n])
        return numbers if n is operand else step.run.values[n]

    args, kwargs = map_arg((node.args, node.kwargs), given)
    target: Any = node.target
    if node.op == "call_module":
        layer = step.run.layers[target]
        if isinstance(layer, (nn.ConstantPad2d, nn.ZeroPad2d)):
            return F.pad(numbers, layer.padding)
        return layer.forward(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], target)(*args[1:], **kwargs)
    if getattr(target, "__name__", "") == "pad":
        return F.pad(numbers, step.argument("pad", 1), mode=step.argument("mode", 2, "constant"))
    return target(*args, **kwargs)


@cache
def _heaviest(before: int, after: int, scale: float | None, mode: str, align: bool | None, antialias: bool) -> Tensor:
    """For every place on the resized axis, the source place with the largest weight."""
    options: dict[str, Any] = {"mode": {"linear": "bilinear", "trilinear": "bilinear"}.get(mode, mode)}
    if options["mode"] in ("bilinear", "bicubic"):
        options |= {"align_corners": align, "antialias": antialias}
    weights = axis_matrix(before, **({"size": after} if scale is None else {"scale_factor": scale}), **options)
    return (weights >= weights.amax(1, keepdim=True) - _NEARLY).to(torch.uint8).argmax(1)


@cache
def _floored(before: int, after: int) -> Tensor:
    """Seg-Unravel's map: y to y // zoom · shrink."""
    out = torch.arange(after)
    return out * (before - 1) // (after - 1) if after > 1 else out
