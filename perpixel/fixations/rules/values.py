"""Reading tensors where units are. Places come and answers go as numpy arrays, wherever the tensor is.

What lies on the CPU is handled as numpy arrays, which cost least where steps are small; what lies on another device as
tensors there. Both know the same operators, so that what differs is in this file.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perpixel.fixations.points import Array

Block = Any  # a numpy array, or a tensor on another device
_SIGNS = np.array([1, -1], np.float32)


def block(values: Tensor) -> Block:
    """A contiguous tensor as what is computed with; in float32 where it is coarser."""
    values = values.detach() if values.requires_grad else values
    values = values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
    return values.numpy() if values.device.type == "cpu" else values


def beside(array: Array, like: Block) -> Block:
    """The array where `like` is."""
    return array if isinstance(like, np.ndarray) else torch.from_numpy(array).to(like.device)


def host(values: Block) -> Array:
    """The values as an array."""
    return values if isinstance(values, np.ndarray) else values.cpu().numpy()


def pick(values: Block, index: Array) -> Array:
    """The elements of contiguous values at these places of their memory."""
    if isinstance(values, np.ndarray):
        return values.ravel().take(index)
    return values.view(-1)[beside(index, values)].cpu().numpy()


def rows(values: Block, index: Array) -> Block:
    """The rows of values (R, C) at these places, in memory of their own."""
    return values.take(index, axis=0) if isinstance(values, np.ndarray) else values[beside(index, values)]


def added_up(given: Block) -> Block:
    """given (P, T, C) added up over T."""
    if given.shape[1] == 1:
        return given.reshape(given.shape[0], -1)
    if isinstance(given, np.ndarray):  # torch adds up faster
        return torch.from_numpy(given).sum(1).numpy()
    return given.sum(1)


def added_up_at(place: Array, given: Block, count: int) -> Block:
    """given (M, C) added up at each of `count` places."""
    tensor = torch.from_numpy(given) if isinstance(given, np.ndarray) else given
    index = torch.from_numpy(place).to(tensor.device)
    total = tensor.new_zeros(count, given.shape[1]).index_add_(0, index, tensor)
    return total.numpy() if isinstance(given, np.ndarray) else total


def signed(given: Block, minus: Array | None) -> Block:
    """given (P, ...), written over, with the other sign where `minus` (P,)."""
    if minus is not None:
        given *= beside(_SIGNS.take(minus).reshape(-1, *[1] * (given.ndim - 1)), given)
    return given


def highest(scores: Block, *, last: bool = False) -> tuple[Array, Array]:
    """The first (or last) place of the highest of each row of scores (P, C), and the highest; NaN counts as such."""
    if isinstance(scores, np.ndarray):
        place = scores.shape[1] - 1 - scores[:, ::-1].argmax(1) if last else scores.argmax(1)
        return place, scores.ravel().take(np.arange(0, scores.size, scores.shape[1]) + place)
    place = scores.shape[1] - 1 - scores.flip(1).argmax(1) if last else scores.argmax(1)
    return host(place), host(scores.gather(1, place[:, None])[:, 0])


@dataclass(slots=True)
class Values:
    """A tensor (N, C, ...) in one row, copied only if it must be; together: whether the channels of a pixel lie so."""

    row: Block
    channels: int
    places: int
    together: bool

    @staticmethod
    def of(x: Tensor) -> "Values":
        """Those of `x`."""
        channels, places = x.shape[1] if x.ndim > 1 else 1, math.prod(x.shape[2:])
        if x.ndim > 2:
            spread = x.permute(0, 2, 3, 1) if x.ndim == 4 else x.movedim(1, -1)
            if spread.is_contiguous():
                return Values(block(spread).reshape(-1), channels, places, True)
        return Values(block(x.reshape(-1)), channels, places, False)

    def index(self, pixel: Array, channel: Array) -> Array:
        """Where the values at these pixels and channels lie."""
        if self.together:
            return pixel * self.channels + channel
        if self.row.shape[0] == self.channels * self.places:
            return pixel + channel * self.places
        return pixel + (pixel // self.places * (self.channels - 1) + channel) * self.places

    def at(self, pixel: Array, channel: Array) -> Array:
        """The values there."""
        return pick(self.row, self.index(pixel, channel))
