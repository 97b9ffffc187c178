"""When convolutions are faster with the channels of a pixel together in memory."""

import torch
from torch import Tensor
from torch.backends import mkldnn

_MANY = 20_000  # pixels in a batch; for fewer it is not faster


def channels_last_is_faster(images: Tensor, count: int | None = None) -> bool:
    """Whether convolutions of `count` such images (N, channels, H, W), None for N, may gain by `torch.channels_last`.

    On the CPU, in float32, for large batches; most for depthwise convolutions, for others not always.
    """
    if images.device.type != "cpu" or images.dtype != torch.float32 or not mkldnn.is_available():
        return False
    return (len(images) if count is None else count) * images.shape[2:].numel() >= _MANY


def memory_format(images: Tensor) -> torch.memory_format:
    """That of the images; of those that are both, `torch.contiguous_format`."""
    together = images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
    return torch.channels_last if together else torch.contiguous_format
