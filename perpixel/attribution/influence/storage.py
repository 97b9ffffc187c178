"""Where an influence is kept: in memory, or beyond a cap in a memory-mapped file that goes with the tensor."""

import os
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from perpixel.checks import check_integer, complain

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Storage:
    """How an influence is kept. ValueError or TypeError for values that are not fit.

    As the arguments of `influence` of these names; dtype, device: None: those of the logits.
    """

    dtype: torch.dtype | None = None
    device: torch.device | str | None = None
    memory_cap: int = 2**31
    storage: str | Path | None = None

    def __post_init__(self) -> None:
        check_integer("memory_cap", self.memory_cap, low=0)
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ValueError(complain("dtype", f"None or one of {DTYPES}", repr(self.dtype), "Choose one of these."))

    def allocate(self, shape: Sequence[int], like: Tensor) -> tuple[Tensor, Path | None]:
        """An uninitialised tensor, and the file that it lies in, if any.

        The file is deleted with the tensor's last view, or at the end of the process. OSError if the disk has not that
        much room.
        """
        dtype, device = self.dtype or like.dtype, like.device if self.device is None else torch.device(self.device)
        count = int(torch.Size(shape).numel())
        size = count * dtype.itemsize
        if size <= self.memory_cap:
            return torch.empty(*shape, dtype=dtype, device=device), None
        place = Path(tempfile.gettempdir() if self.storage is None else self.storage)
        free = shutil.disk_usage(place).free
        if size > free:
            remedy = "Pass storage=<a folder with room>, larger patches or fewer images, or dtype=torch.float16."
            raise OSError(complain("storage", f"room for {size:,} bytes in {place}", f"{free:,} bytes free", remedy))
        handle, name = tempfile.mkstemp(prefix="perpixel-influence-", suffix=".bin", dir=place)
        path = Path(name)
        try:
            try:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(handle, 0, size)  # a full disk is an error here, not a signal at a later write
            finally:
                os.close(handle)
            tensor = torch.from_file(name, shared=True, size=count, dtype=dtype)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        weakref.finalize(tensor.untyped_storage(), path.unlink, missing_ok=True)
        return tensor.view(*shape), path
