"""What all recipes have in common as jobs: from the command line to a run folder, the same steps in the same order."""

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar, TypeVar

import torch
from jsonargparse import ArgumentParser, Namespace
from lightning_fabric import Fabric
from rich.console import Console

from perpixel.checks import complain
from recipes.kit.command_line import (
    build_parser,
    build_settings,
    folded,
    known_settings,
    named,
    parse_run,
    read_arguments,
)
from recipes.kit.images import Images
from recipes.kit.progress import Progress
from recipes.kit.run_folder import (
    CONFIG,
    DamagedCheckpoint,
    check_links,
    check_new,
    locked,
    make_folder,
    write_atomically,
)
from recipes.kit.settings import AnalysisSettings, DataSettings, RunSettings

Item = TypeVar("Item")
MISTAKES = (ValueError, TypeError, DamagedCheckpoint, FloatingPointError, OSError, ImportError)
STARTS = ("model.weights", "model.weights_backbone", "model.checkpoint", "model.caffe_pixels", "model.replace_head")


class Interrupt:
    """Within this context the first SIGINT or SIGTERM only sets `asked`; the second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Interrupt":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]


@dataclass
class Job:
    """One run of a recipe; a subclass names the recipe and its settings, and says what is prepared and done.

    recipe: NAME of `python -m recipes.NAME`.
    """

    recipe: ClassVar[str]
    settings_class: ClassVar[type[RunSettings]]

    settings: Any
    folder: Path
    fabric: Fabric
    images: Images
    progress: Progress
    interrupt: Interrupt

    @classmethod
    def build_parser(cls) -> ArgumentParser:
        """The command line: --config, --resume and every field of the settings."""
        return build_parser(cls.settings_class, f"python -m recipes.{cls.recipe}")

    @classmethod
    def read_settings(cls, parser: ArgumentParser, parsed: Namespace) -> Any:
        """The settings, checked."""
        return build_settings(cls.settings_class, parsed)

    @classmethod
    def build_fabric(cls, settings: RunSettings) -> Fabric:
        """The devices to run on: one."""
        hardware = settings.hardware
        return Fabric(accelerator=hardware.accelerator, devices=1, precision=hardware.precision)  # type: ignore[arg-type]

    def prepare(self) -> None:
        """Read weights and try the settings, so that mistakes show before anything is written."""
        raise NotImplementedError

    def run(self) -> None:
        """Everything else."""
        raise NotImplementedError

    def stop_if_asked(self) -> None:
        """KeyboardInterrupt after Ctrl-C, between two steps."""
        if self.interrupt.asked:
            raise KeyboardInterrupt

    def each(
        self, title: str, items: Iterable[Item], total: int, size: Callable[[Item], int] = lambda _: 1
    ) -> Iterator[Item]:
        """The items, each of `size` images of the `total`, with a progress bar; stops between two where asked to."""
        done, began = 0, time.monotonic()
        self.progress.begin(title, 0, total)
        for item in items:
            yield item
            done += size(item)
            self.progress.advance(done, {}, done / max(time.monotonic() - began, 1e-9))
            self.stop_if_asked()
        self.progress.end()


class Command:
    """One call of a recipe; `folder` is set once the run folder is this process' own, and says where to continue."""

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
            message = f"error: {_describe(mistake)}"
            if self.folder is not None:
                log = self.folder / "error.log"
                with contextlib.suppress(OSError):  # a full disk, or one that cannot be written
                    write_atomically(log, traceback.format_exc().encode(errors="backslashreplace"))
                    message += f"\nDetails: {log}"
        if self.folder is not None:
            message += f"\nContinue with: {self.command} --resume {self.folder}"
        style = "red" if status == 1 else None
        self.console.print(message, style=style, markup=False, highlight=False, soft_wrap=True)
        return status


def _describe(mistake: BaseException) -> str:
    """One line; of an error of the system with its file, of one in a loading process the last line of its traceback."""
    text = str(mistake)
    if isinstance(mistake, OSError) and mistake.strerror:
        files = [str(name) for name in (mistake.filename, mistake.filename2) if name is not None]
        text = f"{' -> '.join(files)}: {mistake.strerror}" if files else mistake.strerror
    elif "Traceback (most recent call last)" in text:
        text = text.strip().splitlines()[-1]
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in folded(text))  # no codes that a terminal obeys


def run_recipe(job: type[Job], arguments: list[str] | None = None, called: str | None = None) -> int:
    """Run the recipe, `called` so on the command line; the exit status, as of `Command.status`."""
    called = called or f"python -m recipes.{job.recipe}"
    given = list(sys.argv[1:] if arguments is None else arguments)
    console = Console(width=None if sys.stdout.isatty() else 118)
    return Command(console, called or f"python -m recipes.{job.recipe}").status(
        lambda command: _run(job, given, command)
    )


def _run(kind: type[Job], arguments: list[str], command: Command) -> None:
    parser = kind.build_parser()
    parser.prog = command.command
    parsed, resumed = read_arguments(parser, arguments)
    if resumed is None and getattr(parsed, "run", None) is not None:
        parser.set_defaults(settings_of_run(parser, Path(parsed.run)))
        parsed, _ = read_arguments(parser, arguments)
    fabric = _launch(kind, kind.read_settings(parser, parsed))
    resolve_hardware(parsed.hardware, fabric)
    settings = kind.read_settings(parser, parsed)
    progress = Progress(command.console, shown=fabric.is_global_zero)

    def claim(folder: Path) -> Path:
        held.enter_context(locked(folder))
        return folder

    def begin() -> Path:
        folder = claim(make_folder(settings.folder, settings.out, settings.name))
        check_new(folder)
        # null settings too: left out, a null would come back as the default when the run is resumed
        write_atomically(folder / CONFIG, parser.dump(parsed, skip_unset=False).encode())
        return folder

    with contextlib.ExitStack() as held:
        if resumed is None:
            _on_first(fabric, lambda: check_new(settings.folder))
        else:
            check_links(resumed)
            _on_first(fabric, lambda: claim(resumed))
        folder = resumed or Path(settings.folder or settings.out)
        job = kind(settings, folder, fabric, _open_images(_data_needed(settings)), progress, Interrupt())
        job.prepare()
        job.folder = command.folder = resumed or _on_first(fabric, begin)
        held.callback(progress.end)
        with job.interrupt:
            progress.report(f"run folder: {job.folder}")
            job.run()


def _launch(kind: type[Job], settings: RunSettings) -> Fabric:
    try:
        fabric = kind.build_fabric(settings)
    except RuntimeError as error:  # an accelerator that there is not
        accelerator, built = settings.hardware.accelerator, torch.version.cuda or torch.version.hip
        remedy = "Leave it out to use what there is."
        if accelerator in ("cuda", "gpu"):
            remedy += f" torch {torch.__version__} is built {f'for {built}' if built else 'without CUDA'}: "
            remedy += "install the graphics driver." if built else "install one with it (pytorch.org/get-started)."
        expected = "one that this machine has"
        raise ValueError(complain("hardware.accelerator", expected, accelerator, remedy)) from error
    except (ValueError, TypeError) as error:
        raise type(error)(f"hardware (accelerator, devices, strategy, precision): {error}") from error
    fabric.launch()
    return fabric


def _on_first(fabric: Fabric, act: Callable[[], Item]) -> Item:
    """What `act` gives on the first process, on all of them; after a mistake, which that one tells, all end."""
    outcome: Any = None
    if fabric.is_global_zero:
        try:
            outcome = act()
        except (OSError, ValueError) as mistake:
            outcome = mistake
    outcome = fabric.broadcast(outcome)
    if isinstance(outcome, Exception):
        raise outcome if fabric.is_global_zero else SystemExit(1)
    return outcome


def resolve_hardware(hardware: Namespace, fabric: Fabric) -> None:
    """What was left to the machine, as it was resolved: written with the settings, the same when the run is resumed.

    threads: the cores this process may use (fewer if torch is set so), shared among the devices of a CPU run.
    """
    device = fabric.device.type
    if hardware.accelerator == "auto":
        hardware.accelerator = device
    if str(hardware.devices) in ("auto", "-1"):
        hardware.devices = fabric.world_size
    if hardware.threads is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        share = min(torch.get_num_threads(), cores) // (fabric.world_size if device == "cpu" else 1)
        hardware.threads = fabric.broadcast(max(share, 1))
    torch.set_num_threads(hardware.threads)


def _data_needed(settings: RunSettings) -> DataSettings:
    """The data of the run; the training part need not exist where a network is only examined.

    FileNotFoundError where the folder that another run names is not there.
    """
    data, model, run = settings.data, settings.model, getattr(settings, "run", None)
    if run is not None and data.root is not None and not Path(data.root).exists():
        remedy = f"Give --data.root, or go to where {run} was begun."
        raise FileNotFoundError(complain("data.root", "an existing folder", f"{data.root}, not there", remedy))
    if isinstance(settings, AnalysisSettings) and (run is not None or model.checkpoint or model.weights):
        return replace(data, train_split=data.eval_split, train_images=data.eval_images)
    return data


def _open_images(data: DataSettings) -> Images:
    own = {one.name: f"data.{one.name}" for one in fields(data)}
    given = {one: f"data.options.{one}" for one in data.options if one not in own}
    given |= {"split": "data.train_split, data.eval_split", "foreground": given.get("foreground", "data.binary")}
    with named("data.", **own, **given):
        return Images(data)


def settings_of_run(parser: ArgumentParser, run: Path) -> dict[str, Any]:
    """Data, model and evaluation of a run, as defaults, where the recipe has them; not what its network began as."""
    known = known_settings(parser)
    parts = tuple(part for part in ("data", "model", "evaluation") if part in known)
    parsed = parse_run(parser, run, "run", parts)
    settings = {f"{part}.{name}": value for part in parts for name, value in vars(parsed[part]).items()}
    return {name: value for name, value in settings.items() if name not in STARTS}
