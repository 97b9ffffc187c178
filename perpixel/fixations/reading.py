"""Read what lies under P windows of a map, row by row of channels, into memory that is used again and again."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from perpixel.fixations.rules.choice import ELEMENTS, by_elements
from perpixel.fixations.rules.geometry import Taps, flat
from perpixel.fixations.rules.step import Way

SMALL = 1 << 16  # inputs that are quicker read one by one than prepared for


class Scratch:
    """Tensors by name that keep their memory from one use to the next; fresh memory costs more than filling it."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}
        self.whole: object = None  # what the rows hold every pixel of

    def take(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Uninitialised memory of `shape`, of the dtype and device of `like`."""
        count = math.prod(shape)
        kept = self._kept.get(name)
        if kept is None or kept.numel() < count or kept.dtype != like.dtype or kept.device != like.device:
            self._kept[name] = kept = torch.empty(count, dtype=like.dtype, device=like.device)
        return kept[:count].view(shape)


class Windows:
    """The windows of a map x (N, channels, H, W) at `taps`, `per_group` channels of each; 0 where a tap is not valid.

    image: the image of every window. first: the first channel of its group. name: what tells this map from others.
    """

    def __init__(
        self, x: Tensor, image: Tensor | int, first: Tensor, taps: Taps, per_group: int, scratch: Scratch, name: object
    ) -> None:
        x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        _, channels, height, width = x.shape
        area = height * width
        self.per_group, self.scratch, self.valid = per_group, scratch, taps.valid
        image = image[:, None] if isinstance(image, Tensor) else image
        if per_group == 1:
            self.rows, (per_image, per_channel, per_pixel) = flat(x)
            self.index = taps.pixel * per_pixel + (first[:, None] * per_channel + image * per_image)
            return
        self.rows, self.index = rows_of(x, taps.pixel + image * area, scratch, name)
        if taps.valid is not None:  # the last row is zeros
            self.index = torch.where(taps.valid, self.index, len(self.rows) - 1)
        if per_group < channels:
            self.rows = self.rows.view(-1, per_group)
            self.index = self.index * (channels // per_group) + (first // per_group)[:, None]

    def load(self, way: Way) -> int:
        """How much a window takes of what is looked at at once: all its contributions, or where that is done in
        portions, what is left of them."""
        length, channels = self.index.shape[1], self.per_group
        return length * channels if by_elements(way, channels) else max(length, channels // 8)

    def weighed(self, part: slice, weight: Tensor, output: Tensor) -> "Weighed":
        """Weight x input of some windows, for weights (outputs, T, C) and the outputs (P,) of these windows."""
        return Weighed(self, range(*part.indices(len(self.index))), weight, output)

    def inputs(self, part: slice) -> Tensor:
        """The inputs (P, T, C) of some windows; hold until the next call."""
        index = self.index[part]
        if self.per_group == 1:
            inputs = self.rows[index][:, :, None]
            return inputs if self.valid is None else inputs.masked_fill_(~self.valid[part, :, None], 0)
        inputs = self.scratch.take("inputs", (*index.shape, self.per_group), self.rows)
        torch.index_select(self.rows, 0, index.flatten(), out=inputs.view(-1, self.per_group))
        return inputs

    def value(self, window: Tensor, tap: Tensor, channel: Tensor) -> Tensor:
        """The inputs at a window's tap and channel."""
        index = self.index[window, tap]
        return self.rows[index] if self.per_group == 1 else self.rows[index, channel]


@dataclass(frozen=True)
class Weighed:
    """Weight x input of some windows, see `choice.Given`."""

    windows: Windows
    part: range
    weight: Tensor
    output: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.part), self.windows.index.shape[1], self.windows.per_group

    def whole(self) -> Tensor:
        return self._portion(0, len(self.part))

    def sums(self) -> Tensor:
        count, length, channels = self.shape
        size = max(1, ELEMENTS // (length * channels))
        if size >= count:
            return self.whole().sum(1)
        sums = self.windows.scratch.take("sums", (count, channels), self.windows.rows)
        for start in range(0, count, size):
            torch.sum(self._portion(start, start + size), 1, out=sums[start : start + size])
        return sums

    def at(self, channel: Tensor) -> Tensor:
        window = torch.arange(self.part.start, self.part.stop, device=channel.device)[:, None, None]
        tap = torch.arange(self.shape[1], device=channel.device)[None, :, None]
        inputs = self.windows.value(window, tap, channel[:, None, :])
        return inputs * self.weight[self.output[:, None, None], tap, channel[:, None, :]]

    def _portion(self, start: int, stop: int) -> Tensor:
        first = self.part.start
        inputs = self.windows.inputs(slice(first + start, min(first + stop, self.part.stop)))
        if self.windows.per_group == 1:
            return inputs.mul_(self.weight[self.output[start:stop]])
        weights = self.windows.scratch.take("weights", tuple(inputs.shape), self.weight)
        return inputs.mul_(torch.index_select(self.weight, 0, self.output[start:stop], out=weights))


def rows_of(x: Tensor, pixel: Tensor, scratch: Scratch, name: object) -> tuple[Tensor, Tensor]:
    """The rows (M + 1, C) of the pixels of x that `pixel` names, a row of zeros last, and the index into them."""
    images, channels, height, width = x.shape
    area = height * width
    spread = x.permute(0, 2, 3, 1)
    if name is scratch.whole or 2 * pixel.numel() >= images * area:
        rows, index = scratch.take("rows", (images * area + 1, channels), x), pixel
        if name is not scratch.whole and spread.is_contiguous():
            rows[:-1].copy_(spread.view(-1, channels))
        elif name is not scratch.whole:
            for n in range(images):  # one transposed matrix at a time is copied block by block
                rows[n * area : (n + 1) * area].copy_(x[n].flatten(1).t())
        scratch.whole = name
    elif pixel.numel() * channels <= SMALL:
        rows = scratch.take("few", (pixel.numel() + 1, channels), x)
        rows[:-1] = x.flatten(2).transpose(1, 2)[pixel.flatten() // area, pixel.flatten() % area]
        index = torch.arange(pixel.numel(), device=x.device).view(pixel.shape)
    else:
        scratch.whole = None
        mark = torch.zeros(images * area, dtype=torch.bool, device=x.device)
        mark[pixel.flatten()] = True
        pixels = mark.nonzero().squeeze(1)
        place = torch.empty(images * area, dtype=torch.int64, device=x.device)
        place[pixels] = torch.arange(len(pixels), device=x.device)
        index = place[pixel]
        rows = scratch.take("rows", (len(pixels) + 1, channels), x)
        if spread.is_contiguous():
            torch.index_select(spread.view(-1, channels), 0, pixels, out=rows[:-1])
        elif images == 1 and len(pixels) > 8 * channels:  # long rows are read along the image, short ones across it
            columns = scratch.take("columns", (channels, len(pixels)), x)
            rows[:-1].copy_(torch.index_select(x[0].flatten(1), 1, pixels, out=columns).t())
        else:
            rows[:-1].copy_(x.flatten(2)[pixels // area, :, pixels % area])
    rows[-1] = 0
    return rows, index
