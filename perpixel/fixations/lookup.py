"""Read tensors where tracks are, and where the units at some places look: numpy, for k = 1 on the CPU."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from perpixel.fixations.rules.geometry import Window, taps
from perpixel.fixations.tracks import Array

_TABLE = 1 << 18  # taps of all places together up to which they are kept for the next run


@dataclass(slots=True)
class Map:
    """A tensor (N, C, ...) as flat memory; rows: whether the channels of a pixel lie together."""

    flat: Array
    channels: int
    area: int
    rows: bool

    @staticmethod
    def of(x: Tensor) -> "Map":
        x = x.detach()
        channels = x.shape[1] if x.ndim > 1 else 1
        if x.ndim == 4:
            spread = x.permute(0, 2, 3, 1)
            if spread.is_contiguous():
                return Map(spread.view(-1).numpy(), channels, x.shape[2] * x.shape[3], True)
        flat = x.reshape(-1).numpy()
        return Map(flat, channels, len(flat) // (x.shape[0] * channels), False)

    def index(self, pixel: Array, channel: Array) -> Array:
        """Where the values at these pixels and channels lie."""
        if self.rows:
            return pixel * self.channels + channel
        if len(self.flat) == self.channels * self.area:
            return pixel + channel * self.area
        return pixel + (pixel // self.area * (self.channels - 1) + channel) * self.area


@dataclass(slots=True)
class Looks:
    """What P units look at: pixel int64 (P, T), valid bool (P, T), None if all are."""

    pixel: Array
    valid: Array | None

    def at(self, tap: Array) -> Array:
        """The pixel of one tap each."""
        if self.pixel.shape[1] == 1:
            return self.pixel[:, 0]
        return self.pixel.ravel().take(np.arange(0, self.pixel.size, self.pixel.shape[1]) + tap)


class Table:
    """Where every place of a result looks in its source; worked out once for all places of a small one."""

    def __init__(self, window: Window, order: list[int], source: tuple[int, ...], result: tuple[int, ...]) -> None:
        self.window, self.order, self.images = window, order, source[0]
        self.size, self.columns = (source[2], source[3]), result[3]
        self.area, self.result_area = source[2] * source[3], result[2] * result[3]
        self._all: Looks | None = None
        self._whole: Array | None = None
        if not window.is_point and self.result_area * len(order) <= _TABLE:
            self._all = self._work_out(np.arange(self.result_area))
            self._whole = None if self._all.valid is None else np.all(self._all.valid, axis=1)

    def look(self, pixel: Array) -> Looks:
        """What the units at these pixels of the result look at."""
        if self.window.is_point:
            return Looks(pixel[:, None], None)
        image = 0 if self.images == 1 else pixel // self.result_area
        place = pixel - image * self.result_area if self.images > 1 else pixel
        if self._all is None:
            looks = self._work_out(place)
        else:
            looks = Looks(self._all.pixel.take(place, axis=0), None)
            if self._whole is not None and not self._whole.take(place).all():
                looks.valid = self._all.valid.take(place, axis=0)  # type: ignore[union-attr]
        if self.images > 1:
            looks.pixel = looks.pixel + (image * self.area)[:, None]  # type: ignore[index]
        return looks

    def _work_out(self, place: Array) -> Looks:
        row = place // self.columns
        column = place - row * self.columns
        found = taps(torch.from_numpy(row), torch.from_numpy(column), self.window, self.order, self.size)
        return Looks(found.pixel.numpy(), None if found.valid is None else found.valid.numpy())
