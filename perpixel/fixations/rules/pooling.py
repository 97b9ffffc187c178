"""Moves through pooling: to the strongest input of the unit's window, in the same channel."""

import torch
from torch import Tensor

from perpixel.fixations.points import Points
from perpixel.fixations.rules.choice import ELEMENTS, Plain, choose, moved, tap_order
from perpixel.fixations.rules.geometry import Taps, flat, pair
from perpixel.fixations.rules.step import Moves, Step


def max_pool(points: Points, step: Step) -> Moves:
    """To the strongest input in the window."""
    return _pool(points, step, step.argument("dilation", 4, 1))


def average_pool(points: Points, step: Step) -> Moves:
    """To the strongest input in the window: the one that gives most to the mean."""
    return _pool(points, step, 1)


def adaptive_pool(points: Points, step: Step) -> Moves:
    """To the strongest input in the unit's cell."""
    height, width = step.shape(step.operands[0])[-2:]
    rows, columns = step.shape()[-2:]
    y, x = _place(points, columns, rows)
    return _strongest(points, step, _cell(y, rows, height), _cell(x, columns, width))


def global_mean(points: Points, step: Step) -> Moves:
    """Through a mean over height and width, to the strongest input of the channel."""
    size = step.shape(step.operands[0])
    dims = step.argument("dim", 1)
    dims = [dims] if isinstance(dims, int) else dims
    if len(size) != 4 or dims is None or sorted(d % 4 for d in dims) != [2, 3]:
        raise step.refuse("a mean is followed over height and width of a map (N, C, H, W)")
    zero = torch.zeros_like(points.unit)
    return _strongest(points, step, _cell(zero, 1, size[2]), _cell(zero, 1, size[3]))


def _pool(points: Points, step: Step, dilation: int | tuple[int, int]) -> Moves:
    rows, columns = step.shape()[-2:]
    height, width = step.shape(step.operands[0])[-2:]
    kernel = step.argument("kernel_size", 1)
    stride = step.argument("stride", 2)
    settings = [pair(value) for value in (kernel, stride or kernel, step.argument("padding", 3, 0), dilation)]
    axes = []
    for axis, (out, length) in enumerate(zip(_place(points, columns, rows), (height, width))):
        size, stride, padding, spread = (setting[axis] for setting in settings)
        at = (out * stride - padding)[:, None] + torch.arange(size, device=out.device) * spread
        axes.append((at.clamp(0, length - 1), (at >= 0) & (at < length)))
    return _strongest(points, step, *axes)


def _strongest(points: Points, step: Step, ys: tuple[Tensor, Tensor], xs: tuple[Tensor, Tensor]) -> Moves:
    """To the strongest of the inputs at rows ys (P, h) and columns xs (P, w), each with a mask of those that exist."""
    source = step.operands[0]
    value, way, k = step.value(source), step.way, step.way.k(step)
    height, width = value.shape[-2:]
    channel = points.unit // (step.shape()[-2] * step.shape()[-1] if len(step.shape()) == 4 else 1)
    order = torch.tensor(tap_order((ys[0].shape[1], xs[0].shape[1]), way, False), device=points.unit.device)
    values, (per_image, per_channel, per_pixel) = flat(value)
    values = values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
    start = step.image(points) * per_image + channel * per_channel
    size = max(1, ELEMENTS // len(order))
    parts = []
    for part in (slice(begin, begin + size) for begin in range(0, len(points), size)):
        some = points.take(part)
        pixel = (ys[0][part][:, :, None] * width + xs[0][part][:, None]).flatten(1)[:, order]
        valid = (ys[1][part][:, :, None] & xs[1][part][:, None]).flatten(1)[:, order]
        inputs = values[start[part, None] + pixel * per_pixel].masked_fill(~valid, 0)
        chosen = choose(Plain(inputs[:, :, None]), some, Taps(pixel, valid), way, k, None)
        step.check(chosen.score, source)
        unit = channel[part][chosen.point] * (height * width) + pixel[chosen.point, chosen.tap]
        found = moved(some, chosen, unit, None)
        parts.append((source, found if some.sign is None else found.signed(some.sign[chosen.point])))
    return parts


def _place(points: Points, columns: int, rows: int) -> tuple[Tensor, Tensor]:
    pixel = points.unit % (rows * columns)
    return pixel // columns, pixel % columns


def _cell(out: Tensor, cells: int, length: int) -> tuple[Tensor, Tensor]:
    """The places of the cell of every unit, as adaptive pooling divides an axis."""
    start, end = out * length // cells, ((out + 1) * length + cells - 1) // cells
    longest = length if cells == 1 else int((end - start).max())
    at = start[:, None] + torch.arange(longest, device=out.device)
    return at.clamp(max=length - 1), at < end[:, None]
