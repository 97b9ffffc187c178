"""`perpixel NAME`, `--help` and `--help-all`: what is listed, what is told, and that every setting has a text."""

import shlex
import sys
from pathlib import Path

import pytest
from recipe_jobs import CONFIGS, JOBS

from recipes.__main__ import known_recipes, main, start
from recipes.finetuning.job import FinetuneJob
from recipes.kit.command_line import read_arguments
from recipes.kit.help import GENERAL, help_text
from recipes.kit.job import Job


def test_the_command_lists_every_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert [job.recipe for job in JOBS] == list(known_recipes())
    for given in ([], ["--help"]):
        assert main(given) == 0
        printed = capsys.readouterr().out
        assert all(f"  perpixel {name} " in printed and about in printed for name, about in known_recipes().items())


@pytest.mark.parametrize(
    ("name", "remedy"), [("finetun", "Did you mean perpixel finetune?"), ("compare", "perpixel alone lists them.")]
)
def test_an_unknown_recipe_is_told_with_those_there_are(
    name: str, remedy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([name, "--help"]) == 1
    told = f"error: expected a recipe, one of {', '.join(known_recipes())}, got {name}. {remedy}\n"
    assert capsys.readouterr().out == told


@pytest.mark.parametrize("job", JOBS)
def test_the_command_is_the_recipe_under_another_name(job: type[Job], capsys: pytest.CaptureFixture[str]) -> None:
    told = []
    for called, run in ((f"perpixel {job.recipe}", main), (f"python -m recipes.{job.recipe}", None)):
        folder = ["--resume", "nowhere", "--name=x"]
        assert (run([job.recipe, *folder]) if run else start(job.recipe, folder)) == 1
        told.append(capsys.readouterr().out.replace(called, "IT"))
    assert told[0] == told[1]
    assert told[0].endswith("Run: IT --resume nowhere\n")


def test_a_missing_extra_is_told_with_the_command_that_installs_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for heavy in ("lightning_fabric", "torchmetrics", "matplotlib"):
        monkeypatch.setitem(sys.modules, heavy, None)
    monkeypatch.delitem(sys.modules, "recipes.finetuning.job")
    assert main(["finetune", "--help"]) == 0  # which needs none of them
    assert "--loss.weight" in capsys.readouterr().out
    assert main(["finetune"]) == 1
    missing = 'lightning_fabric, which is not installed. Run: pip install "perpixel[recipes]"'
    assert capsys.readouterr().out == f"error: perpixel finetune needs {missing}\n"


@pytest.mark.parametrize("columns", [80, 100, 200])
@pytest.mark.parametrize("job", JOBS)
def test_help_shows_the_ten_that_matter_and_fits_the_terminal(
    job: type[Job], columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert start(job.recipe, ["--help", "--seed=3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    shown = [line.split()[0] for line in lines if line.startswith("  --")]
    assert shown == [*(f"--{name}" for name in job.settings_class.matter), "--config", "--print_config", "--resume"]
    assert len(job.settings_class.matter) == 10
    assert lines[-1].endswith(f"python -m recipes.{job.recipe} --help-all")
    assert start(job.recipe, ["--help-all"]) == 0
    lines += capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) < min(columns, 101)


@pytest.mark.parametrize("job", JOBS)
def test_no_setting_is_without_text(job: type[Job]) -> None:
    parser = job.build_parser()
    settings = [name for name, _ in parser.get_defaults().items() if name not in GENERAL]
    text = help_text(parser).split("\n  --")
    texts = {part.split()[0]: part for part in text}
    for name in settings:
        explained = " ".join(texts[name].split()[1:]).partition(" Default: ")[0]
        assert len(explained) > 5, f"--{name} has no text"
        assert explained[-1] in ".!?", name


def test_the_examples_of_the_help_are_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.jpg").touch()
    for job in JOBS:
        parser = job.build_parser()
        for given in job.settings_class.examples.values():
            parsed, _ = read_arguments(parser, shlex.split(given))
            job.read_settings(parser, parsed)


def test_files_of_settings_that_come_along_are_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    parser = FinetuneJob.build_parser()
    for given in (["--config", "tiny.yaml"], ["--config=tiny.yaml"], ["--config", "recipes/configs/tiny.yaml"]):
        assert read_arguments(parser, given)[0].name == "tiny"
    (tmp_path / "tiny.yaml").write_text("name: mine\n")
    assert read_arguments(parser, ["--config", "tiny.yaml"])[0].name == "mine"
    with pytest.raises(FileNotFoundError, match=r"config: expected a YAML file, got folder/tiny\.yaml, not there"):
        read_arguments(parser, ["--config", "folder/tiny.yaml"])
    assert all(path.name in help_text(parser) for path in CONFIGS.glob("*.yaml"))
