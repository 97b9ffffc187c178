"""Find a network's classifier layer, and tell whether an output was made by it."""

import difflib
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perpixel.borrow import unwrap
from perpixel.checks import complain

_RESIZINGS = (("bilinear", False), ("bilinear", True), ("nearest", None), ("bicubic", False), ("bicubic", True))


class LayerRecord(NamedTuple):
    """The positional inputs and the output of a layer in one forward pass."""

    inputs: tuple[object, ...]
    output: object


def named_layer(model: nn.Module, name: object) -> nn.Module:
    """The layer of `model` called `name`, else TypeError or ValueError with the closest names."""
    if not isinstance(name, str):
        raise TypeError(complain("head", "the dotted name of a layer", name, "See model.named_modules()."))
    layers = {**dict(model.named_modules()), **dict(unwrap(model).named_modules())}
    del layers[""]
    if name not in layers:
        close = difflib.get_close_matches(name, layers, n=5, cutoff=0.4) or list(layers)[-5:]
        raise ValueError(complain("head", "the dotted name of a layer", repr(name), f"Close or last names: {close}."))
    return layers[name]


def candidate_heads(model: nn.Module) -> dict[str, nn.Module]:
    """By name, every layer that could be the classifier: it owns a `weight` of two or more dimensions (no norms)."""
    return {name: layer for name, layer in unwrap(model).named_modules() if name and _mixes_channels(layer)}


def pick_head(layers: Mapping[str, nn.Module], records: Mapping[str, LayerRecord], logits: Tensor) -> str:
    """The one of `layers` whose recorded output is `logits` (N, C, H, W) once resized.

    Where the graph is recorded, the logits must also have been computed from that output (an auxiliary head that
    happens to say the same is none). No such layer, or several: ValueError that lists the candidates.
    """
    outputs = {name: record.output for name, record in records.items()}
    maps = {name: out for name, out in outputs.items() if isinstance(out, Tensor) and out.ndim == 4}
    fitting = {name: out for name, out in maps.items() if out.shape[:2] == logits.shape[:2]}
    same = [name for name, out in fitting.items() if out is logits] or [
        name
        for name, out in fitting.items()
        if computed_from(out, logits) is not False and is_resized(out[:1], logits[:1])
    ]
    if len(same) == 1:
        return same[0]
    listed = {name: fitting[name] for name in same} or fitting or dict(list(maps.items())[-8:])
    lines = [f"\n  {name!r}: {type(layers[name]).__name__} -> {tuple(out.shape)}" for name, out in listed.items()]
    remedy = "Name the classifier layer: attach(model, ..., head='<name>'). Candidates:"
    expected = f"one layer whose output, resized, is the logits {tuple(logits.shape)}"
    raise ValueError(complain("head", expected, str(len(same) or "none"), remedy + ("".join(lines) or " none ran.")))


def comes_from(source: Tensor, logits: Tensor) -> bool:
    """Whether `logits` was computed from `source`: as the graph tells, or without one the values."""
    computed = computed_from(source, logits)
    return is_resized(source, logits) if computed is None else computed


def computed_from(source: Tensor, result: Tensor) -> bool | None:
    """Whether `result` was computed from `source`, as its autograd graph tells; None where there is no graph."""
    if source.grad_fn is None or result.grad_fn is None:
        return None
    waiting, seen = deque([result.grad_fn]), {result.grad_fn}
    while waiting:
        node = waiting.popleft()
        if node is source.grad_fn:
            return True
        for before, _ in node.next_functions:
            if before is not None and before not in seen:
                seen.add(before)
                waiting.append(before)
    return False


@torch.no_grad()
def is_resized(grid: Tensor, logits: Tensor) -> bool:
    """Whether `logits` (N, C, H, W) is `grid` (N, C, h, w) resized in one of the usual ways, or cast."""
    if grid is logits:
        return True
    if grid.shape[:2] != logits.shape[:2] or grid.device != logits.device or not grid.is_floating_point():
        return False
    rounding = max(torch.finfo(grid.dtype).eps, torch.finfo(logits.dtype).eps)
    grid, logits = grid.detach().float(), logits.detach().float()
    slack = max(1e-4, 4 * rounding) * float(logits.abs().max())
    sizes_match, size = grid.shape == logits.shape, tuple(logits.shape[-2:])
    return any(
        torch.allclose(resized, logits, rtol=0.0, atol=slack, equal_nan=True)
        for resized in (
            [grid] if sizes_match else (F.interpolate(grid, size, mode=m, align_corners=a) for m, a in _RESIZINGS)
        )
    )


def _mixes_channels(layer: nn.Module) -> bool:
    weight = getattr(layer, "weight", None)
    lazy = isinstance(weight, nn.parameter.UninitializedParameter)
    return isinstance(weight, Tensor) and (lazy or weight.ndim >= 2)
