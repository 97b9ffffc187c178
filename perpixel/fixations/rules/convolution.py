"""Moves through layers that weigh their input: convolution, transposed convolution, linear."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perpixel.fixations.points import Array, Units
from perpixel.fixations.rules.choice import ELEMENTS, Chosen, choose, choose_in_slices
from perpixel.fixations.rules.geometry import Window, WindowTable, centre_of, pair, tap_order
from perpixel.fixations.rules.step import Moves, Step
from perpixel.fixations.rules.values import Block, block
from perpixel.fixations.rules.windows import Inputs


def convolution(units: Units, step: Step) -> Moves:
    """To the inputs with the largest weight x input; the bias does not compete."""
    return _weigh(units, step, transposed=False)


def transposed_convolution(units: Units, step: Step) -> Moves:
    """To the inputs with the largest weight x input among those that reach the unit."""
    return _weigh(units, step, transposed=True)


def work(step: Step) -> int:
    """How many contributions a unit has."""
    weight = step.argument("weight", 1)
    return weight.numel() // step.shape()[1]


def linear(units: Units, step: Step) -> Moves:
    """To the features with the largest weight x input, at the same place."""
    source = step.operands[0]
    value, weight = step.value(source), _of_layer(step)
    length, outputs = value.shape[-1], weight.shape[0]
    index = step.index(units)
    place = index // outputs
    rows = block(value.reshape(-1, length).contiguous())
    row = place + step.image(units) * (rows.shape[0] // value.shape[0])
    inputs = Inputs(rows, row[:, None], None)
    chosen = _choose(units, inputs, block(weight[:, None].contiguous()), index - place * outputs, step)
    moved = chosen.move(units, chosen.of(units.pixel), chosen.of(units.channel), _value(units, inputs, chosen, step))
    return [(source, step.at_index(moved, chosen.of(place) * length + chosen.channel, source))]


@dataclass(slots=True)
class _Kernel:
    """A convolution as the way back needs it, worked out once; fixed: the tap to take where points keep their place."""

    settings: tuple[Any, ...]
    groups: int
    order: list[int]
    table: WindowTable
    fixed: int | None


def _weigh(units: Units, step: Step, *, transposed: bool) -> Moves:
    source = step.operands[0]
    if len(step.shape()) != step.argument("weight", 1).ndim:
        raise step.refuse("a convolution is followed on maps with a batch dimension")
    kernel = _kernel(step, transposed)
    weight, output = _laid_out(step, kernel, units.channel, transposed)
    if kernel.table.phases is not None:  # an output for each channel and phase
        output = output * len(kernel.table.phases) + kernel.table.phase(units.pixel)
        weight = weight[:, kernel.table.phases].reshape(-1, kernel.table.phases.shape[1], weight.shape[2])
    per_group, outputs = weight.shape[2], step.shape()[1]
    taps = kernel.table.taps(units.pixel)
    group = units.channel // (outputs // kernel.groups) if kernel.groups > 1 else None
    inputs = Inputs.of(_as_map(step.value(source)), taps, group, per_group)
    chosen = _choose(units, inputs, weight, output, step, kernel.fixed)
    channel = chosen.channel if group is None else chosen.channel + chosen.of(group) * per_group
    value = _value(units, inputs, chosen, step)
    return [(source, chosen.move(units, chosen.tap_of(taps.pixel), channel, value))]


def _choose(units: Units, inputs: Inputs, weight: Block, output: Array, step: Step, fixed: int | None = None) -> Chosen:
    valid = inputs.valid

    def choose_some(part: slice) -> Chosen:
        products = inputs.weighed(part, weight, output)
        minus, valid_of_part = (None if of is None else of[part] for of in (units.minus, valid))
        return choose(products, minus, valid_of_part, step.conventions, step.k, fixed)

    load = weight.shape[1] * weight.shape[2]
    if valid is not None and load * len(units) > ELEMENTS:
        load = -(-load * int(np.count_nonzero(valid)) // valid.size)  # what is not valid is not looked at
    chosen = choose_in_slices(len(units), load, choose_some)
    step.watch(chosen.score, step.operands[0])
    return chosen


def _value(units: Units, inputs: Inputs, chosen: Chosen, step: Step) -> Array | None:
    """The inputs that were chosen, whose sign is asked about from now on; the published way knows no sign."""
    if step.conventions.published:
        return None if units.minus is None else np.zeros(len(chosen.tap))
    return inputs.at(chosen)


def _kernel(step: Step, transposed: bool) -> _Kernel:
    tables, layer, weight = step.run.plan.tables, step.module, step.argument("weight", 1)
    settings: tuple[Any, ...] = ()
    if layer is not None:
        settings = (layer.stride, layer.padding, layer.dilation, layer.groups, layer.padding_mode, weight.shape)
        settings = (*settings, step.conventions.shift, step.conventions.published, weight.device)
        kept = tables.get(step.node)
        if kept is not None and kept.settings == settings:
            return kept
    ones, zeros = (1, 0) if weight.ndim == 3 else (None, None)
    dilation = pair(step.argument("dilation", 7 if transposed else 5, 1), ones)
    padding, size = step.argument("padding", 4, 0), pair(weight.shape[2:], ones)
    if padding == "same":
        before = (dilation[0] * (size[0] - 1) // 2, dilation[1] * (size[1] - 1) // 2)
    else:
        before = (0, 0) if padding == "valid" else pair(padding, zeros)
    mode = step.argument("padding_mode", 99, "zeros")
    stride = pair(step.argument("stride", 3, 1), ones)
    by_phase = transposed and max(stride) > 1 and not step.conventions.published  # whose padding competes
    window = Window(size, stride, before, dilation, mode, transposed, by_phase)
    keeps_place = step.conventions.keep_place(dilation)
    order = tap_order(size, step.conventions.published, keeps_place)
    fixed = None if not keeps_place else 0 if by_phase else centre_of(size, order)
    kernel = _Kernel(settings, step.argument("groups", 6, 1), order, step.table(window, order), fixed)
    if layer is not None:
        tables[step.node] = kernel
    return kernel


def _as_map(x: Tensor) -> Tensor:
    return x if x.ndim == 4 else x.unsqueeze(2)


def _of_layer(step: Step) -> Tensor:
    weight: Tensor = step.argument("weight", 1)
    return weight.detach() if weight.requires_grad else weight


def _laid_out(step: Step, kernel: _Kernel, channel: Array, transposed: bool) -> tuple[Block, Array]:
    """The weights (outputs, taps in order, channels per group) of the outputs in use, and which is whose.

    Read anew in every walk: nothing tells of all changes of a tensor.
    """
    weight, groups = _of_layer(step), kernel.groups
    if transposed:  # (inputs, outputs per group, h, w) -> (outputs, inputs per group, h, w)
        inputs, outputs, *size = weight.shape
        weight = weight.reshape(groups, inputs // groups, outputs, *size).transpose(1, 2)
        weight = weight.reshape(groups * outputs, inputs // groups, *size)
    if len(kernel.order) == 1:
        return block(weight.reshape(len(weight), 1, -1)), channel
    if weight.shape[1] == 1:
        return block(weight.reshape(len(weight), -1, 1))[:, kernel.order], channel
    used, place = np.zeros(len(weight), np.bool_), np.empty(len(weight), np.int64)
    used[channel] = True
    found = used.nonzero()[0]
    place[found] = np.arange(len(found))
    index, order = (torch.from_numpy(of).to(weight.device) for of in (found, np.asarray(kernel.order)))
    return block(weight.flatten(2).transpose(1, 2)[index[:, None], order].contiguous()), place.take(channel)
