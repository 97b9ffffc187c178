"""A file of settings or a run folder may be anyone's: nothing that it names is imported, called, or written to."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from finetune_runs import finetune, short, tiny
from jsonargparse import Namespace
from recipe_jobs import JOBS, check_survives_its_file, settings_of

from recipes.explaining.job import ExplainJob
from recipes.finetuning.job import FinetuneJob
from recipes.kit.command_line import parse_run
from recipes.kit.job import Job, run_recipe
from recipes.kit.settings import AnalysisSettings

MODULE = "module_that_a_file_names"


class Accepted(Exception):
    """Raised where a run would begin: all of its settings were taken."""


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that every payload writes; a module that writes it when imported or called is within reach."""
    path = tmp_path / "marker"
    write = f"open({str(path)!r}, 'a').write('x')"
    (tmp_path / f"{MODULE}.py").write_text(
        f"{write}\nclass Payload:\n    def __init__(self, *_, **__):\n        {write}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    def accepted(*_: object) -> None:
        raise Accepted

    monkeypatch.setattr("recipes.kit.job._launch", accepted)
    return path


def setting_names(values: Namespace, prefix: str = "") -> Iterator[str]:
    """Every key of a recipe's settings, groups included, as its parser knows them."""
    for name, value in vars(values).items():
        yield prefix + name
        if isinstance(value, Namespace):
            yield from setting_names(value, f"{prefix}{name}.")


def document(setting: str, value: Any) -> dict[str, Any]:
    for part in reversed(setting.split(".")):
        value = {part: value}
    return value


def calls(job: type[Job], folder: Path, setting: str = "data") -> list[list[str]]:
    """The ways in which a recipe reads settings that others wrote; of a run to examine only its data and model."""
    ways = [["--config", str(folder / "config.yaml")], ["--resume", str(folder)]]
    examines = issubclass(job.settings_class, AnalysisSettings) and setting.split(".")[0] in ("data", "model")
    return [*ways, ["--run", str(folder)]] if examines else ways


@pytest.mark.parametrize("job", JOBS)
def test_no_setting_of_any_recipe_imports_or_calls_what_a_file_names(
    job: type[Job],
    marker: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    built = job.build_parser()
    known = built.get_defaults()
    names = [*setting_names(known), "print_config", "__path__", "class_path"]
    assert {"data.options", "model.options", "hardware", "config", "resume"} <= set(names)
    folder = tmp_path / "foreign"
    folder.mkdir()
    command = {"class_path": "os.system", "init_args": {"command": f"touch {marker}"}}
    monkeypatch.setattr(job, "build_parser", lambda: built)  # these two take the most time
    monkeypatch.setattr("recipes.kit.command_line.known_settings", lambda _: known)
    for setting in names:
        for payload in (command, {"x": [{"class_path": f"{MODULE}.Payload"}]}, f"{MODULE}.Payload"):
            if isinstance(payload, str) and isinstance(known.get(setting), int | float):
                continue  # a number, which no text becomes
            (folder / "config.yaml").write_text(yaml.safe_dump(document(setting, payload)))
            for call in calls(job, folder, setting)[: 1 if isinstance(payload, str) else None]:
                _refused_or_harmless(job, call, f"{setting}: {payload}", marker, capsys)
    assert [path.name for path in folder.iterdir()] == ["config.yaml"]


def _refused_or_harmless(
    job: type[Job], call: list[str], what: str, marker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        assert run_recipe(job, call) == 1, what
    except Accepted:  # a text or a list of texts, where the setting takes any
        return
    finally:
        assert not marker.exists(), (call, what)
    told = capsys.readouterr()
    assert told.out.startswith("error: "), what
    assert len(told.out.splitlines()) == 1, (what, told.out)
    assert "\x1b" not in told.out
    assert not told.err, what


@pytest.mark.parametrize(
    "text",
    [
        "name: !!python/object/apply:os.system [touch MARKER]",
        "data: !!python/module:module_that_a_file_names",
        "config: other.yaml",
        "data: other.yaml",
        "- name",
        "data:",
        "a: [",
        "train: {epochs: [1]}",
        "\xff",
        "[" * 5000,
        '"\\e[2Jname": 1',
        "",
    ],
)
@pytest.mark.parametrize("job", [FinetuneJob, ExplainJob])
def test_what_is_no_mapping_of_settings_is_refused_in_one_line(
    job: type[Job], text: str, marker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other.yaml").write_text(f"class_path: {MODULE}.Payload\n")
    (tmp_path / "config.yaml").write_bytes(text.replace("MARKER", str(marker)).encode("latin-1"))
    for call in calls(job, tmp_path):
        _refused_or_harmless(job, call, text, marker, capsys)


def test_a_group_of_settings_is_not_read_from_a_file_named_on_the_command_line(
    marker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "data.yaml"
    file.write_text(f"class_path: {MODULE}.Payload\n")
    for call in ([f"--data={file}"], ["--data", str(file)], [f"--loss={MODULE}.Payload"]):
        _refused_or_harmless(FinetuneJob, call, "group", marker, capsys)


def test_nothing_is_downloaded_on_behalf_of_a_run_folder(tmp_path: Path) -> None:
    options = {"download": True, "year": 2007}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"data": {"name": "voc", "options": options}}))
    for job, parts in ((FinetuneJob, ()), (ExplainJob, ("data", "model"))):
        assert parse_run(job.build_parser(), tmp_path, "run", parts).data.options == {"year": 2007}
    assert settings_of(FinetuneJob, ["--config", str(tmp_path / "config.yaml")]).data.options == options


def test_a_date_is_a_name(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("name: 2026-11-21\n")
    check_survives_its_file(FinetuneJob, ["--config", str(tmp_path / "mine.yaml")], tmp_path / "config.yaml")
    assert parse_run(FinetuneJob.build_parser(), tmp_path, "resume").name == "2026-11-21"


def test_plain_options_keep_their_types(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    options = {"list": "train", "width": 8, "share": 0.5, "flag": True, "none": None, "colors": [[1, 2, 3], [4, 5, 6]]}
    file.write_text(yaml.safe_dump({"data": {"options": options}, "model": {"options": options}}))
    settings = settings_of(FinetuneJob, ["--config", str(file)])
    assert settings.data.options == settings.model.options == options


@pytest.mark.parametrize("model", ["small_fcn", "lraspp_mobilenet_v3_large"])
def test_an_option_that_the_network_does_not_have_is_refused(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_recipe(FinetuneJob, short(tmp_path / "run", model__name=model, model__options="{widht: 8}")) == 1
    assert f"model.options: expected options of {model}" in capsys.readouterr().out


def test_a_resumed_run_writes_nowhere_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, outside = tmp_path / "run", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    (folder / "config.yaml").write_text("name: ../../escaped\n")
    (folder / "error.log").symlink_to(outside / "victim")
    assert finetune(["--resume", str(folder)]) == 1
    told = capsys.readouterr().out
    assert "resume: expected a run folder without links that lead out of it" in told
    assert len(told.splitlines()) == 1
    assert not list(outside.iterdir())
    assert finetune(["--name", "../escaped", *tiny(folder)[1:], f"--out={outside}"]) == 1
    assert "name: expected a name without slashes" in capsys.readouterr().out


def test_a_folder_that_cannot_be_made_is_named_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert finetune(tiny(tmp_path / "file/run")) == 1
    assert capsys.readouterr().out == f"error: {tmp_path / 'file/run'}: Not a directory\n"
