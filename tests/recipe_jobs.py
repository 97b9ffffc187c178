"""Helpers for the tests of recipes: arguments, tables as they were written, and what every recipe must do."""

import csv
import importlib
import pkgutil
from pathlib import Path
from typing import Any

import pytest

from recipes.__main__ import known_recipes
from recipes.kit.job import Job, run_recipe

CONFIGS = Path(__file__).parents[1] / "recipes/configs"
JOBS: list[type[Job]] = [
    pkgutil.resolve_name(importlib.import_module(f"recipes.{name}").JOB) for name in known_recipes()
]


def arguments(*settings: dict[str, str], **changes: str) -> list[str]:
    """Later settings win; `a__b` of the changes means the setting a.b."""
    merged: dict[str, str] = {}
    for one in (*settings, {name.replace("__", "."): value for name, value in changes.items()}):
        merged |= one
    return [f"--{name}={value}" for name, value in merged.items()]


def settings_of(job: type[Job], given: list[str]) -> Any:
    parser = job.build_parser()
    return job.read_settings(parser, parser.parse_args(given))


def table(path: Path) -> list[dict[str, Any]]:
    """The rows of a CSV file: numbers where they are some, NaN for empty cells."""

    def value(text: str) -> Any:
        try:
            return float(text) if text else float("nan")
        except ValueError:
            return text

    with path.open() as file:
        return [{name: value(row[name]) for name in row} for row in csv.DictReader(file)]


def interrupted(*_: object, **__: object) -> Any:
    """In place of what must not be reached."""
    raise KeyboardInterrupt


def draw_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made but not rendered, which takes the most time of a tiny run."""
    monkeypatch.setattr("recipes.kit.run_folder.picture_bytes", lambda figure: b"a picture")
    monkeypatch.setattr("recipes.tracing.pictures.animation_bytes", lambda frames, _: b"an animation")


def check_mistake(
    job: type[Job], given: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The mistake is reported before anything is written."""
    assert run_recipe(job, given) == 1
    assert message in capsys.readouterr().out
    assert not folder.exists()


def check_not_overwritten(job: type[Job], given: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "config.yaml").write_text("name: mine\n")
    assert run_recipe(job, given) == 1
    printed = capsys.readouterr().out
    assert "expected a new or empty folder" in printed
    assert f"--resume {folder}" in printed
    assert (folder / "config.yaml").read_text() == "name: mine\n"


def check_survives_its_file(job: type[Job], given: list[str], path: Path) -> Any:
    """The settings; those read again from the file of a run are the same."""
    parser = job.build_parser()
    path.write_text(parser.dump(parser.parse_args(given), skip_unset=False))
    settings = settings_of(job, given)
    assert job.read_settings(parser, parser.parse_path(path)) == settings
    return settings
