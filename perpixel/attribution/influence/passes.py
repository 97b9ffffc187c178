"""Forward passes of images with parts hidden, up to the grid of the logits."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor, nn

from perpixel.attribution.baselines import fill
from perpixel.attribution.influence.upsampling import Upsampling, find_upsampling
from perpixel.borrow import borrowed
from perpixel.memory_format import channels_last_is_faster, memory_format
from perpixel.outputs import class_logits

INPAINT = "inpaint"


class Job(NamedTuple):
    """Hide the mask bool (H, W) of an image: that of a unit or of a class, by its number, or a control for it."""

    image: int
    mask: Tensor
    number: int
    control: bool = False


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

    def unperturbed(self) -> Tensor:
        """The logits on the grid (N, C, h, w) of the images as they are."""
        parts = self.images.split(self.batch)
        return torch.cat([self.upsampling.logits(self.model, part.clone()) for part in parts])

    def hiding(self, jobs: Iterable[Job]) -> Iterator[tuple[list[Job], Tensor]]:
        """The jobs, batch by batch, and their logits on the grid."""
        jobs = iter(jobs)
        while part := list(islice(jobs, self.batch)):
            pictures = torch.stack([self.without(job.image, job.mask) for job in part])
            pictures = pictures.contiguous(memory_format=memory_format(self.images))
            yield part, self.upsampling.logits(self.model, pictures)

    def without(self, image: int, mask: Tensor) -> Tensor:
        """The image (channels, H, W) with what `mask` (H, W) covers hidden."""
        mask = mask.to(self.images.device)
        if self.substitute is None:
            return fill(self.images[image : image + 1], mask)[0]
        return torch.where(mask, self.substitute[image], self.images[image])


@contextmanager
def running(model: nn.Module, device: torch.device) -> Iterator[None]:
    """All passes go inside: `model` is borrowed, and tensors count how often they are written to."""
    with torch.inference_mode(False), borrowed(model, device):
        yield


def first_pass(model: nn.Module, images: Tensor, substitute: Tensor | None, batch: int) -> tuple[Passes, Tensor]:
    """Everything for the passes to come, and the logits on the grid of the images as they are.

    CPU networks of depthwise convolutions run with the channels of a pixel together in memory: that takes 0.57 to 0.79
    of the time; of others some are slower.
    """
    depthwise = any(isinstance(m, nn.Conv2d) and m.groups == m.in_channels > 1 for m in model.modules())
    if depthwise and channels_last_is_faster(images, batch):
        with suppress(RuntimeError):  # a network that views its channels apart cannot run this way
            return _first_pass(model, images.contiguous(memory_format=torch.channels_last), substitute, batch)
    return _first_pass(model, images, substitute, batch)


def _first_pass(model: nn.Module, images: Tensor, substitute: Tensor | None, batch: int) -> tuple[Passes, Tensor]:
    first, *others = images.split(batch)  # cloned: a network that writes into its input shall not change the user's
    logits, upsampling = find_upsampling(model, first.clone())
    rest = [upsampling.logits(model, part.clone()) for part in others]
    return Passes(model, images, substitute, batch, upsampling), torch.cat([class_logits(logits), *rest])
