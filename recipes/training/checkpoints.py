"""Checkpoints that are checked before they are trusted, and results that a stopped run need not compute again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from perpixel.checks import complain
from recipes.kit.run_folder import DamagedCheckpoint, write_atomically
from recipes.kit.weights import is_whole, read_archive, sealed_archive

LAST, PREVIOUS, BEST = "last.pt", "previous.pt", "best.pt"
FORMAT = "perpixel 5"  # of all files that a run is continued from: raise it when what they hold changes


def save_checkpoint(path: Path, state: dict[str, Any], *, keep_as: Path | None = None) -> None:
    """`sealed_archive` through `write_atomically` (through memory, so that a full disk is an ordinary OSError).

    `keep_as`: where the old file goes, if it is sound.
    """
    keep_as = keep_as if keep_as is not None and _is_sound(path) else None
    write_atomically(path, sealed_archive({**state, "format": FORMAT}), keep_as=keep_as)


def _is_sound(path: Path) -> bool:
    try:
        return path.exists() and is_whole(path.read_bytes())
    except DamagedCheckpoint:
        return False


def load_checkpoint(path: Path, *, any_format: bool = False) -> dict[str, Any]:
    """What `save_checkpoint` wrote, on the CPU, or DamagedCheckpoint: the digest of the whole file is verified first.

    ValueError where another version of the recipes wrote it, unless `any_format`.
    """
    state = read_archive(path)
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
