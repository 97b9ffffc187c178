"""Read what lies under P windows of a map, row by row of channels, into memory that is used again and again."""

import math

import torch
from torch import Tensor

from perpixel.fixations.choice import Taps

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
        self.inputs: Tensor | None = None
        if per_group == channels and taps.pixel.numel() * channels <= SMALL:
            self.inputs = x.flatten(2).transpose(1, 2)[image, taps.pixel]
            if taps.valid is not None:
                self.inputs = self.inputs.masked_fill_(~taps.valid[:, :, None], 0)
            return
        if per_group == 1:
            self.rows = x.reshape(-1)
            self.index = taps.pixel + (first[:, None] * area + image * (channels * area))
            return
        self.rows, self.index = _rows(x, taps.pixel + image * area, scratch, name)
        if taps.valid is not None:
            self.index = torch.where(taps.valid, self.index, len(self.rows) - 1)
        if per_group < channels:
            self.rows = self.rows.view(-1, per_group)
            self.index = self.index * (channels // per_group) + (first // per_group)[:, None]

    def contributions(self, part: slice, weight: Tensor, channel: Tensor) -> Tensor:
        """Weight x input (P, T, C) of some windows, for weights (outputs, T, C); holds until the next call."""
        if self.inputs is not None:
            return self.inputs[part] * weight[channel[part]]
        index = self.index[part]
        if self.per_group == 1:
            given = self.rows[index] * weight[channel[part], :, 0]
            return (given if self.valid is None else given.masked_fill_(~self.valid[part], 0))[:, :, None]
        shape = (*index.shape, self.per_group)
        given = self.scratch.take("inputs", shape, self.rows)
        torch.index_select(self.rows, 0, index.flatten(), out=given.view(-1, self.per_group))
        weights = self.scratch.take("weights", shape, weight)
        return given.mul_(torch.index_select(weight, 0, channel[part], out=weights))

    def value(self, window: Tensor, tap: Tensor, channel: Tensor) -> Tensor:
        """The single inputs at a window's tap and channel."""
        if self.inputs is not None:
            return self.inputs[window, tap, channel]
        index = self.index[window, tap]
        return self.rows[index] if self.per_group == 1 else self.rows[index, channel]


def _rows(x: Tensor, pixel: Tensor, scratch: Scratch, name: object) -> tuple[Tensor, Tensor]:
    """The rows (M + 1, C) of the pixels of x that `pixel` names, a row of zeros last, and the index into them."""
    images, channels, height, width = x.shape
    area = height * width
    spread = x.permute(0, 2, 3, 1)
    if name is scratch.whole or 2 * pixel.numel() >= images * area:
        rows, index = scratch.take("rows", (images * area + 1, channels), x), pixel
        if name is not scratch.whole:
            for n in range(images):  # one transposed matrix at a time is copied block by block
                rows[n * area : (n + 1) * area].copy_(x[n].flatten(1).t())
        scratch.whole = name
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
