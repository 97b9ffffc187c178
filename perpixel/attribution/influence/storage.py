"""Where an influence is kept: in memory, or beyond a cap in a memory-mapped file that goes with the tensor."""

import os
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from perpixel.checks import complain


def allocate(
    shape: Sequence[int], dtype: torch.dtype, device: torch.device, cap: int, folder: str | Path | None
) -> tuple[Tensor, Path | None]:
    """An uninitialised tensor, and the file that it lies in: None, or one in `folder` if it takes over `cap` bytes.

    folder: None for the system's folder for temporary files. The file is deleted with the tensor's last view, or at the
    end of the process. OSError if the disk has not that much room.
    """
    count = int(torch.Size(shape).numel())
    size = count * dtype.itemsize
    if size <= cap:
        return torch.empty(*shape, dtype=dtype, device=device), None
    place = Path(tempfile.gettempdir() if folder is None else folder)
    free = shutil.disk_usage(place).free
    if size > free:
        remedy = "Pass storage=<a folder with room>, larger patches or fewer images, or dtype=torch.float16."
        raise OSError(complain("storage", f"room for {size:,} bytes in {place}", f"{free:,} bytes free", remedy))
    handle, name = tempfile.mkstemp(prefix="perpixel-influence-", suffix=".bin", dir=place)
    path = Path(name)
    try:
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(handle, 0, size)  # a full disk is an error here, not a signal at some later write
        finally:
            os.close(handle)
        tensor = torch.from_file(name, shared=True, size=count, dtype=dtype)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    weakref.finalize(tensor.untyped_storage(), path.unlink, missing_ok=True)
    return tensor.view(*shape), path
