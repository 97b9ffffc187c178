"""Forward passes of images with parts hidden: in one reused buffer, up to the grid of the logits."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from perpixel.attribution.baselines import RING, fill
from perpixel.attribution.influence.patches import Patches, Segments
from perpixel.attribution.influence.upsampling import Upsampling, find_upsampling
from perpixel.borrow import borrowed
from perpixel.memory_format import channels_last_is_faster, memory_format

INPAINT = "inpaint"


class Job(NamedTuple):
    """Hide the mask bool (H, W) of an image; for which class, and whether as a control."""

    image: int
    mask: Tensor
    label: int
    control: bool


@dataclass(frozen=True)
class Passes:
    """A network, its images (N, channels, H, W), what stands in for hidden pixels, and how many images go at once.

    substitute: images like these, None to fill in from around. upsampling: from the network's grid to full size.
    """

    model: nn.Module
    images: Tensor
    substitute: Tensor | None
    batch: int
    upsampling: Upsampling

    @contextmanager
    def running(self) -> Iterator[None]:
        """All passes go inside: without gradients, in evaluation mode."""
        with running(self.model, self.images.device):
            yield

    def unperturbed(self) -> Tensor:
        """The logits on the grid (N, C, h, w) of the images as they are."""
        parts = self.images.split(self.batch)
        return torch.cat([self.upsampling.logits(self.model, part.clone()) for part in parts])

    def hiding(self, units: Patches | Segments, jobs: Sequence[tuple[int, int]]) -> Iterator[tuple[slice, Tensor]]:
        """For every batch of `jobs`, (image, unit to hide): which jobs they are, and their logits on the grid."""
        buffer = _Buffer(self, units, min(self.batch, len(jobs)))
        for start in range(0, len(jobs), self.batch):
            part = slice(start, min(start + self.batch, len(jobs)))
            yield part, self.upsampling.logits(self.model, buffer.filled(jobs[part]))
            buffer.check()

    def masked(self, jobs: Iterable[Job]) -> Iterator[tuple[list[Job], Tensor]]:
        """The same for jobs that say what to hide by a mask."""
        jobs = iter(jobs)
        while part := list(islice(jobs, self.batch)):
            images = torch.stack([self.without(job.image, job.mask) for job in part])
            images = images.contiguous(memory_format=memory_format(self.images))
            yield part, self.upsampling.logits(self.model, images)

    def without(self, image: int, mask: Tensor) -> Tensor:
        """The image (channels, H, W) with what `mask` (H, W) covers hidden."""
        mask = mask.to(self.images.device)
        if self.substitute is None:
            return fill(self.images[image : image + 1], mask)[0]
        return torch.where(mask, self.substitute[image], self.images[image])


@contextmanager
def running(model: nn.Module, device: torch.device) -> Iterator[None]:
    """`model` in evaluation mode, nothing recorded for gradients, tensors that count how often they are written to."""
    with torch.inference_mode(False), borrowed(model, device):
        yield


def first_pass(model: nn.Module, images: Tensor, substitute: Tensor | None, batch: int) -> tuple[Passes, Tensor]:
    """Everything for the passes to come, and the logits on the grid of the images as they are."""
    if _faster_together(model, images, batch):
        with suppress(RuntimeError):  # a network that views its channels apart cannot run this way
            return _first_pass(model, images.contiguous(memory_format=torch.channels_last), substitute, batch)
    return _first_pass(model, images, substitute, batch)


def _faster_together(model: nn.Module, images: Tensor, batch: int) -> bool:
    """Whether to run with the channels of a pixel together in memory: CPU networks of depthwise convolutions.

    They take 0.57 to 0.79 of the time then; of others some are slower.
    """
    faster = channels_last_is_faster(images, batch)
    return faster and any(isinstance(m, nn.Conv2d) and m.groups == m.in_channels > 1 for m in model.modules())


def _first_pass(model: nn.Module, images: Tensor, substitute: Tensor | None, batch: int) -> tuple[Passes, Tensor]:
    parts = images.split(batch)
    with running(
        model, images.device
    ):  # clones: a network that writes into its input shall not change the user's images
        logits, upsampling = find_upsampling(model, parts[0].clone())
        rest = [upsampling.logits(model, part.clone()) for part in parts[1:]]
        return Passes(model, images, substitute, batch, upsampling), torch.cat([logits, *rest])


class _Buffer:
    """A batch of images in which one unit each is hidden, and put back when the next is to be hidden."""

    def __init__(self, passes: Passes, units: Patches | Segments, batch: int) -> None:
        images = passes.images
        self.passes, self.units = passes, units
        self.batch = torch.empty(
            (batch, *images.shape[1:]),
            dtype=images.dtype,
            device=images.device,
            memory_format=memory_format(images),
        )
        self.boxes = units.boxes.tolist()
        self.holds: list[int | None] = [None] * batch
        self.hidden: list[Any] = [None] * batch
        self.version = self.batch._version

    def filled(self, jobs: Sequence[tuple[int, int]]) -> Tensor:
        for slot, (image, unit) in enumerate(jobs):
            kept, now = self.passes.images[image], self.batch[slot]
            if self.holds[slot] != image:
                now.copy_(kept)
                self.holds[slot] = image
            elif self.hidden[slot] is not None:
                place = self.hidden[slot]
                now[place].copy_(kept[place])
            self.hidden[slot] = self._hide(now, image, unit)
        self.version = self.batch._version
        return self.batch[: len(jobs)]

    def check(self) -> None:
        """Forget what the slots hold if the network has written into its input."""
        if self.batch._version != self.version:
            self.holds = [None] * len(self.holds)

    def _hide(self, now: Tensor, image: int, unit: int) -> tuple[slice, slice, slice]:
        """Hide the unit; the box in which something has changed."""
        box = self.boxes[unit] if isinstance(self.units, Patches) else self.boxes[image][unit]
        place = _box(*box)
        substitute = self.passes.substitute
        if substitute is None:
            self._fill_in(now, image, unit, box)
        elif isinstance(self.units, Patches):
            now[place].copy_(substitute[image][place])
        else:
            mask = self.units.mask(image, unit)[place[1:]].to(now.device)
            now[place] = torch.where(mask, substitute[image][place], now[place])
        return place

    def _fill_in(self, now: Tensor, image: int, unit: int, box: Sequence[int]) -> None:
        """Fill the unit in from around; the pixels next to its box are all that this needs to see."""
        height, width = self.units.image
        top, left, bottom, right = box
        around = _box(max(top - RING, 0), max(left - RING, 0), min(bottom + RING, height), min(right + RING, width))
        mask = self.units.mask(image, unit).to(now.device)
        if bool(mask.all()):
            around = _box(0, 0, height, width)
        now[around] = fill(now[around][None], mask[around[1:]])[0]


def _box(top: int, left: int, bottom: int, right: int) -> tuple[slice, slice, slice]:
    return slice(None), slice(top, bottom), slice(left, right)


def batches(count: int, batch: int) -> int:
    """How many batches `count` jobs make."""
    return math.ceil(count / batch)
