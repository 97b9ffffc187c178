"""A recipe as a command: --resume, threads, and an exit status with mistakes reported in a sentence."""

import errno
import os
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from jsonargparse import ArgumentParser, Namespace
from rich.console import Console

from perpixel.checks import complain
from recipes.kit.run_folder import CONFIG, DamagedCheckpoint
from recipes.kit.settings import HardwareSettings

MISTAKES = (ValueError, TypeError, FileNotFoundError, FileExistsError, DamagedCheckpoint, FloatingPointError)


def read_arguments(parser: ArgumentParser, arguments: list[str]) -> tuple[Namespace, Path | None]:
    """The parsed settings, and the folder to resume: its settings are then those of the run."""
    parsed = parser.parse_args(arguments)
    if parsed.resume is None:
        return parsed, None
    folder = Path(parsed.resume)
    if len(arguments) != (1 if arguments[0].startswith("--resume=") else 2):
        remedy = f"Run: {parser.prog} --resume {folder}"
        raise ValueError(complain("resume", "no other setting beside it", " ".join(arguments), remedy))
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(complain("resume", "a run folder", f"{folder}, without {CONFIG}", "Check the path."))
    return parser.parse_path(folder / CONFIG), folder


def set_threads(hardware: HardwareSettings) -> None:
    """The cores this process may use (fewer if torch is set so), shared among the devices of a CPU run."""
    threads = hardware.threads
    if threads is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        shared = int(hardware.devices) if hardware.accelerator == "cpu" and str(hardware.devices).isdigit() else 1
        threads = max(1, min(torch.get_num_threads(), cores) // max(shared, 1))
    torch.set_num_threads(threads)


class Command:
    """One call of a recipe; `folder` is set once the run folder exists, and says where to continue."""

    def __init__(self, console: Console, command: str) -> None:
        self.console, self.command = console, command
        self.folder: Path | None = None

    def status(self, body: Callable[["Command"], None]) -> int:
        """Do it; the exit status is 0, 1 after a mistake of the user or a full disk, 130 when interrupted."""
        status = 1
        try:
            body(self)
            return 0
        except KeyboardInterrupt:
            message, status = "interrupted" if self.folder is None else "interrupted; nothing is lost", 130
        except MISTAKES as mistake:
            message = f"error: {mistake}"
            if self.folder is not None:
                (self.folder / "error.log").write_text(traceback.format_exc())
                message += f"\nDetails: {self.folder / 'error.log'}"
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or self.folder is None:
                raise
            message = f"error: {error.strerror or error}"
        if self.folder is not None:
            message += f"\nContinue with: {self.command} --resume {self.folder}"
        style = "red" if status == 1 else None
        self.console.print(message, style=style, markup=False, highlight=False, soft_wrap=True)
        return status
