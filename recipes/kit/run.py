"""To be deleted: recipes.kit.job has taken its place."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from lightning_fabric import Fabric
from rich.console import Console

from recipes.kit.command_line import Command, as_yaml, read_arguments, set_threads
from recipes.kit.images import Images
from recipes.kit.interrupt import Interrupt
from recipes.kit.job import settings_of_run  # noqa: F401
from recipes.kit.progress import Progress
from recipes.kit.run_folder import CONFIG, choose_folder, write_atomically


def look(
    recipe: str,
    arguments: list[str] | None,
    build_parser: Callable[[str | None], ArgumentParser],
    understand: Callable[[ArgumentParser, Namespace], Any],
    make_job: Callable[[Any, Path, Fabric, Images, Progress, Interrupt], Any],
) -> int:
    """`python -m recipes.RECIPE`; the exit status is 0, 1 after a mistake or a full disk, 130 when interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    console = Console(width=None if sys.stdout.isatty() else 118)

    def run(attempt: Command) -> None:
        parser = build_parser(None)
        parsed, resumed = read_arguments(parser, given)
        if resumed is None and parsed.run is not None:
            parser = build_parser(parsed.run)
            parsed, _ = read_arguments(parser, given)
        settings = understand(parser, parsed)
        hardware, data = settings.hardware, settings.data
        set_threads(hardware)
        fabric = Fabric(accelerator=hardware.accelerator, devices=1, precision=hardware.precision)
        fabric.launch()
        folder = resumed or choose_folder(settings.folder, settings.out, settings.name)
        if settings.run is not None or settings.model.checkpoint or settings.model.weights:
            # the training part is then not asked for, and need not exist
            data = replace(data, train_split=data.eval_split, train_images=data.eval_images)
        job = make_job(settings, folder, fabric, Images(data), Progress(attempt.console), Interrupt())
        job.prepare()
        attempt.folder = folder
        with job.stop:
            if resumed is None:
                folder.mkdir(parents=True, exist_ok=True)
                write_atomically(folder / CONFIG, as_yaml(parser, parsed).encode())
            job.progress.report(f"run folder: {folder}")
            job.everything()

    return Command(console, f"python -m recipes.{recipe}").status(run)
