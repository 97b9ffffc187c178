"""Tell whether a batch is the one seen before without keeping it."""

import torch
from torch import Tensor

_SPREAD = -1640531535  # 2^32 / golden ratio, odd: neighbouring places get unlike factors


def fingerprint(*tensors: Tensor) -> Tensor:
    """int64 (N, number of tensors), equal where the images of two batches are equal bit by bit.

    The sum over a tensor's words, times an odd factor that depends on the place, modulo 2^32 each; a change of any one
    word changes it. No wait for the device.
    """
    return torch.stack([_of_rows(tensor) for tensor in tensors], 1)


def _of_rows(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().contiguous()
    words = tensor.view(torch.int16 if tensor.element_size() == 2 else torch.int32).flatten(1)
    place = torch.arange(words.shape[1], device=tensor.device, dtype=torch.int32)
    return (words.to(torch.int32) * (place * _SPREAD * 2 + 1)).sum(1, dtype=torch.int64)
