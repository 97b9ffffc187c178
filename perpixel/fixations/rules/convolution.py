"""Moves through layers that weigh their input: convolution, transposed convolution, linear."""

from dataclasses import dataclass

import torch
from torch import Tensor

from perpixel.fixations.points import Points
from perpixel.fixations.reading import Windows
from perpixel.fixations.rules.choice import ELEMENTS, Plain, centre_of, choose, is_fixed, moved, tap_order
from perpixel.fixations.rules.geometry import Taps, Window, pair, taps
from perpixel.fixations.rules.step import Moves, Step

_PROBES = 64  # elements of a weight that tell whether it was changed behind autograd's back


@dataclass(frozen=True)
class Kernel:
    """A convolution's weight and settings."""

    weight: Tensor
    window: Window
    groups: int


def convolution(points: Points, step: Step) -> Moves:
    """To the inputs with the largest weight x input; the bias does not compete."""
    return _weigh(points, step, kernel_of(step, transposed=False))


def transposed_convolution(points: Points, step: Step) -> Moves:
    """To the inputs with the largest weight x input among those that reach the unit."""
    return _weigh(points, step, kernel_of(step, transposed=True))


def linear(points: Points, step: Step) -> Moves:
    """To the features with the largest weight x input, at the same place."""
    source = step.operands[0]
    value, weight = step.value(source), _weight(step)
    place = points.unit // weight.shape[0]
    per_image = step.units(source) // value.shape[-1]
    pixel = (step.image(points) * per_image + place)[:, None]
    rows = value.reshape(-1, value.shape[-1])
    parts = []
    for part in _chunks(len(points), weight.shape[1]):
        some = points.take(part)
        chosen_rows, w = rows[pixel[part]], weight[some.unit % weight.shape[0]][:, None]
        chosen = choose(Plain(chosen_rows * w), some, Taps(pixel[part], None), step.way, step.way.k(step), None)
        step.check(chosen.score, source)
        found = None if step.way.published else chosen_rows[chosen.point, chosen.tap, chosen.channel]
        unit = place[part][chosen.point] * value.shape[-1] + chosen.channel
        parts.append((source, moved(some, chosen, unit, found)))
    return parts


def _weigh(points: Points, step: Step, kernel: Kernel) -> Moves:
    source = step.operands[0]
    x, way, k = step.value(source), step.way, step.way.k(step)
    _, channels, height, width = x.shape
    _, outputs, rows_out, columns_out = step.shape()
    fixed = is_fixed(way, kernel.window.dilation)
    order = tap_order(kernel.window.size, way, fixed)
    channel = points.unit // (rows_out * columns_out)
    place = points.unit - channel * (rows_out * columns_out)
    row = place // columns_out
    taps_of = taps(row, place - row * columns_out, kernel.window, order, (height, width))
    centre = centre_of(kernel.window.size, order) if fixed else None
    per_group = channels // kernel.groups
    first = channel // (outputs // kernel.groups) * per_group  # the first channel of the unit's group
    weight = laid_out(step, kernel.weight, kernel.groups, order, transposed=kernel.window.transposed)
    windows = Windows(x, step.image(points), first, taps_of, per_group, step.run.scratch, source)
    parts = []
    for part in _chunks(len(points), windows.load(way)):
        some = points if part.start == 0 and part.stop >= len(points) else points.take(part)
        given = windows.weighed(part, weight, channel[part])
        chosen = choose(given, some, taps_of.part(part), way, k, centre)
        step.check(chosen.score, source)
        window = chosen.point + part.start
        found = None if way.published else windows.value(window, chosen.tap, chosen.channel)
        unit = (first[window] + chosen.channel) * (height * width) + taps_of.pixel[window, chosen.tap]
        parts.append((source, moved(some, chosen, unit, found)))
    return parts


def _chunks(count: int, elements: int) -> list[slice]:
    size = max(1, ELEMENTS // elements)
    return [slice(start, start + size) for start in range(0, count, size)]


def kernel_of(step: Step, *, transposed: bool) -> Kernel:
    """The convolution a step is."""
    weight = _weight(step)
    stride = pair(step.argument("stride", 3, 1))
    dilation = pair(step.argument("dilation", 7 if transposed else 5, 1))
    padding = step.argument("padding", 4, 0)
    size = (weight.shape[2], weight.shape[3])
    if padding == "same":
        before = (dilation[0] * (size[0] - 1) // 2, dilation[1] * (size[1] - 1) // 2)
    else:
        before = (0, 0) if padding == "valid" else pair(padding)
    groups = step.argument("groups", 6, 1)
    mode = step.argument("padding_mode", 99, "zeros")
    return Kernel(weight, Window(size, stride, before, dilation, mode, transposed), groups)


def _weight(step: Step) -> Tensor:
    weight = step.argument("weight", 1)
    return weight.detach().float() if weight.dtype in (torch.float16, torch.bfloat16) else weight.detach()


@dataclass(frozen=True)
class _LaidOut:
    """A weight laid out, and by what to tell whether it still is that weight; `some`, a view of it, equals `probe`."""

    laid: Tensor
    order: list[int]
    version: int
    pointer: int
    dtype: torch.dtype
    some: Tensor
    probe: Tensor

    def holds(self, weight: Tensor, order: list[int]) -> bool:
        same = self.pointer == weight.data_ptr() and self.version == weight._version and self.dtype == weight.dtype
        return same and self.order is order and torch.equal(self.some, self.probe)


def laid_out(step: Step, weight: Tensor, groups: int, order: list[int], *, transposed: bool) -> Tensor:
    """The weight as (outputs, taps in order, channels per group), kept with the trace while it does not change."""
    kept = step.run.trace.weights.get(step.node)
    if kept is not None and kept.holds(weight, order):
        return kept.laid
    weight = weight.detach()
    laid = _lay_out(weight, groups, order, transposed)
    memory = weight if weight.is_contiguous() else weight.movedim(1, -1)
    if weight.device.type == "cpu" and step.node.op == "call_module" and memory.is_contiguous():
        some = memory.view(-1)[:: max(1, weight.numel() // _PROBES)]
        found = _LaidOut(laid, order, weight._version, weight.data_ptr(), weight.dtype, some, some.clone())
        step.run.trace.weights[step.node] = found
    return laid


def _lay_out(weight: Tensor, groups: int, order: list[int], transposed: bool) -> Tensor:
    size = weight.shape[2:]
    if transposed:  # (inputs, outputs per group, h, w) -> (outputs, inputs per group, h, w)
        inputs, outputs = weight.shape[:2]
        weight = weight.reshape(groups, inputs // groups, outputs, *size).transpose(1, 2)
        weight = weight.reshape(groups * outputs, inputs // groups, *size)
    rows = weight.flatten(2).transpose(1, 2)
    return (rows if len(order) == 1 else rows[:, torch.tensor(order, device=weight.device)]).contiguous()
