"""The recipe end to end at a tiny size: files, matched control, seeds, two processes, settings."""

import csv
import json
import re
from argparse import ArgumentError
from pathlib import Path

import matplotlib.image
import pytest
import torch
from finetune_runs import finetune, python, short, tiny, weights
from model_state import assert_same
from recipe_jobs import CONFIGS, check_mistake, check_not_overwritten, check_survives_its_file, settings_of

from recipes.finetuning.job import FinetuneJob
from recipes.training.checkpoints import load_checkpoint
from recipes.training.history import read_json_lines


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert finetune(tiny(folder)) == 0
    return folder


@pytest.mark.slow
def test_run_folder_holds_what_was_promised(whole: Path) -> None:
    for name in ("config.yaml", "summary.md", "index.html", "results.json"):
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
        assert {"miou", "pixel_accuracy", "boundary_f", "accuracy_far_from_head", "iou/background", "seconds"} <= set(
            rows[0]
        )
        assert len((folder / "steps.jsonl").read_text().splitlines()) == 6
        assert {"last.pt", "previous.pt", "best.pt"} <= {p.name for p in folder.iterdir()}
        assert not list(folder.glob(".*writing"))
    row = read_json_lines(whole / "seed0/loss/steps.jsonl")[0]
    assert row["total"] == pytest.approx(row["base"] + 0.5 * row["template_similarity"], abs=1e-5)
    results = json.loads((whole / "results.json").read_text())
    metrics = ["mIoU", "pixel accuracy", "boundary F", "accuracy far from the head"]
    assert [line["metric"] for line in results["lines"]] == metrics
    assert "Too few images to say whether the loss helps. mIoU: " in (whole / "summary.md").read_text()
    page = (whole / "index.html").read_text()
    links = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert {"predictions.png", "curves.png", "seed0/loss/metrics.csv", "config.yaml"} <= set(links)
    assert all((whole / link).is_file() for link in links)


@pytest.mark.slow
def test_both_arms_start_alike_and_see_the_same_images(whole: Path) -> None:
    control, loss = (read_json_lines(whole / "seed0" / arm / "steps.jsonl")[0] for arm in ("control", "loss"))
    assert control["base"] == loss["base"]  # the first step's loss, before the arms part
    control, loss = (weights(whole)[f"seed0/{arm}/classifier.weight"] for arm in ("control", "loss"))
    assert not torch.equal(control, loss)


@pytest.mark.slow
def test_a_loss_of_no_weight_is_the_control(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert finetune(short(folder, loss__weight="0")) == 0
    control, loss = (
        {n.removeprefix(f"seed0/{arm}/"): v for n, v in weights(folder).items() if n.startswith(f"seed0/{arm}/")}
        for arm in ("control", "loss")
    )
    assert_same(control, loss)
    results = json.loads((folder / "results.json").read_text())
    for line in results["lines"]:
        expected = {"value": 0, "low": 0, "high": 0, "level": 0.95, "p_value": 1}
        assert expected.items() <= line["interval"].items()
        assert line["verdict"] == "too few images"
    assert "includes zero: too few images" in capsys.readouterr().out


@pytest.mark.slow
def test_several_seeds_share_a_start_and_are_averaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert finetune(short(folder, seeds="[0,3,4]", train__layers="last-3")) == 0
    assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == ["seed0", "seed3", "seed4", "start"]
    results = json.loads((folder / "results.json").read_text())
    for line in results["lines"]:
        assert line["interval"]["value"] == pytest.approx(sum(line["per_seed"]) / 3, abs=1e-9)
    told = capsys.readouterr().out
    assert "by seed:" in told
    assert "share one start" in told
    start, trained = (weights(folder)[f"{part}/stem.0.0.weight"] for part in ("start", "seed4/loss"))
    assert torch.equal(start, trained)  # only the last layers trained


BOTH_STRATEGIES = """
import sys
from recipes.finetuning.job import FinetuneJob
from recipes.kit.job import run_recipe
for strategy in ("ddp", "fsdp"):
    given = [*sys.argv[2:], "--hardware.devices=2", f"--hardware.strategy={strategy}"]
    if status := run_recipe(FinetuneJob, [f"--folder={sys.argv[1]}/{strategy}", *given]):
        sys.exit(status)
"""


@pytest.mark.slow
def test_two_processes_train_one_model(tmp_path: Path) -> None:
    (tmp_path / "both.py").write_text(BOTH_STRATEGIES)
    _, *options = short(tmp_path, hardware__accelerator="cpu")
    process = python(str(tmp_path / "both.py"), str(tmp_path), *options)
    assert process.returncode == 0, process.stdout + process.stderr
    assert process.stdout.count("run folder") == 2
    for strategy in ("ddp", "fsdp"):
        folder = tmp_path / strategy
        scores = load_checkpoint(folder / "seed0/loss/scores.pt")
        assert len(scores["confusion"]) == 6
        assert int(scores["confusion"].sum()) == 6 * 32 * 48
        assert len((folder / "seed0/loss/steps.jsonl").read_text().splitlines()) == 3
        assert (folder / "predictions.png").exists()
        shapes = {name: value.shape for name, value in load_checkpoint(folder / "start/last.pt")["model"].items()}
        assert shapes["classifier.weight"] == (11, 8, 1, 1)


def test_a_run_folder_is_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_not_overwritten(FinetuneJob, tiny(tmp_path), tmp_path, capsys)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__name": "folder"}, "root: expected the folder of 'folder'"),
        ({"data__name": "camvid", "data__root": "/nowhere"}, "root: expected an existing folder"),
        ({"model__name": "unet"}, "model.name: expected one of small_fcn, "),
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
    with pytest.raises(ArgumentError, match=r"--train\.epoch"):
        settings_of(FinetuneJob, ["--train.epoch=3"])


@pytest.mark.parametrize("name", ["camvid", "tiny"])
def test_configurations_that_come_along_are_valid(name: str) -> None:
    assert settings_of(FinetuneJob, ["--config", str(CONFIGS / f"{name}.yaml")]).name == name


def test_help_explains_every_setting() -> None:
    text = FinetuneJob.build_parser().format_help()
    for name in ("--data.root", "--model.weights", "--train.layers", "--loss.weight", "--evaluation.far", "--resume"):
        assert name in text
    assert "--data CONFIG" not in text  # which would be refused
