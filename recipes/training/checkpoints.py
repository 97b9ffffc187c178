"""Files that are whole or absent: atomic writes, checkpoints that are checked before they are trusted."""

import errno
import io
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

LAST, PREVIOUS, BEST = "last.pt", "previous.pt", "best.pt"


class DamagedCheckpoint(Exception):
    """A checkpoint file whose content is not what was written."""


def write_atomically(path: Path, data: bytes, *, keep_as: Path | None = None) -> None:
    """Write `path` so that a kill or a full disk leaves the old file or the new one, never half of one.

    `keep_as`: where the old file goes. OSError, naming what is missing, when the disk is full; the old file stays.
    """
    temporary = path.with_name(f".{path.name}.writing")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if keep_as is not None and path.exists():
            os.replace(path, keep_as)
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(path.parent).free / 1e6
            raise OSError(
                error.errno,
                f"no space left to write {path} ({len(data) / 1e6:.1f} MB needed, {free:.1f} MB free). What was there "
                "before is intact: free some space, then continue with --resume",
            ) from error
        raise


def save_checkpoint(path: Path, state: dict[str, Any], *, keep_as: Path | None = None) -> None:
    """`torch.save` through `write_atomically` (through memory, so that a full disk is an ordinary OSError)."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(path, buffer.getvalue(), keep_as=keep_as)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """What `save_checkpoint` wrote, on the CPU, or DamagedCheckpoint: every record's checksum is verified first."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise DamagedCheckpoint(f"{path}: the checksum of {damaged} is wrong")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, PermissionError, DamagedCheckpoint):
        raise
    except Exception as error:  # whatever zipfile, pickle or torch make of damaged bytes
        raise DamagedCheckpoint(f"{path}: not readable ({type(error).__name__}: {error})") from error
    if not isinstance(state, dict):
        raise DamagedCheckpoint(f"{path}: holds a {type(state).__name__}, not a checkpoint")
    return state


def load_newest(folder: Path, report: Callable[[str], None]) -> dict[str, Any] | None:
    """The newest sound checkpoint of a folder, or None; each damaged one is reported."""
    for name, remedy in (
        (LAST, "the one before it is used"),
        (PREVIOUS, "this stretch starts again from its beginning"),
    ):
        path = folder / name
        if path.exists():
            try:
                return load_checkpoint(path)
            except DamagedCheckpoint as damage:
                report(f"damaged checkpoint: {damage}; {remedy}")
    return None
