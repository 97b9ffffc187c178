"""Moves through pooling and reductions, to the strongest input of a unit's window; and back through unpooling."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from torch.fx.node import Node

from perpixel.fixations.points import Array, Units
from perpixel.fixations.rules.choice import Chosen, Given, choose, choose_in_slices
from perpixel.fixations.rules.geometry import Taps, Window, as_map, pair, tap_order
from perpixel.fixations.rules.step import Moves, Step
from perpixel.fixations.rules.values import Values, block, host, pick, rows
from perpixel.fixations.trace.operations import operation

_PLANE = (None, None, 4)  # what settings of height are where there is none; dimensions


def max_pool(units: Units, step: Step) -> Moves:
    """To the strongest input in the window."""
    return _pool(units, step, step.argument("dilation", 4, 1))


def average_pool(units: Units, step: Step) -> Moves:
    """To the strongest input in the window: the one that gives most to the mean."""
    return _pool(units, step, 1)


def adaptive_pool(units: Units, step: Step) -> Moves:
    """To the strongest input in the unit's cell."""
    height, width = as_map(step.shape(step.operands[0]))[-2:]
    rows, columns = as_map(step.shape())[-2:]
    image = step.image(units)
    place = units.pixel - image * (rows * columns)
    y = place // columns
    return _strongest_in_cells(units, step, _cell(y, rows, height), _cell(place - y * columns, columns, width))


def along(units: Units, step: Step) -> Moves:
    """Through a sum, mean, maximum or minimum along dimensions, to the strongest of the elements: the lowest of it."""
    size, dims = step.shape(step.operands[0]), step.argument("dim", 1)
    dims = {d % len(size) for d in ([dims] if isinstance(dims, int) else dims or range(len(size)))}
    if 0 in dims:
        raise step.refuse("it reduces over the images of a batch")
    if dims != {2, 3} or len(size) != 4:
        return _strongest_along(units, step, size, sorted(dims))
    zero = np.zeros_like(units.pixel)
    return _strongest_in_cells(units, step, _cell(zero, 1, size[2]), _cell(zero, 1, size[3]))


def _strongest_along(units: Units, step: Step, size: tuple[int, ...], dims: list[int]) -> Moves:
    source, kept = step.operands[0], [d for d in range(len(size)) if d not in dims]
    numbers = np.arange(math.prod(size)).reshape(size).transpose(*kept, *dims)
    numbers = numbers.reshape(-1, math.prod(size[d] for d in dims))
    values, row, looked_for = block(step.value(source).reshape(-1)), step.element(units), _lowest(units, step)

    def choose_some(part: slice) -> Chosen:
        minus = None if looked_for is None else looked_for[part]
        return choose(Given(pick(values, numbers[row[part]])), minus, None, step.conventions, step.k)

    chosen = choose_in_slices(len(units), numbers.shape[1], choose_some)
    step.watch(chosen.score, source)
    moved = chosen.move(units, chosen.of(units.pixel), chosen.of(units.channel))
    return [(source, step.at_element(moved, numbers[chosen.of(row), chosen.tap], source))]


def unpool(units: Units, step: Step) -> Moves:
    """To the input that was put there; where nothing was, the point is dropped."""
    source, index = _unpooled(step)
    channels, before, places = step.shape()[1], step.places(source), step.places()
    row = step.image(units) * channels + units.channel
    used, place = np.unique(row, return_inverse=True)
    into = rows(block(step.value(index).reshape(-1, before)), used)
    origin = np.full((len(used), places), -1)
    origin[np.arange(len(used))[:, None], host(into)] = np.arange(before)
    found = origin[place, units.pixel - step.image(units) * places]
    there = found >= 0
    return [(source, units.at(found + step.image(units) * before, units.channel).take(there))]


def reads_unpool(step: Step) -> list[Node]:
    """Where things are put."""
    return [_unpooled(step)[1]]


def follows_unpool(step: Step) -> list[Node]:
    """What is put there."""
    return [_unpooled(step)[0]]


def _unpooled(step: Step) -> tuple[Node, Node]:
    given = [a for a in (*step.node.args, *step.node.kwargs.values()) if isinstance(a, Node)]
    if len(given) != 2 or given[0] not in step.run.tracked or len(step.shape()) not in (3, 4):
        raise step.refuse("unpooling is followed on maps (N, C, ...) that depend on the images, with their indices")
    return given[0], given[1]


def cell_size(step: Step) -> int:
    """How many inputs the largest cell has, about."""
    return step.places(step.operands[0]) // max(step.places(), 1)


def _pool(units: Units, step: Step, dilation: Any) -> Moves:
    kernel, stride = step.argument("kernel_size", 1), step.argument("stride", 2)
    ones, zeros, length = (1, 0, 3) if (operation(step.node) or type(step.module).__name__).endswith("1d") else _PLANE
    if len(step.shape()) != length:
        raise step.refuse("a pooling is followed on maps with a batch dimension")
    padding = pair(step.argument("padding", 3, 0), zeros)
    window = Window(pair(kernel, ones), pair(stride or kernel, ones), padding, pair(dilation, ones))
    order = tap_order(window.size, step.conventions.published, False)
    taps = step.table(window, order).taps(units.pixel)
    return _strongest(units, step, len(order), lambda part: taps.part(part))


def _strongest_in_cells(units: Units, step: Step, ys: tuple[Array, Array], xs: tuple[Array, Array]) -> Moves:
    """To the strongest of the inputs at rows ys (P, h) and columns xs (P, w), each with a mask of those that exist."""
    width = step.shape(step.operands[0])[-1]
    height = step.places(step.operands[0]) // width
    image = step.image(units)
    size = (ys[0].shape[1], xs[0].shape[1])
    order = tap_order(size, step.conventions.published, False)

    def taps(part: slice) -> Taps:
        pixel = (ys[0][part][:, :, None] * width + xs[0][part][:, None]).reshape(-1, size[0] * size[1])[:, order]
        if not isinstance(image, int):
            pixel = pixel + image[part, None] * (height * width)
        valid = (ys[1][part][:, :, None] & xs[1][part][:, None]).reshape(pixel.shape)[:, order]
        return Taps(pixel, None if valid.all() else valid)

    return _strongest(units, step, len(order), taps)


def _strongest(units: Units, step: Step, length: int, taps: Callable[[slice], Taps]) -> Moves:
    """To the strongest input of the `length` that the taps name for each unit, in its channel."""
    source = step.operands[0]
    values, looked_for = Values.of(step.value(source)), _lowest(units, step)
    pixels: list[Array] = []

    def choose_some(part: slice) -> Chosen:
        found = taps(part)
        inputs = values.at(found.pixel, units.channel[part, None])
        if found.valid is not None:
            inputs[~found.valid] = 0
        minus = None if looked_for is None else looked_for[part]
        chosen = choose(Given(inputs), minus, found.valid, step.conventions, step.k)
        pixels.append(chosen.tap_of(found.pixel))
        return chosen

    chosen = choose_in_slices(len(units), length, choose_some)
    step.watch(chosen.score, source)
    return [(source, chosen.move(units, np.concatenate(pixels), chosen.of(units.channel)))]


def _lowest(units: Units, step: Step) -> Array | None:
    """Which units look for the lowest input: those asked what made them negative; all, in a minimum."""
    return np.ones(len(units), np.bool_) if operation(step.node) in ("amin", "min") else units.minus


def _cell(out: Array, cells: int, length: int) -> tuple[Array, Array]:
    """The places of the cell of every unit, as adaptive pooling divides an axis."""
    start, end = out * length // cells, ((out + 1) * length + cells - 1) // cells
    longest = length if cells == 1 else int((end - start).max())
    at = start[:, None] + np.arange(longest)
    return at.clip(max=length - 1), at < end[:, None]
