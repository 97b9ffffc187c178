"""The folder of a run: never overwritten, and its files are whole or absent."""

import errno
import os
import shutil
import time
from pathlib import Path
from typing import Any

from perpixel.checks import complain
from perpixel.report import picture_bytes

CONFIG = "config.yaml"


class DamagedCheckpoint(Exception):
    """A checkpoint file whose content is not what was written."""


def choose_folder(folder: str | None, out: str, name: str) -> Path:
    """The folder of a new run: `folder`, or out/name-date-time. FileExistsError where there is a run already."""
    path = Path(folder) if folder else Path(out) / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    if (path / CONFIG).exists() or (path.exists() and not path.is_dir()):
        remedy = f"Continue it with --resume {path}, or choose another --folder."
        raise FileExistsError(complain("folder", "a new or empty folder", f"{path}, which holds a run", remedy))
    return path


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
        raise OSError(error.errno, error.strerror, str(path)) from error


def save_figure(path: Path, figure: Any) -> None:
    """A matplotlib figure as PNG."""
    write_atomically(path, picture_bytes(figure))
