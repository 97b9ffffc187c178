"""What the windows of a convolution give: weight x input, read row by row of channels and added up over the taps."""

from dataclasses import dataclass

import torch
from torch import Tensor

from perpixel.fixations.rules.choice import Chosen
from perpixel.fixations.rules.geometry import Taps, cut
from perpixel.fixations.rules.step import Memory

_SMALL = 1 << 16  # inputs that are quicker read one by one than copied pixel by pixel


@dataclass(slots=True)
class Inputs:
    """The inputs that P windows look at: rows (R, C), the channels of a group each, at `index` (P, T)."""

    rows: Tensor
    index: Tensor
    valid: Tensor | None

    @staticmethod
    def of(x: Tensor, taps: Taps, group: Tensor | None, per_group: int) -> "Inputs":
        """Those of x (N, channels, H, W), for windows in these groups of channels; None: there is one group."""
        if x.dtype in (torch.float16, torch.bfloat16):
            x = x.float()
        memory = Memory.of(x)
        if per_group == 1:
            channel = torch.zeros_like(taps.pixel[:, :1]) if group is None else group[:, None]
            return Inputs(memory.row.view(-1, 1), memory.index(taps.pixel, channel), taps.valid)
        rows, index = (memory.row, taps.pixel) if memory.together else _rows(x, taps.pixel)
        if group is not None:
            index = index * (memory.channels // per_group) + group[:, None]
        return Inputs(rows.view(-1, per_group), index, taps.valid)

    def at(self, chosen: Chosen) -> Tensor:
        """The inputs that were chosen."""
        row = chosen.tap_of(self.index)
        return self.rows.view(-1).take(row if self.rows.shape[1] == 1 else row * self.rows.shape[1] + chosen.channel)

    def weighed(self, part: slice, weight: Tensor, output: Tensor) -> "Weighed":
        """Weight x input of some windows, for weights (outputs, T, C) and the outputs (P,) of these windows."""
        valid = None if self.valid is None else cut(self.valid, part)
        if valid is None:
            return Weighed(self.rows, cut(self.index, part), weight, cut(output, part))
        if weight.shape[2] == 1:
            products = Weighed(self.rows, cut(self.index, part), weight, cut(output, part))
            products.given.masked_fill_(~valid[:, :, None], 0)
            return products
        return WeighedWhereValid(self.rows, cut(self.index, part), weight, cut(output, part), valid)


class Weighed:
    """Weight x input of P windows, see `choice.Products`."""

    def __init__(self, rows: Tensor, index: Tensor, weight: Tensor, output: Tensor) -> None:
        self.shape = (index.shape[0], weight.shape[1], weight.shape[2])
        self.given = rows.index_select(0, index.reshape(-1)).view(self.shape)
        self.given.mul_(weight.index_select(0, output))

    def whole(self) -> Tensor:
        """(P, T, C)."""
        return self.given

    def sums(self) -> Tensor:
        """(P, C)."""
        return self.given.squeeze(1) if self.shape[1] == 1 else self.given.sum(1)

    def of(self, channel: Tensor) -> Tensor:
        """(P, T, K), for channels (P, K)."""
        return self.given.gather(2, channel[:, None, :].expand(-1, self.shape[1], -1))


class WeighedWhereValid:
    """The same, computed at valid taps only; 0 at the others."""

    def __init__(self, rows: Tensor, index: Tensor, weight: Tensor, output: Tensor, valid: Tensor) -> None:
        self.shape = (index.shape[0], weight.shape[1], weight.shape[2])
        length, channels = self.shape[1:]
        self.place = valid.reshape(-1).nonzero().squeeze(1)
        self.window = self.place // length
        self.given = rows.index_select(0, index.reshape(-1).take(self.place))
        row = self.place + ((output - torch.arange(output.shape[0], device=output.device)) * length).take(self.window)
        self.given.mul_(weight.view(-1, channels).index_select(0, row))

    def whole(self) -> Tensor:
        """(P, T, C)."""
        whole = self.given.new_zeros(self.shape)
        whole.view(-1, self.shape[2])[self.place] = self.given
        return whole

    def sums(self) -> Tensor:
        """(P, C)."""
        return self.given.new_zeros(self.shape[0], self.shape[2]).index_add_(0, self.window, self.given)

    def of(self, channel: Tensor) -> Tensor:
        """(P, T, K), for channels (P, K)."""
        found = self.given.new_zeros(self.shape[0] * self.shape[1], channel.shape[1])
        found[self.place] = self.given.gather(1, channel.index_select(0, self.window))
        return found.view(self.shape[0], self.shape[1], -1)


def _rows(x: Tensor, pixel: Tensor) -> tuple[Tensor, Tensor]:
    """The rows (M, C) of the pixels of x that `pixel` names, and the index into them."""
    images, channels, height, width = x.shape
    places, count = height * width, pixel.numel()
    if 2 * count >= images * places:
        return x.permute(0, 2, 3, 1).reshape(-1, channels).contiguous(), pixel
    found, index = pixel.reshape(-1), torch.arange(count, device=x.device).view(pixel.shape)
    if count * channels > _SMALL:  # each pixel once
        mark = torch.zeros(images * places, dtype=torch.bool, device=x.device)
        mark[found] = True
        found = mark.nonzero().squeeze(1)
        place = torch.empty(images * places, dtype=torch.int64, device=x.device)
        place[found] = torch.arange(found.shape[0], device=x.device)
        index = place[pixel]
    if images == 1:
        return x[0].flatten(1).index_select(1, found).t().contiguous(), index
    return x.flatten(2).transpose(1, 2)[found // places, found % places].contiguous(), index
