"""Moves through pooling: to the strongest input of the unit's window, in the same channel."""

from collections.abc import Callable
from typing import Any

import numpy as np

from perpixel.fixations.points import Array, Units
from perpixel.fixations.rules.choice import Chosen, Given, choose, choose_in_slices
from perpixel.fixations.rules.geometry import Taps, Window, pair, tap_order
from perpixel.fixations.rules.step import Moves, Step
from perpixel.fixations.rules.values import Values


def max_pool(units: Units, step: Step) -> Moves:
    """To the strongest input in the window."""
    return _pool(units, step, step.argument("dilation", 4, 1))


def average_pool(units: Units, step: Step) -> Moves:
    """To the strongest input in the window: the one that gives most to the mean."""
    return _pool(units, step, 1)


def adaptive_pool(units: Units, step: Step) -> Moves:
    """To the strongest input in the unit's cell."""
    height, width = step.shape(step.operands[0])[-2:]
    rows, columns = step.shape()[-2:]
    image = step.image(units)
    place = units.pixel - image * (rows * columns)
    y = place // columns
    return _strongest_in_cells(units, step, _cell(y, rows, height), _cell(place - y * columns, columns, width))


def global_mean(units: Units, step: Step) -> Moves:
    """Through a mean over height and width, to the strongest input of the channel."""
    size = step.shape(step.operands[0])
    dims = step.argument("dim", 1)
    dims = [dims] if isinstance(dims, int) else dims
    if len(size) != 4 or dims is None or sorted(d % 4 for d in dims) != [2, 3]:
        raise step.refuse("a mean is followed over height and width of a map (N, C, H, W)")
    zero = np.zeros_like(units.pixel)
    return _strongest_in_cells(units, step, _cell(zero, 1, size[2]), _cell(zero, 1, size[3]))


def cell_size(step: Step) -> int:
    """How many inputs the largest cell has, about."""
    return step.places(step.operands[0]) // max(step.places(), 1)


def _pool(units: Units, step: Step, dilation: Any) -> Moves:
    kernel, stride = step.argument("kernel_size", 1), step.argument("stride", 2)
    window = Window(pair(kernel), pair(stride or kernel), pair(step.argument("padding", 3, 0)), pair(dilation))
    order = tap_order(window.size, step.conventions.published, False)
    if len(step.shape()) != 4:
        raise step.refuse("a pooling is followed over height and width of a map (N, C, H, W)")
    taps = step.table(window, order).taps(units.pixel)
    return _strongest(units, step, len(order), lambda part: taps.part(part))


def _strongest_in_cells(units: Units, step: Step, ys: tuple[Array, Array], xs: tuple[Array, Array]) -> Moves:
    """To the strongest of the inputs at rows ys (P, h) and columns xs (P, w), each with a mask of those that exist."""
    height, width = step.shape(step.operands[0])[-2:]
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
    values = Values.of(step.value(source))
    pixels: list[Array] = []

    def choose_some(part: slice) -> Chosen:
        found = taps(part)
        inputs = values.at(found.pixel, units.channel[part, None])
        if found.valid is not None:
            inputs[~found.valid] = 0
        minus = None if units.minus is None else units.minus[part]
        chosen = choose(Given(inputs), minus, found.valid, step.conventions, step.k)
        pixels.append(chosen.tap_of(found.pixel))
        return chosen

    chosen = choose_in_slices(len(units), length, choose_some)
    step.watch(chosen.score, source)
    return [(source, chosen.move(units, np.concatenate(pixels), chosen.of(units.channel)))]


def _cell(out: Array, cells: int, length: int) -> tuple[Array, Array]:
    """The places of the cell of every unit, as adaptive pooling divides an axis."""
    start, end = out * length // cells, ((out + 1) * length + cells - 1) // cells
    longest = length if cells == 1 else int((end - start).max())
    at = start[:, None] + np.arange(longest)
    return at.clip(max=length - 1), at < end[:, None]
