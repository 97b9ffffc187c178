"""The recipe end to end at a tiny size: files, matched control, resuming to the same bits after a kill."""

import csv
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import pytest
import torch
from recipe_jobs import (
    CONFIGS,
    arguments,
    check_mistake,
    check_not_overwritten,
    check_survives_its_file,
    settings_of,
)

from recipes.finetuning.job import FinetuneJob
from recipes.kit.job import run_recipe
from recipes.training.checkpoints import load_checkpoint
from recipes.training.history import read_json_lines

ROOT = Path(__file__).parents[1]
# 20 images, 5 steps an epoch; dropout-free small_fcn 8 wide; 2 epochs of pre-training and 2 of each arm: 30 steps.
TINY = {
    "data.train_images": "20",
    "data.eval_images": "6",
    "data.size": "[32,48]",
    "model.options": "{width: 8}",
    "pretrain.epochs": "2",
    "pretrain.batch_size": "4",
    "train.epochs": "2",
    "train.batch_size": "4",
    "train.optimizer": "sgd",
    "train.head_multiplier": "10",
    "train.lr": "0.01",
    "loss.weight": "0.5",
    "evaluation.resamples": "200",
    "evaluation.far": "4",
    "checkpoint_every": "2",
}


def finetune(given: list[str]) -> int:
    return run_recipe(FinetuneJob, given)


def tiny(folder: Path, **changes: str) -> list[str]:
    return arguments({"folder": str(folder), **TINY}, **changes)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{path.parent.relative_to(folder)}/{name}": value
        for path in sorted(folder.rglob("last.pt"))
        for name, value in load_checkpoint(path)["model"].items()
    }


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def epochs(path: Path) -> list[dict[str, float]]:
    """Rows of metrics.jsonl without the times measured."""
    return [
        {k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in read_json_lines(path)
    ]


def assert_same_run(one: Path, other: Path) -> None:
    assert_equal(weights(one), weights(other))
    for path in one.rglob("metrics.jsonl"):
        assert epochs(path) == epochs(other / path.relative_to(one))
    for path in one.rglob("steps.jsonl"):
        assert path.read_text() == (other / path.relative_to(one)).read_text()


def python(*given: str) -> subprocess.CompletedProcess[str]:
    """A process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *given]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert finetune(tiny(folder)) == 0
    return folder


@pytest.mark.slow
def test_run_folder_holds_what_was_promised(whole: Path) -> None:
    for name in ("config.yaml", "table.md", "results.json"):
        assert (whole / name).stat().st_size > 0
    assert "crop: null" in (whole / "config.yaml").read_text()
    for name in ("curves.png", "predictions.png"):
        picture = matplotlib.image.imread(whole / name)
        assert min(picture.shape[:2]) > 250
        assert picture[..., :3].std() > 0.05  # not a blank sheet
    for stretch in ("start", "seed0/control", "seed0/loss"):
        folder = whole / stretch
        rows = list(csv.DictReader((folder / "metrics.csv").open()))
        assert [row["epoch"] for row in rows] == ["1", "2"]
        assert {"miou", "pixel_accuracy", "boundary_f", "far_body", "iou/background", "seconds"} <= set(rows[0])
        assert len((folder / "steps.jsonl").read_text().splitlines()) == 10
        assert {"last.pt", "previous.pt", "best.pt"} <= {p.name for p in folder.iterdir()}
        assert not list(folder.glob(".*writing"))
    row = read_json_lines(whole / "seed0/loss/steps.jsonl")[0]
    assert row["total"] == pytest.approx(row["base"] + 0.5 * row["template_similarity"], abs=1e-5)
    results = json.loads((whole / "results.json").read_text())
    metrics = ["mIoU", "pixel accuracy", "boundary F", "far-body accuracy"]
    assert [line["metric"] for line in results["lines"]] == metrics
    assert "undecided" in (whole / "table.md").read_text() or "excludes zero" in (whole / "table.md").read_text()


@pytest.mark.slow
def test_both_arms_start_alike_and_see_the_same_images(whole: Path) -> None:
    control, loss = (read_json_lines(whole / "seed0" / arm / "steps.jsonl")[0] for arm in ("control", "loss"))
    assert control["base"] == loss["base"]  # the first step's loss, before the arms part
    control, loss = (weights(whole)[f"seed0/{arm}/classifier.weight"] for arm in ("control", "loss"))
    assert not torch.equal(control, loss)


@pytest.mark.slow
def test_a_loss_of_no_weight_is_the_control(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert finetune(tiny(folder, loss__weight="0", pretrain__epochs="1", train__epochs="1")) == 0
    control, loss = (
        {n.removeprefix(f"seed0/{arm}/"): v for n, v in weights(folder).items() if n.startswith(f"seed0/{arm}/")}
        for arm in ("control", "loss")
    )
    assert_equal(control, loss)
    results = json.loads((folder / "results.json").read_text())
    for line in results["lines"]:
        assert line["interval"] == {"value": 0, "low": 0, "high": 0, "level": 0.95}
        assert line["verdict"] == "undecided"
    assert "includes zero: undecided" in capsys.readouterr().out


KILLER = """
import os, signal, sys, torch
owner, name, count = eval(sys.argv[1]), sys.argv[2], int(sys.argv[3])
original, calls = getattr(owner, name), 0
def fatal(*args, **kwargs):
    global calls
    calls += 1
    if calls == count:
        os.kill(os.getpid(), getattr(signal, sys.argv[4]))
    return original(*args, **kwargs)
setattr(owner, name, fatal)
from recipes.finetuning.job import FinetuneJob
from recipes.kit.job import run_recipe
sys.exit(run_recipe(FinetuneJob, sys.argv[5:]))
"""


def run_until(owner: str, name: str, count: int, *given: str, by: str = "SIGKILL") -> subprocess.CompletedProcess[str]:
    """A process of its own that gets the signal `by` at the `count`-th call of owner.name."""
    return python("-c", KILLER, owner, name, str(count), by, *given)


@pytest.mark.slow
def test_killed_or_interrupted_in_any_part_it_continues_to_the_same_bits(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    resume = ["--resume", str(folder)]
    killed = run_until("torch.optim.AdamW", "step", 7, *tiny(folder))  # in pre-training, inside a step
    assert killed.returncode == -signal.SIGKILL, killed.stdout + killed.stderr
    stopped = run_until("torch.optim.SGD", "step", 3, *resume, by="SIGINT")  # in the control, within an epoch
    assert stopped.returncode == 130, stopped.stdout + stopped.stderr
    assert f"--resume {folder}" in stopped.stdout
    assert "Traceback" not in stopped.stderr
    assert load_checkpoint(folder / "seed0/control/last.pt")["step"] == 3
    killed = run_until("os", "replace", 30, *resume)  # in the loss arm, while files are put in place
    assert killed.returncode == -signal.SIGKILL, killed.stdout + killed.stderr
    assert (folder / "seed0/loss").is_dir()
    assert not (folder / "table.md").exists()
    assert finetune(resume) == 0
    assert_same_run(whole, folder)
    assert (folder / "table.md").exists()


@pytest.mark.slow
def test_damaged_checkpoint_is_reported_and_the_one_before_it_used(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    arm = folder / "seed0/loss"
    (arm / "scores.pt").unlink()
    newest = bytearray((arm / "last.pt").read_bytes())
    newest[len(newest) // 2] ^= 0xFF
    (arm / "last.pt").write_bytes(newest)
    assert load_checkpoint(arm / "previous.pt")["step"] < 10
    assert finetune(["--resume", str(folder)]) == 0
    told = capsys.readouterr().out
    assert "damaged checkpoint" in told
    assert "the one before it is used" in told
    assert_same_run(whole, folder)


@pytest.mark.slow
def test_a_full_disk_ends_the_run_with_a_clear_message_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, synced = tmp_path / "run", os.fsync

    def full(file: int) -> None:
        if (folder / "start/last.pt").exists() and load_checkpoint(folder / "start/last.pt")["step"] == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        synced(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert finetune(tiny(folder, pretrain__epochs="1", train__epochs="1")) == 1
    told = capsys.readouterr().out
    assert "no space left to write" in told
    assert f"--resume {folder}" in told
    assert load_checkpoint(folder / "start/last.pt")["step"] == 4
    assert not list(folder.rglob(".*writing"))
    assert finetune(["--resume", str(folder)]) == 0


@pytest.mark.slow
def test_several_seeds_share_a_start_and_are_averaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert (
        run_recipe(
            FinetuneJob, tiny(folder, seeds="[0,3,4]", pretrain__epochs="1", train__epochs="1", train__layers="head")
        )
        == 0
    )
    assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == ["seed0", "seed3", "seed4", "start"]
    results = json.loads((folder / "results.json").read_text())
    for line in results["lines"]:
        assert line["interval"]["value"] == pytest.approx(sum(line["per_seed"]) / 3, abs=1e-9)
    told = capsys.readouterr().out
    assert "by seed:" in told
    assert "share one start" in told
    start, trained = (weights(folder)[f"{part}/stem.0.0.weight"] for part in ("start", "seed4/loss"))
    assert torch.equal(start, trained)  # only the head trained


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_train_one_model(tmp_path: Path, strategy: str) -> None:
    folder = tmp_path / "run"
    options = tiny(folder, pretrain__epochs="1", train__epochs="1", hardware__accelerator="cpu")
    devices = ("--hardware.devices=2", f"--hardware.strategy={strategy}")
    process = python("-m", "recipes.finetune", *options, *devices)
    assert process.returncode == 0, process.stdout + process.stderr
    assert process.stdout.count("run folder") == 1
    scores = load_checkpoint(folder / "seed0/loss/scores.pt")
    assert len(scores["confusion"]) == 6
    assert int(scores["confusion"].sum()) == 6 * 32 * 48
    assert len((folder / "seed0/loss/steps.jsonl").read_text().splitlines()) == 5
    assert (folder / "predictions.png").exists()
    shapes = {name: value.shape for name, value in load_checkpoint(folder / "start/last.pt")["model"].items()}
    assert shapes["classifier.weight"] == (11, 8, 1, 1)


def test_a_run_folder_is_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_not_overwritten(FinetuneJob, tiny(tmp_path), tmp_path, capsys)


@pytest.mark.slow
def test_dropout_averages_running_templates_and_jitter_continue_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything with state at once: a crash inside a step, after a checkpoint within the epoch."""
    changes = {
        "model__name": "deeplabv3_mobilenet_v3_large",
        "model__options": "{}",
        "data__train_images": "12",
        "data__eval_images": "2",
        "data__jitter": "0.3",
        "data__workers": "1",
        "pretrain__epochs": "0",
        "train__epochs": "1",
        "train__ema": "0.9",
        "train__clip": "1.0",
        "train__warmup": "2",
        "loss__running_momentum": "0.9",
        "loss__template": "mean",
    }
    one, other = tmp_path / "one", tmp_path / "other"
    assert finetune(tiny(one, **changes)) == 0
    step, calls = torch.optim.SGD.step, []

    def crash(self: torch.optim.SGD, *args: object) -> object:
        calls.append(1)
        if len(calls) == 6:  # the loss arm's third and last
            raise KeyboardInterrupt
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", crash)
        assert finetune(tiny(other, **changes)) == 130
    assert load_checkpoint(other / "seed0/loss/last.pt")["step"] == 2
    assert finetune(["--resume", str(other)]) == 0
    assert_same_run(one, other)
    for name in ("ema", "criterion"):
        first, second = (load_checkpoint(folder / "seed0/loss/last.pt")[name] for folder in (one, other))
        assert_equal(*(part if name == "ema" else part[0] for part in (first, second)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__name": "folder"}, "root: expected the folder of 'folder'"),
        ({"data__name": "camvid", "data__root": "/nowhere"}, "root: expected an existing folder"),
        ({"model__name": "unet"}, "model.name: expected small_fcn or one of torchvision's"),
        ({"model__head": "tail"}, "model.head: expected a layer the logits depend on"),
        ({"model__checkpoint": "/nowhere/w.pt"}, "model.checkpoint: expected a file"),
        ({"train__batch_size": "64"}, "batch_size: expected at most the number of training images"),
        ({"seeds": "[1,1]"}, "seeds: expected one or more different integers"),
        ({"loss__weight": "-1"}, "weight: expected a finite number in"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(
    changes: dict[str, str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    check_mistake(FinetuneJob, tiny(folder, **changes), message, folder, capsys)


def test_resume_takes_no_other_setting_and_needs_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert finetune(["--resume", str(tmp_path)]) == 1
    assert "resume: expected a run folder" in capsys.readouterr().out
    assert finetune(["--resume", str(tmp_path), "--train.lr", "1"]) == 1
    assert "resume: expected no other setting beside it" in capsys.readouterr().out


def test_every_setting_survives_its_file(tmp_path: Path) -> None:
    given = ["--data.name=folder", "--data.root=x", "--data.train_images=null", "--data.eval_images=null"]
    given += ["--data.size=null", "--train.clip=0.5", "--loss.running_momentum=0.9", "--seeds=[3,4]", "--out=elsewhere"]
    path = tmp_path / "config.yaml"
    settings = check_survives_its_file(FinetuneJob, given, path)
    assert "train_images: null" in path.read_text()  # left out, it would follow whatever the default becomes
    assert settings.data.train_images is settings.data.size is None


def test_yaml_is_read_and_the_command_line_wins(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("train: {epochs: 7, lr: 0.5}\ndata: {size: [32, 48]}\nloss: {similarity: correlation}\n")
    given = ["--config", str(file), "--train.lr", "0.25", "--data.root", "here"]
    settings = settings_of(FinetuneJob, given)
    assert (settings.train.epochs, settings.train.lr, settings.train.layers) == (7, 0.25, "all")
    assert (settings.data.size, settings.data.root) == ((32, 48), "here")
    assert (settings.loss["similarity"], settings.loss["weight"]) == ("correlation", 0.05)
    with pytest.raises(SystemExit):
        settings_of(FinetuneJob, ["--train.epoch=3"])


@pytest.mark.parametrize("name", ["camvid", "tiny"])
def test_configurations_that_come_along_are_valid(name: str) -> None:
    assert settings_of(FinetuneJob, ["--config", str(CONFIGS / f"{name}.yaml")]).name == name


def test_help_explains_every_setting() -> None:
    text = FinetuneJob.build_parser().format_help()
    for name in ("--data.root", "--model.weights", "--train.layers", "--loss.weight", "--evaluation.far", "--resume"):
        assert name in text
