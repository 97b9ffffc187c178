"""What the windows of a convolution give: weight x input, read row by row of channels and added up over the taps."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from perpixel.fixations.points import Array
from perpixel.fixations.rules.choice import Chosen
from perpixel.fixations.rules.geometry import Taps
from perpixel.fixations.rules.values import Block, Values, added_up, added_up_at, beside, block, pick, rows

_SMALL = 1 << 16  # inputs that are quicker read where they lie than copied pixel by pixel, each once


@dataclass(slots=True)
class Inputs:
    """The inputs that P windows look at: rows (R, C), the channels of a group each, at `index` (P, T)."""

    rows: Block
    index: Array
    valid: Array | None

    @staticmethod
    def of(x: Tensor, taps: Taps, group: Array | None, per_group: int) -> "Inputs":
        """Those of x (N, channels, H, W), for windows in these groups of channels; None: there is one group."""
        values = Values.of(x)
        if per_group == 1:
            channel = np.zeros((1, 1), np.int64) if group is None else group[:, None]
            return Inputs(values.row.reshape(-1, 1), values.index(taps.pixel, channel), taps.valid)
        row, index = (values.row, taps.pixel) if values.together else _rows(x, taps.pixel)
        if group is not None:
            index = index * (values.channels // per_group) + group[:, None]
        return Inputs(row.reshape(-1, per_group), index, taps.valid)

    def at(self, chosen: Chosen) -> Array:
        """The inputs that were chosen."""
        return pick(self.rows, chosen.tap_of(self.index) * self.rows.shape[1] + chosen.channel)

    def weighed(self, part: slice, weight: Block, output: Array) -> "Weighed | WeighedWhereValid":
        """Weight x input of some windows, for weights (outputs, T, C) and the outputs (P,) of these windows."""
        index, output = self.index[part], output[part]
        if self.valid is None:
            return Weighed(self.rows, index, weight, output)
        valid = self.valid[part]
        if weight.shape[2] > 1:
            return WeighedWhereValid(self.rows, index, weight, output, valid)
        products = Weighed(self.rows, index, weight, output)
        products.given[beside(~valid, products.given)] = 0
        return products


class Weighed:
    """Weight x input of P windows, see `choice.Products`."""

    def __init__(self, inputs: Block, index: Array, weight: Block, output: Array) -> None:
        self.shape = (len(index), weight.shape[1], weight.shape[2])
        self.given = rows(inputs, index.ravel()).reshape(self.shape)
        self.given *= rows(weight, output)

    def whole(self) -> Block:
        """(P, T, C)."""
        return self.given

    def sums(self) -> Block:
        """(P, C)."""
        return added_up(self.given)

    def of(self, channel: Array) -> Array:
        """(P, K, T), for channels (P, K)."""
        count, length, channels = self.shape
        first = np.arange(0, count * length * channels, channels).reshape(count, 1, length)
        return pick(self.given, first + channel[:, :, None])


class WeighedWhereValid:
    """The same, computed at valid taps only; 0 at the others."""

    def __init__(self, inputs: Block, index: Array, weight: Block, output: Array, valid: Array) -> None:
        self.shape = (len(index), weight.shape[1], weight.shape[2])
        length, channels = self.shape[1:]
        self.place = valid.ravel().nonzero()[0]
        self.window = self.place // length
        row = self.place + ((output - np.arange(len(output))) * length).take(self.window)
        self.given = rows(inputs, index.ravel().take(self.place))
        self.given *= rows(weight.reshape(-1, channels), row)

    def whole(self) -> Block:
        """(P, T, C)."""
        return added_up_at(self.place, self.given, self.shape[0] * self.shape[1]).reshape(self.shape)

    def sums(self) -> Block:
        """(P, C)."""
        return added_up_at(self.window, self.given, self.shape[0])

    def of(self, channel: Array) -> Array:
        """(P, K, T), for channels (P, K)."""
        count, length, channels = self.shape
        first = np.arange(0, len(self.place) * channels, channels)
        given = pick(self.given, first[:, None] + channel.take(self.window, axis=0))
        found = np.zeros((count * length, channel.shape[1]), given.dtype)
        found[self.place] = given
        return found.reshape(count, length, -1).transpose(0, 2, 1)


def _rows(x: Tensor, pixel: Array) -> tuple[Block, Array]:
    """The rows (M, C) of the pixels of x that `pixel` names, and the index into them."""
    images, channels, height, width = x.shape
    places, count = height * width, pixel.size
    if 2 * count >= images * places:
        return block(x.permute(0, 2, 3, 1).reshape(-1, channels).contiguous()), pixel
    found, index = pixel.ravel(), np.arange(count).reshape(pixel.shape)
    if count * channels > _SMALL:  # each pixel once
        mark = np.zeros(images * places, np.bool_)
        mark[found] = True
        found = mark.nonzero()[0]
        place = np.empty(images * places, np.int64)
        place[found] = np.arange(len(found))
        index = place[pixel]
    at = torch.from_numpy(found).to(x.device)
    if images == 1:
        return block(x[0].flatten(1).index_select(1, at).t().contiguous()), index
    return block(x.flatten(2).transpose(1, 2)[at // places, at % places].contiguous()), index
