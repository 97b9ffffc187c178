"""The moves of `joins` and `placement` that are on every network's way, for k = 1 on the CPU, in numpy."""

import numpy as np
import torch
from torch import nn
from torch.fx.node import Node

from perpixel.fixations.lookup import Map
from perpixel.fixations.rules.choice import tap_order
from perpixel.fixations.rules.joins import branches, gated, is_join
from perpixel.fixations.rules.placement import source_pixels
from perpixel.fixations.rules.step import Step, TrackMoves
from perpixel.fixations.tracks import Array, Tracks


def same(tracks: Tracks, step: Step) -> TrackMoves:
    """To the same unit of the only operand."""
    return [(step.operands[0], tracks)]


def normalise(tracks: Tracks, step: Step) -> TrackMoves | None:
    """To the same unit; where the channel's scale is negative, the sign turns over."""
    if step.way.published:
        return same(tracks, step)
    if not isinstance(step.module, nn.BatchNorm2d):
        return None
    weight = step.argument("weight", 3)
    if weight is None:
        return same(tracks, step)
    negative = weight.detach().numpy() < 0
    if not negative.any():
        return same(tracks, step)
    turned = negative.take(tracks.channel)
    minus = turned if tracks.minus is None else turned ^ tracks.minus
    return [(step.operands[0], tracks.at(tracks.pixel, tracks.channel, minus))]


def join(tracks: Tracks, step: Step) -> TrackMoves | None:
    """To the branch with the largest signed value; the first of equal ones."""
    found = branches(step)
    shape = step.shape()
    if not is_join(step) or any(step.shape(node) != shape or factor != 1 for node, factor in found):
        return None
    if len(found) == 1:
        return [(found[0][0], tracks)]
    values = [_read(step, node, tracks.pixel, tracks.channel) for node, _ in found]
    given = np.stack(values)
    step.watch(found[0][0], given)
    signs = tracks.signs(given.dtype)
    if signs is not None:
        given = given * signs
    if len(found) == 2:
        second = given[1] > given[0]
        winners = [(~second).nonzero()[0], second.nonzero()[0]]
    else:
        winner = given.argmax(0)
        winners = [(winner == place).nonzero()[0] for place in range(len(found))]
    return [
        (node, tracks if len(index) == len(tracks) else tracks.take(index))
        for (node, _), index in zip(found, winners)
        if len(index)
    ]


def gate(tracks: Tracks, step: Step) -> TrackMoves | None:
    """Through a product to the gated operand; where the gate is negative, the sign turns over."""
    source, other = gated(step)
    shape = step.shape()
    if step.shape(source) != shape:
        return None
    if step.way.published:
        return [(source, tracks)]
    if isinstance(other, (int, float)):
        negative = np.full(len(tracks), other < 0)
    elif not isinstance(other, Node) or other not in step.run.tracked:
        return None
    elif step.shape(other) == (shape[0], shape[1], *[1] * (len(shape) - 2)):
        area = step.units() // shape[1]
        image = tracks.pixel // area if shape[0] > 1 else np.zeros(1, np.int64)
        negative = _read(step, other, image, tracks.channel) < 0
    elif step.shape(other) == shape:
        negative = _read(step, other, tracks.pixel, tracks.channel) < 0
    else:
        return None
    if not negative.any():
        return [(source, tracks)]
    minus = negative if tracks.minus is None else negative ^ tracks.minus
    return [(source, tracks.at(tracks.pixel, tracks.channel, minus))]


def cat(tracks: Tracks, step: Step) -> TrackMoves | None:
    """To the operand whose part of the channels the unit lies in."""
    tensors, dim = step.node.args[0] if step.node.args else step.node.kwargs["tensors"], step.argument("dim", 1, 0)
    if dim not in (1, 1 - len(step.shape())):
        return None
    moves, start = [], 0
    for node in tensors:  # type: ignore[union-attr]
        stop = start + step.run.shapes[node][1]  # type: ignore[index]
        index = ((tracks.channel >= start) & (tracks.channel < stop)).nonzero()[0]
        if len(index) and node in step.run.tracked:
            part = tracks.take(index)
            part.channel = part.channel - start
            moves.append((node, part))
        start = stop
    return moves  # type: ignore[return-value]


def resize(tracks: Tracks, step: Step) -> TrackMoves | None:
    """To the source pixel with the largest weight; the first of equal ones."""
    tables = step.run.plan.tables
    settings = ("mode", 3), ("scale_factor", 2), ("size", 1), ("align_corners", 4), ("antialias", 6)
    key = step.node, step.way.published, str([step.argument(*setting) for setting in settings])
    if key not in tables:
        found = source_pixels(step, torch.device("cpu"))
        tables[key] = None if found is None else found.numpy()
    table = tables[key]
    if table is None:
        return None
    source = step.operands[0]
    if step.shape()[0] == 1:
        pixel = table.take(tracks.pixel)
    else:
        image = tracks.pixel // len(table)
        area = step.units(source) // step.shape(source)[1]
        pixel = table.take(tracks.pixel - image * len(table)) + image * area
    return [(source, tracks.at(pixel, tracks.channel, tracks.minus))]


def cell(tracks: Tracks, step: Step) -> TrackMoves | None:
    """Through a pooling of the whole map, to its strongest place."""
    source = step.operands[0]
    x = step.value(source)
    if step.units() != step.shape()[1] or x.ndim != 4 or x.dtype not in (torch.float32, torch.float64):
        return None
    images, _, height, width = x.shape
    order = np.array(tap_order((height, width), step.way, False))
    image = tracks.pixel if images > 1 else np.zeros(1, np.int64)
    values = Map.of(x)
    given = values.flat.take(values.index(image[:, None] * (height * width) + order, tracks.channel[:, None]))
    signs = tracks.signs(given.dtype)
    if signs is not None:
        given *= signs[:, None]
    place = given.argmax(1)
    step.watch(source, given.ravel().take(np.arange(0, given.size, given.shape[1]) + place))
    return [(source, tracks.at(image * (height * width) + order.take(place), tracks.channel, tracks.minus))]


def _read(step: Step, node: Node, pixel: Array, channel: Array) -> Array:
    values = Map.of(step.value(node))
    return values.flat.take(values.index(pixel, channel))
