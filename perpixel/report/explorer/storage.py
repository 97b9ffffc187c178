"""What a page stores of logits and effects: packed, in few levels, and on a coarser grid until the page is small."""

import base64
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from perpixel.report.explorer.arguments import ExplorerInput
from perpixel.report.explorer.axes import Axes, taps, upsampling_axes

Size = tuple[int, int]
_TRY_AT_MOST = 40  # a precision whose values number more than this times max_bytes is not even tried
_WINNER_PIXELS = 2**16  # pixels, evenly spread, on which winners with a patch hidden are sought


class Precision(NamedTuple):
    """Effects on `classes` in `levels` steps each way, as means over `factor` x `factor` cells."""

    factor: int
    classes: list[int]
    levels: int

    def grid(self, effects: Tensor) -> Size:
        """The grid that these effects (..., h, w) are stored on."""
        return _coarser(grid_of(effects), self.factor)


def grid_of(values: Tensor) -> Size:
    """Height and width of values (..., h, w)."""
    return values.shape[-2], values.shape[-1]


def pack(values: Tensor) -> str:
    """The bytes of a tensor, compressed, as text."""
    return base64.b64encode(zlib.compress(values.contiguous().numpy().tobytes(), 6)).decode()


def precisions(given: ExplorerInput, axes: Axes, effect_axes: Axes, max_bytes: int) -> Iterator[Precision]:
    """From exact to coarse; those that are far too large for `max_bytes` are left out."""
    count, classes, height, width = given.effects.shape
    steps = [Precision(1, list(range(classes)), levels) for levels in (127, 63)]
    winners: list[int] = []
    factor = 1
    while True:
        rows, columns = _coarser((height, width), factor)
        if count * classes * rows * columns <= _TRY_AT_MOST * max_bytes:
            yield from (step for step in steps if factor == 1 and _may_fit(given, step, max_bytes))
            winners = winners or _winning_classes(given, axes, effect_axes)
            coarse = [Precision(factor, winners, levels) for levels in (63, 31)]
            yield from (step for step in coarse if _may_fit(given, step, max_bytes))
        if rows * columns == 1:
            return
        factor *= 2


def _may_fit(given: ExplorerInput, precision: Precision, max_bytes: int) -> bool:
    """Unless a class taken from the middle needs twice its share of the file."""
    classes = precision.classes
    numbers, _ = _quantised(given.effects[:, classes[len(classes) // 2]], precision)
    return precision.grid(given.effects) == (1, 1) or len(pack(numbers)) * len(classes) <= 2 * max_bytes


def _winning_classes(given: ExplorerInput, axes: Axes, effect_axes: Axes) -> list[int]:
    """Classes first or second at some pixel with nothing hidden, or first with any one patch hidden."""
    logits = axes(given.logits)
    won = torch.bincount(logits.topk(2, 0).indices.flatten(), minlength=len(logits))
    every = max(1, round((logits[0].numel() / _WINNER_PIXELS) ** 0.5))
    logits = logits[:, ::every, ::every]
    sparse = Axes(effect_axes.rows[::every], effect_axes.columns[::every])
    for effect in given.effects:
        hidden = logits - sparse(effect.float())
        won += torch.bincount(hidden.max(0).indices.flatten(), minlength=len(logits))  # argmax is 8 times slower
    return won.nonzero().flatten().tolist()


def store_effects(effects: Tensor, precision: Precision, axes: Axes) -> tuple[dict[str, Any], float]:
    """Effects as whole numbers of a scale per cell and class, and the largest error made."""
    grid, numbers, scales, error = precision.grid(effects), [], [], 0.0
    back = None if precision.factor == 1 else upsampling_axes("bilinear", grid, grid_of(effects))
    for c in precision.classes:
        number, scale = _quantised(effects[:, c], precision)
        restored = number * scale if back is None else back(number * scale)
        error = max(error, float((restored - effects[:, c]).abs().max()))
        numbers.append(number)
        scales.append(scale)
    values = torch.stack(numbers)
    values[..., 1:] -= values[..., :-1].clone()  # wraps around, as the page's running sum does
    stored = {
        "shape": [len(precision.classes), len(effects), *grid],
        "classes": precision.classes,
        "values": pack(values),
        "scales": pack(torch.stack(scales)),
        **_pack_axes(axes if back is None else back.after(axes)),
    }
    return stored, error


def _quantised(effects: Tensor, precision: Precision) -> tuple[Tensor, Tensor]:
    """Effects (P, h, w) of a class as int8 (P, *grid) and the float32 (*grid) that those are to be multiplied by."""
    levels, coarse = precision.levels, _averaged(effects.float(), precision.factor)
    scale = coarse.abs().amax(0) / levels
    number = (coarse / scale.clamp(min=torch.finfo(torch.float32).tiny)).round().clamp(-levels, levels)
    return number.to(torch.int8), scale


def store_logits(logits: Tensor, axes: Axes, budget: int) -> tuple[dict[str, Any], int]:
    """Logits as float32, averaged over factor x factor cells while they alone would exceed the budget; the factor."""
    factor = 1
    while logits.numel() * 4 // factor**2 > budget and min(logits.shape[1:]) > factor:
        factor *= 2
    coarse = _averaged(logits, factor)
    if factor > 1:
        axes = upsampling_axes("bilinear", grid_of(coarse), grid_of(logits)).after(axes)
    return {"shape": list(coarse.shape), "values": pack(coarse), **_pack_axes(axes)}, factor


def _coarser(grid: Size, factor: int) -> Size:
    return -(-grid[0] // factor), -(-grid[1] // factor)


def _averaged(values: Tensor, factor: int) -> Tensor:
    if factor == 1:
        return values
    return F.interpolate(values[None], size=_coarser(grid_of(values), factor), mode="area")[0]


def _pack_axes(axes: Axes) -> dict[str, Any]:
    packed = {}
    for name, matrix in axes._asdict().items():
        first, weights = taps(matrix)
        packed[name] = {"first": pack(first), "weights": pack(weights), "taps": weights.shape[1]}
    return packed


def storage_note(effects: Tensor, precision: Precision, factor: int, error: float) -> str:
    """What is stored and how exactly, for the foot of the page; factor: of the logits."""
    count, classes = effects.shape[:2]
    height, width = precision.grid(effects)
    text = f"{count} patches, effects on a grid of {height} × {width}"
    if precision.factor == 1:
        share = 50 / precision.levels
        text += f", stored to {share:.1f} % of the strongest on the same pixel and class (±{error:.2g} logits at most)."
    else:
        cells = f"{precision.factor} × {precision.factor}"
        text += f", means over {cells} cells to save space (±{error:.2g} logits at most)."
    if len(precision.classes) < classes:
        left_out = f"{classes - len(precision.classes)} of {classes}"
        text += (
            f" Left out: effects on classes that come first or second nowhere ({left_out}); margins are without them."
        )
    if factor > 1:
        text += f" Logits are means over {factor} × {factor} cells."
    return text
