"""What people type: short forms that are understood, and mistakes that are told in one line naming the option."""

from pathlib import Path

import pytest
import torch
from finetune_runs import tiny
from recipe_jobs import CONFIGS, JOBS, settings_of

from recipes.explaining.job import ExplainJob
from recipes.finetuning.job import FinetuneJob
from recipes.kit.command_line import parse_run
from recipes.kit.job import Job, run_recipe
from recipes.tracing.job import FixationJob


def told(job: type[Job], given: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a mistake is told in."""
    assert run_recipe(job, given) == 1
    line, nothing = capsys.readouterr().out.split("\n")
    assert line.startswith("error: ")
    assert not nothing
    return line.removeprefix("error: ")


def test_one_value_stands_for_a_list_and_one_number_for_a_square() -> None:
    settings = settings_of(FinetuneJob, ["--seeds", "3", "--data.size=240", "--data.crop", "64", "--name", "3"])
    assert (settings.seeds, settings.data.size, settings.data.crop, settings.name) == ([3], (240, 240), (64, 64), "3")
    settings = settings_of(ExplainJob, ["--ask.labels=eel", "--maps.methods", "Influence", "--ask.images=2"])
    assert (settings.ask.labels, settings.maps.methods, settings.ask.images) == (["eel"], ["Influence"], [2])
    settings = settings_of(FixationJob, ["--do", "shares", "--measure.random_seeds", "[1,2]", "--data.size=null"])
    assert (settings.do, settings.measure.random_seeds, settings.data.size) == (["shares"], [1, 2], None)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("--train.epoch=3", "train.epochs"), ("--data.rot", "data.root"), ("--sed", "seeds"), ("--xyzzy", "")],
)
def test_the_setting_that_was_meant_is_named(typed: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = told(FinetuneJob, [typed] if "=" in typed else [typed, "x"], capsys)
    remedy = f"Did you mean --{meant}?" if meant else "See --help-all."
    assert line == f"{typed.split('=')[0]}: expected a setting, got none of that name. {remedy}"


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["--train.epochs", "three"], "--train.epochs: expected a whole number, got three. "),
        (["--train.epochs=1.5"], "--train.epochs: expected a whole number, got 1.5. "),
        (["--train.lr", "big"], "--train.lr: expected a number, got big. "),
        (["--data.flip", "maybe"], "--data.flip: expected true or false, got maybe. "),
        (["--train.layers", "last"], "--train.layers: expected one of last-3, head, all, got last. "),
        (["--loss.similarity", "cosin"], "--loss.similarity: expected one of cosine, correlation, got cosin. "),
        (["--data.size", "[1,2,3]"], "--data.size: expected 2 numbers such as [1,2] or null, got [1, 2, 3]. "),
        (["--model.options", "{width:8}"], "--model.options: expected a mapping such as '{name: value}', with a space"),
        (["--seeds", "[0,", "1]"], "--seeds: expected a list such as [1,2], without spaces, got [0,. "),
        (["--seeds"], "--seeds: expected a list such as [1,2], without spaces, got nothing after it. "),
        (["data.root=x"], "data.root: expected a setting, got a word of its own. Did you mean --data.root?"),
        (
            ["--name", "a", "b]"],
            "b]: expected a setting, got a word of its own. Write [1,2] without spaces, or in quot",
        ),
        (["--config", "tab.yaml"], "config: expected a YAML file, got tab.yaml (line 2: found character '\\t' that"),
        (["--config", "."], "config: expected a YAML file, got ., no file. Check the path."),
        (["--config", "x.yaml"], "config: expected a YAML file, got x.yaml, not there. Check the path."),
        (["--resume", "x"], "resume: expected a run folder, got x, not there. Check the path."),
        (["--folder", "tab.yaml"], "folder: expected a new or empty folder, got the file tab.yaml. Choose another."),
        (
            ["--data.root", "x"],
            "data.root: expected None for 'synthetic', got x. It is drawn, not read: leave root out, ",
        ),
        (["--data.name=folder", "--data.root=flat"], "data.train_split, data.eval_split: expected flat/train/images, "),
        (["--model.options={width: 0}"], "model.options.width: expected an integer >= 2, got int 0. "),
        (["--model.checkpoint", "tab.yaml"], "model.checkpoint: expected a safetensors file or a state dict of torch."),
    ],
)
def test_what_was_expected_is_said_in_words(
    typed: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tab.yaml").write_text("train:\n\tepochs: 3\n")
    (tmp_path / "flat/images").mkdir(parents=True)
    line = told(FinetuneJob, typed, capsys)
    assert line[: len(message)] == message
    assert "weights_only` set" not in line  # torch's advice, which would run what a file holds
    if "flat" in line:
        assert line.endswith(
            "got images/ without train.txt. Name the images of that split in flat/train.txt, one in a line."
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.name": "folder"}, "data.root: expected the folder of 'folder', got NoneType None. Pass --data.root."),
        ({"data.name": "nope"}, "data.name: expected one of 'synthetic', "),
        ({"data.train_split": "tarin"}, "data.train_split, data.eval_split: expected one of 'train', "),
        ({"data.options": "{colour: 1}"}, "data.options: expected options of 'synthetic'"),
        (
            {"data.name": "folder", "data.root": str(CONFIGS), "data.options": "{list_file: x}"},
            "data.options.list_file: ",
        ),
        ({"data.name": "folder", "data.root": str(CONFIGS)}, "data.train_split, data.eval_split: expected "),
        (
            {"data.scale": "[2,1]"},
            "data.scale: expected the smallest and the largest factor, both above 0, got [2.0, 1.0]",
        ),
        ({"data.crop": "0"}, "data.crop: expected an integer >= 1"),
        ({"train.layers": "head"}, "train.layers: expected last-3 or all, got head. The loss acts on the features"),
        ({"data.workers": "-1"}, "data.workers: expected an integer >= 0"),
        ({"data.jitter": "2"}, "data.jitter: expected a finite number in [0, 1]"),
        ({"data.train_images": "0"}, "data.train_images: expected an integer >= 1"),
        ({"train.epochs": "0"}, "train.epochs: expected an integer >= 1"),
        ({"hardware.accelerator": "tpuu"}, "hardware.accelerator: expected one of 'auto', 'cpu'"),
        ({"hardware.devices": "x"}, "hardware.devices: expected a number from 1, or auto, got x"),
        ({"hardware.precision": "x"}, "hardware (accelerator, devices, strategy, precision): Precision 'x' is invalid"),
        ({"pretrain.batch_size": "64"}, "pretrain.batch_size: expected at most the number of training images"),
        ({"train.batch_size": "64"}, "train.batch_size: expected at most the number of training images"),
    ],
)
def test_a_mistake_names_the_setting_as_it_is_typed(
    changes: dict[str, str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = told(FinetuneJob, tiny(tmp_path / "run", **changes), capsys)
    assert line[: len(message)] == message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("job", "mistake", "message"),
    [
        (
            ExplainJob,
            "--pretrain.epochs=0",
            "pretrain.epochs: expected a training where no weights are given, got 0. Give",
        ),
        (FixationJob, "--pretrain.epochs=0", "pretrain.epochs: expected a training where no weights are given, got 0."),
        (
            ExplainJob,
            "--maps.patch=100",
            "maps.patch: expected at most 32, the shorter side of the images, got int 100",
        ),
        (ExplainJob, "--maps.stride=33", "maps.stride: expected at most 32"),
        (ExplainJob, "--maps.methods=Influense", "maps.methods: expected the name of a captum method"),
        (FixationJob, "--trace.rivals={eel: eagle}", "trace.rivals: expected names among background, "),
        (ExplainJob, "--pretrain.batch_size=13", "pretrain.batch_size: expected at most the number of training images"),
    ],
)
def test_nothing_is_trained_before_a_mistake_is_told(
    job: type[Job], mistake: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [one for one in tiny(tmp_path / "run") if one.startswith(("--folder", "--data", "--model", "--pretrain"))]
    assert told(job, [*given, mistake], capsys).startswith(message)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_graphics_card_that_is_not_there_is_told_with_the_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    line = told(FinetuneJob, ["--hardware.accelerator", "cuda"], capsys)
    assert line.startswith("hardware.accelerator: expected one that this machine has, got cuda. Leave it out to")
    assert f"torch {torch.__version__} is built" in line


@pytest.mark.parametrize("job", JOBS)
def test_the_folder_of_another_recipe_is_resumed_with_that_recipe(
    job: type[Job], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = job.build_parser()
    text = parser.dump(parser.parse_args([]), skip_unset=False)
    (tmp_path / "config.yaml").write_text(text)
    for other in JOBS:
        if other is not job:
            came = (
                f"resume: expected a run folder of recipes.{other.recipe}, got {tmp_path}, one of recipes.{job.recipe}."
            )
            line = told(other, ["--resume", str(tmp_path)], capsys)
            assert line == f"{came} Run: python -m recipes.{job.recipe} --resume {tmp_path}"
    assert parse_run(parser, tmp_path, "resume").name == job.recipe
