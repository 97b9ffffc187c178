"""Moves that only change place: resizing, and whatever rearranges, cuts out, pads or repeats elements."""

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.node import Node, map_arg
from torch.nn import functional as F

from perpixel.fixations.points import Points
from perpixel.fixations.rules.pooling import adaptive_pool
from perpixel.fixations.rules.step import Moves, Step
from perpixel.fixations.trace.in_place import operation

_NEARLY = 1e-9  # weights closer than this are equal


def resize(points: Points, step: Step) -> Moves:
    """To the source pixel with the largest weight; the first of equal ones."""
    pixel = source_pixels(step, points.unit.device)
    if pixel is None:
        return adaptive_pool(points, step)
    source = step.operands[0]
    channel = points.unit // len(pixel)
    unit = channel * math.prod(step.shape(source)[-2:]) + pixel[points.unit - channel * len(pixel)]
    return [(source, points.at(unit))]


def source_pixels(step: Step, device: torch.device) -> Tensor | None:
    """For every pixel of the resized map, in one row, the pixel of the source to go to; None for means of areas."""
    mode = step.argument("mode", 3, "nearest")
    if mode == "area" and not step.way.published:
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
        if step.way.published:
            table = _floored(before, after)
        else:
            table = _heaviest(before, after, None if factor is None else float(factor), mode, align, antialias)
        tables.append(table.to(device))
    return (tables[0][:, None] * sizes[1][0] + tables[1]).flatten()


def reads_resize(step: Step) -> list[Node]:
    """Nothing, but for the means of mode "area"."""
    return step.operands if step.argument("mode", 3, "nearest") == "area" else []


def rearrange(points: Points, step: Step) -> Moves:
    """To the element that was put there, found by doing the same to the elements' numbers; padding drops the point."""
    source, chain = step.node, []
    while source is step.node or source not in step.run.shapes:  # a tuple of tensors: back to what it was cut from
        chain.append(source)
        source = next(n for n in source.all_input_nodes if n in step.run.tracked)
    before, after = step.shape(source), step.shape()
    kept_batch = len(after) > 0 and before[0] == after[0]
    if kept_batch and len(chain) == 1 and _only_reshapes(step):
        return [(source, points)]
    count = before[0] * step.units(source)
    numbers = torch.arange(1, 1 + count, dtype=torch.float64, device=points.unit.device).view(before)
    for node in reversed(chain):
        numbers = _repeat(node, numbers, step)
    if not kept_batch or tuple(numbers.shape) != after:
        raise step.refuse(f"images of shape {before} become {after}, which mixes them")
    found = numbers.reshape(-1)[points.unit + step.image(points) * step.units()].long() - 1
    unit = found - step.image(points) * step.units(source)
    if bool(((found >= 0) & ((unit < 0) | (unit >= step.units(source)))).any()):
        raise step.refuse("it moves elements from one image to another")
    return [(source, points.at(unit).take(found >= 0))]


def follows_rearrange(step: Step) -> list[Node]:
    """The tensor that is rearranged."""
    return step.operands[:1]


def _only_reshapes(step: Step) -> bool:
    name = operation(step.node) or type(step.module).__name__.lower()
    return name in ("flatten", "view", "reshape", "view_as", "reshape_as", "squeeze", "unsqueeze", "unflatten")


def _repeat(node: Node, numbers: Tensor, step: Step) -> Any:
    """What `node` gives with `numbers` in place of its operand; the number 0 stands for padding."""
    args, kwargs = map_arg((node.args, node.kwargs), lambda n: numbers if n in step.run.tracked else step.run.values[n])
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
    mode = {"bilinear": "bilinear", "linear": "bilinear", "trilinear": "bilinear"}.get(mode, mode)
    one = torch.eye(before, dtype=torch.float64)[None, :, :, None]
    settings: dict[str, Any] = {"mode": mode}
    if mode in ("bilinear", "bicubic"):
        settings |= {"align_corners": align, "antialias": antialias}
    if scale is None:
        weights = F.interpolate(one, size=(after, 1), **settings)
    else:
        weights = F.interpolate(one, scale_factor=(scale, 1.0), **settings)
    weights = weights[0, :, :, 0]
    return (weights >= weights.amax(0) - _NEARLY).to(torch.uint8).argmax(0)


@cache
def _floored(before: int, after: int) -> Tensor:
    """Seg-Unravel's map: y to y // zoom · shrink."""
    out = torch.arange(after)
    return out * (before - 1) // (after - 1) if after > 1 else out
