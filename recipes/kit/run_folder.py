"""The folder of a run: never overwritten, and its files are whole or absent."""

import contextlib
import errno
import itertools
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from perpixel.checks import complain
from perpixel.report import picture_bytes

CONFIG, LOCK = "config.yaml", "run.lock"


class DamagedCheckpoint(Exception):
    """A checkpoint file whose content is not what was written."""


def check_new(folder: str | Path | None) -> None:
    """FileExistsError where there is a run already, or something that is no folder."""
    path = Path(folder or "")
    if folder and path.exists() and not path.is_dir():
        raise FileExistsError(complain("folder", "a new or empty folder", f"the file {path}", "Choose another."))
    if folder and (path / CONFIG).exists():
        remedy = f"Continue it with --resume {path}, or choose another --folder."
        raise FileExistsError(complain("folder", "a new or empty folder", f"{path}, which holds a run", remedy))


def make_folder(folder: str | None, out: str, name: str) -> Path:
    """The folder of a new run: `folder`, or one that no other process makes: out/name-date-time, or that with -2."""
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        return Path(folder)
    if Path(name).name != name:
        raise ValueError(complain("name", "a name without slashes", name, "Give its place as --out."))
    stem = Path(out) / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    stem.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        path = stem if number == 1 else stem.with_name(f"{stem.name}-{number}")
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            break
    return path


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """No other process works in the folder until this one leaves or ends, however it ends; else FileExistsError."""
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        expected, remedy = "a run folder that no other process works in", "Wait until that run ends, or stop it."
        raise FileExistsError(complain("folder", expected, f"{folder}, in use", remedy)) from None
    try:
        yield
    finally:
        lock.release()


def check_links(folder: Path) -> None:
    """ValueError where a link in a run folder leads out of it: what is written there would be written elsewhere."""
    for path in folder.rglob("*"):
        if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
            came, remedy = f"the link {path} to {path.resolve()}", "Put what it leads to in its place, or remove it."
            raise ValueError(complain("resume", "a run folder without links that lead out of it", came, remedy))


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
