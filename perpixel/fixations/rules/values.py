"""Reading tensors where units are: places come and answers go as numpy arrays, the tensors stay on their device."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from perpixel.fixations.points import Array

_SIGNS = {torch.float32: np.array([1, -1], np.float32), torch.float64: np.array([1.0, -1.0])}


def beside(array: Array, values: Tensor) -> Tensor:
    """The array as a tensor on the device of `values`; on the CPU it shares the array's memory."""
    tensor = torch.from_numpy(array)
    return tensor if values.device.type == "cpu" else tensor.to(values.device)


def pick(values: Tensor, index: Array) -> Array:
    """The elements of a contiguous tensor at these places of its memory; float32 where the tensor is coarser."""
    if values.device.type == "cpu" and values.dtype not in (torch.float16, torch.bfloat16):
        return values.numpy().ravel().take(index)
    found = values.view(-1)[beside(index, values)]
    return (found.float() if found.dtype in (torch.float16, torch.bfloat16) else found).cpu().numpy()


def rows(values: Tensor, index: Array) -> Tensor:
    """The rows of values (R, C) at these places."""
    if values.device.type == "cpu":  # numpy takes two thirds of the time
        return torch.from_numpy(values.numpy().take(index, axis=0))
    return values.index_select(0, beside(index, values))


def highest(scores: Tensor, *, last: bool = False) -> tuple[Array, Array]:
    """The first (or last) place of the highest of each row of scores (P, C), and the highest; NaN counts as such."""
    if scores.device.type == "cpu":  # numpy's arg-max takes a tenth of the time of torch's
        rows = scores.numpy()
        place = rows.shape[1] - 1 - rows[:, ::-1].argmax(1) if last else rows.argmax(1)
        return place, rows.ravel().take(np.arange(0, rows.size, rows.shape[1]) + place)
    place = scores.shape[1] - 1 - scores.flip(1).argmax(1) if last else scores.argmax(1)
    return place.cpu().numpy(), scores.gather(1, place[:, None])[:, 0].cpu().numpy()


@dataclass(slots=True)
class Values:
    """A tensor (N, C, ...) in one row, copied only if it must be; together: whether the channels of a pixel lie so."""

    row: Tensor
    channels: int
    places: int
    together: bool

    @staticmethod
    def of(x: Tensor) -> "Values":
        """Those of `x`."""
        x = x.detach() if x.requires_grad else x
        channels, places = x.shape[1] if x.ndim > 1 else 1, math.prod(x.shape[2:])
        if x.ndim > 2:
            spread = x.movedim(1, -1)
            if spread.is_contiguous():
                return Values(spread.view(-1), channels, places, True)
        return Values(x.reshape(-1), channels, places, False)

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


def signs(minus: Array, dtype: torch.dtype) -> Array:
    """-1 where `minus`, else +1."""
    return _SIGNS[dtype].take(minus)
