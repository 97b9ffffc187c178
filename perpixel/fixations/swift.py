"""The moves of `weighted` and `windows` for k = 1 on the CPU, in numpy: the highest of rows of channels."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perpixel.fixations.lookup import Looks, Map, Table
from perpixel.fixations.reading import rows_of
from perpixel.fixations.rules.choice import by_elements, centre_of, is_fixed, tap_order
from perpixel.fixations.rules.convolution import kernel_of, laid_out
from perpixel.fixations.rules.geometry import Window, pair
from perpixel.fixations.rules.step import Step, TrackMoves
from perpixel.fixations.tracks import Array, Tracks

_ELEMENTS = 1 << 17  # contributions looked at at once: few enough to stay in a core's cache
_DTYPES = (torch.float32, torch.float64)


@dataclass(slots=True)
class _Layer:
    """What the way back through a convolution needs to know, worked out once."""

    settings: tuple[Any, ...]
    groups: int
    order: list[int]
    table: Table
    centre: int | None  # the tap to take, where points keep their place


def convolution(tracks: Tracks, step: Step, *, transposed: bool = False) -> TrackMoves | None:
    """To the inputs with the largest weight x input; the bias does not compete."""
    source = step.operands[0]
    x, published = step.value(source), step.way.published
    weights: Tensor = step.argument("weight", 1)
    if x.dtype not in _DTYPES or weights.dtype != x.dtype:
        return None
    layer = _layer(step, weights, transposed)
    looks = layer.table.look(tracks.pixel)
    weight = laid_out(step, weights, layer.groups, layer.order, transposed=transposed).numpy()
    outputs, _, per_group = weight.shape
    group = tracks.channel // (outputs // layer.groups) if layer.groups > 1 else None
    inputs = _Inputs.of(x, looks, group, per_group, step)
    weigh = _by_elements if by_elements(step.way, per_group) else _by_channels
    tap, channel, score = weigh(inputs, looks, weight, tracks, published)
    step.watch(source, score)
    if layer.centre is not None:
        tap = np.full_like(tap, layer.centre)
        if looks.valid is not None and not published:
            tap = looks.valid.argmax(1)
    minus = None if published else inputs.at(tap, channel) < 0
    moved = tracks.at(looks.at(tap), channel if group is None else channel + group * per_group, minus)
    if looks.valid is not None and not published:
        some = looks.valid.any(1)
        moved = moved if some.all() else moved.take(some.nonzero()[0])
    return [(source, moved)]


transposed_convolution = partial(convolution, transposed=True)


def max_pool(tracks: Tracks, step: Step) -> TrackMoves | None:
    """To the strongest input in the window."""
    return _pool(tracks, step, step.argument("dilation", 4, 1))


def average_pool(tracks: Tracks, step: Step) -> TrackMoves | None:
    """To the strongest input in the window: the one that gives most to the mean."""
    return _pool(tracks, step, 1)


def _pool(tracks: Tracks, step: Step, dilation: Any) -> TrackMoves | None:
    source = step.operands[0]
    x, way = step.value(source), step.way
    if x.dtype not in _DTYPES or x.ndim != 4:
        return None
    kernel, stride = step.argument("kernel_size", 1), step.argument("stride", 2)
    padding = step.argument("padding", 3, 0)
    window = Window(pair(kernel), pair(stride or kernel), pair(padding), pair(dilation))
    looks = _table(step, window, tap_order(window.size, way, False)).look(tracks.pixel)
    values = Map.of(x)
    given = values.flat.take(values.index(looks.pixel, tracks.channel[:, None]))
    signs = tracks.signs(given.dtype)
    if signs is not None:
        given *= signs[:, None]
    if looks.valid is not None:
        given[~looks.valid] = 0 if way.published else -np.inf
    tap = given.argmax(1)
    step.watch(source, given.ravel().take(np.arange(0, given.size, given.shape[1]) + tap))
    return [(source, tracks.at(looks.at(tap), tracks.channel, tracks.minus))]


def _layer(step: Step, weight: Tensor, transposed: bool) -> _Layer:
    tables, layer = step.run.plan.tables, step.module
    settings = None
    if layer is not None:
        own = (layer.stride, layer.padding, layer.dilation, layer.groups, layer.padding_mode, weight.shape)
        settings = (*own, step.way.shift, step.way.published)
        kept = tables.get(step.node)
        if kept is not None and kept.settings == settings:
            return kept
    kernel = kernel_of(step, transposed=transposed)
    fixed = is_fixed(step.way, kernel.window.dilation)
    order = tap_order(kernel.window.size, step.way, fixed)
    centre = centre_of(kernel.window.size, order) if fixed else None
    found = _Layer(settings or (), kernel.groups, order, _table(step, kernel.window, order), centre)
    if settings is not None:
        tables[step.node] = found
    return found


def _table(step: Step, window: Window, order: list[int]) -> Table:
    tables = step.run.plan.tables
    shapes = step.shape(step.operands[0]), step.shape()
    key = (window, tuple(order), *shapes)
    if key not in tables:
        tables[key] = Table(window, order, *shapes)
    return tables[key]


@dataclass(slots=True)
class _Inputs:
    """The inputs P windows look at: rows (R, C), C channels of a group each, at `index` (P, T)."""

    rows: Array
    index: Array

    @staticmethod
    def of(x: Tensor, looks: Looks, group: Array | None, per_group: int, step: Step) -> "_Inputs":
        values = Map.of(x)
        if per_group == 1:
            channel = np.zeros(1, np.int64) if group is None else group
            return _Inputs(values.flat.reshape(-1, 1), values.index(looks.pixel, channel[:, None]))
        if values.rows:
            rows, index = values.flat, looks.pixel
        else:
            found, place = rows_of(x.detach(), torch.from_numpy(looks.pixel), step.run.scratch, step.operands[0])
            rows, index = found.numpy(), place.numpy()
        if group is not None:
            index = index * (values.channels // per_group) + group[:, None]
        return _Inputs(rows.reshape(-1, per_group), index)

    def at(self, tap: Array, channel: Array) -> Array:
        count, length = self.index.shape
        row = self.index[:, 0] if length == 1 else self.index.ravel().take(np.arange(0, count * length, length) + tap)
        return self.rows.ravel().take(row * self.rows.shape[1] + channel)


Found = tuple[Array, Array, Array]  # tap, channel of the group, and the score they won with


def _by_elements(inputs: _Inputs, looks: Looks, weight: Array, tracks: Tracks, published: bool) -> Found:
    count, length = looks.pixel.shape
    channels = weight.shape[2]
    best, score = np.empty(count, np.int64), np.empty(count, weight.dtype)
    signs = tracks.signs(weight.dtype)
    size = max(1, _ELEMENTS // (length * channels))
    for part in (slice(start, start + size) for start in range(0, count, size)):
        given = inputs.rows.take(inputs.index[part], axis=0)
        given *= weight.take(tracks.channel[part], axis=0)
        if signs is not None:
            given *= signs[part, None, None]
        if looks.valid is not None:
            given[~looks.valid[part]] = 0 if published else -np.inf
        given = given.reshape(len(given), -1)
        best[part] = place = given.argmax(1)
        score[part] = given.ravel().take(np.arange(0, given.size, given.shape[1]) + place)
    tap = best // channels
    return tap, best - tap * channels, score


def _by_channels(inputs: _Inputs, looks: Looks, weight: Array, tracks: Tracks, published: bool) -> Found:
    count, length = looks.pixel.shape
    channels = weight.shape[2]
    tap, channel, score = np.zeros(count, np.int64), np.empty(count, np.int64), np.empty(count, weight.dtype)
    signs = tracks.signs(weight.dtype)
    ends = None if looks.valid is None else np.concatenate([[0], looks.valid.sum(1).cumsum()])
    load = length if ends is None else max(1, -(-int(ends[-1]) // count))
    size = max(1, _ELEMENTS // (load * channels))
    for start in range(0, count, size):
        part = slice(start, min(start + size, count))
        output = tracks.channel[part]
        if ends is None or looks.valid is None:
            products = _Whole(inputs.rows, inputs.index[part], weight, output)
        else:
            products = _Parts(inputs.rows, inputs.index[part], weight, output, looks.valid[part])
        sums = products.sums()
        if signs is not None:
            sums *= signs[part, None]
        place = channels - 1 - sums[:, ::-1].argmax(1) if published else sums.argmax(1)
        channel[part] = place
        score[part] = sums.ravel().take(np.arange(0, sums.size, channels) + place)
        if length > 1:
            given = products.of(place)
            if signs is not None:
                given = given * signs[part, None]
            if looks.valid is not None and not published:
                given[~looks.valid[part]] = -np.inf
            tap[part] = given.argmax(1)
    return tap, channel, score


class _Whole:
    """Weight x input where all taps are valid."""

    def __init__(self, rows: Array, index: Array, weight: Array, output: Array) -> None:
        self.count, self.length = index.shape
        self.channels = weight.shape[2]
        self.given = rows.take(index.ravel(), axis=0)
        np.multiply(self.given, weight.take(output, axis=0).reshape(self.given.shape), out=self.given)

    def sums(self) -> Array:
        """Added up over the taps, (P, C)."""
        if self.length == 1:
            return self.given
        given = torch.from_numpy(self.given).view(self.count, self.length, self.channels)
        return given.sum(1).numpy()

    def of(self, channel: Array) -> Array:
        """Those of one channel each, (P, T)."""
        first = np.arange(0, self.given.size, self.channels).reshape(self.count, self.length)
        return self.given.ravel().take(first + channel[:, None])


class _Parts(_Whole):
    """Weight x input at the valid taps only."""

    def __init__(self, rows: Array, index: Array, weight: Array, output: Array, valid: Array) -> None:
        self.count, self.length = index.shape
        self.channels = weight.shape[2]
        self.place = valid.ravel().nonzero()[0]
        self.owner = self.place // self.length
        self.given = rows.take(index.ravel().take(self.place), axis=0)
        row = self.place + ((output - np.arange(self.count)) * self.length).take(self.owner)
        np.multiply(self.given, weight.reshape(-1, self.channels).take(row, axis=0), out=self.given)

    def sums(self) -> Array:
        """Added up over the taps, (P, C)."""
        given = torch.from_numpy(self.given)
        zeros = given.new_zeros(self.count, self.channels)
        return zeros.index_add_(0, torch.from_numpy(self.owner), given).numpy()

    def of(self, channel: Array) -> Array:
        """Those of one channel each, (P, T); 0 where a tap is not valid."""
        result = np.zeros(self.count * self.length, self.given.dtype)
        first = np.arange(0, self.given.size, self.channels)
        result[self.place] = self.given.ravel().take(first + channel.take(self.owner))
        return result.reshape(self.count, self.length)
