"""Checkpoints that are checked before they are trusted, and results that a stopped run need not compute again."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from perpixel.checks import complain
from recipes.kit.run_folder import DamagedCheckpoint, write_atomically

LAST, PREVIOUS, BEST = "last.pt", "previous.pt", "best.pt"
FORMAT = "perpixel 3"  # of all files that a run is continued from: raise it when what they hold changes


def save_checkpoint(path: Path, state: dict[str, Any], *, keep_as: Path | None = None) -> None:
    """`torch.save` through `write_atomically` (through memory, so that a full disk is an ordinary OSError)."""
    buffer = io.BytesIO()
    torch.save({**state, "format": FORMAT}, buffer)
    write_atomically(path, buffer.getvalue(), keep_as=keep_as)


def load_checkpoint(path: Path, *, any_format: bool = False) -> dict[str, Any]:
    """What `save_checkpoint` wrote, on the CPU, or DamagedCheckpoint: every record's checksum is verified first.

    ValueError where another version of the recipes wrote it, unless `any_format`.
    """
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
    if (written := state.pop("format", "none")) != FORMAT and not any_format:
        remedy = "Finish the run with the version of the recipe that began it, or begin anew."
        raise ValueError(complain("resume", f"files of format {FORMAT!r}", f"{written!r} in {path}", remedy))
    return state


def load_newest(folder: Path, report: Callable[[str], None]) -> dict[str, Any] | None:
    """The newest sound checkpoint of a folder, or None; each damaged one is reported."""
    for name, remedy in (
        (LAST, "the one before it is used"),
        (PREVIOUS, "this training starts again from its beginning"),
    ):
        path = folder / name
        if path.exists():
            try:
                return load_checkpoint(path)
            except DamagedCheckpoint as damage:
                report(f"damaged checkpoint: {damage}; {remedy}")
    return None


def load_or_compute(path: Path, compute: Callable[[], dict[str, Any]], report: Callable[[str], None]) -> dict[str, Any]:
    """What `compute` gives, kept in `path`; or what it gave before this run was stopped."""
    try:
        if path.exists():
            return load_checkpoint(path)
    except DamagedCheckpoint as error:
        report(f"damaged result: {error}; it is computed again")
    result = compute()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(path, result)
    return result
