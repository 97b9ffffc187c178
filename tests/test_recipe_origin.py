"""A result is used again only with the settings, weights, data and threads that it was computed with."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from finetune_runs import assert_same_run, finetune, short, tiny
from PIL import Image
from recipe_jobs import arguments, draw_nothing, interrupted

from perpixel.models import small_fcn
from recipes.finetuning.job import FinetuneJob
from recipes.kit.images import Images
from recipes.kit.job import run_recipe
from recipes.kit.settings import DataSettings, ModelSettings
from recipes.tracing.job import FixationJob
from recipes.tracing.settings import FixationSettings
from recipes.training.checkpoints import load_checkpoint
from recipes.training.pretraining import load_network


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FinetuneJob, "_draw", lambda *_: None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert finetune(tiny(folder)) == 0
    return folder


def edited(whole: Path, folder: Path, *edits: tuple[str, object]) -> Path:
    """A copy of a finished run with other settings in its file."""
    shutil.copytree(whole, folder)
    written = yaml.safe_load((folder / "config.yaml").read_text())
    for setting, value in edits:
        *groups, name = setting.split(".")
        part = written
        for group in groups:
            part = part[group]
        assert part[name] != value
        part[name] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(written))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "value", "before", "by"),
    [
        ("train.epochs", 3, 2, "seed 0 · control"),
        ("train.lr", 0.02, 0.01, "seed 0 · control"),
        ("pretrain.epochs", 1, 2, "pre-training"),
        ("loss.weight", 0.25, 0.5, "seed 0 · loss"),
        ("loss.template", "mean", "peak", "seed 0 · loss"),
        ("data.seed", 1, 0, "pre-training"),
        ("data.eval_images", 5, 6, "pre-training"),
        ("data.flip", False, True, "pre-training"),
        ("evaluation.far", 5.0, 4.0, "pre-training"),
        ("evaluation.every", 2, 1, "pre-training"),
        ("hardware.threads", 2, 1, "pre-training"),
        ("hardware.precision", "bf16-mixed", "32-true", "pre-training"),
    ],
)
def test_a_setting_changed_since_a_training_is_refused_by_name(
    setting: str,
    value: object,
    before: object,
    by: str,
    whole: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = edited(whole, tmp_path / "run", (setting, value))
    table = (folder / "summary.md").read_bytes()
    assert finetune(["--resume", str(folder)]) == 1
    error = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("error: "))
    assert error.startswith(f"error: {setting}: expected {before}, with which {by} was computed, got {value}"), error
    assert "Put it back, or begin a new run in another folder" in error
    assert (folder / "summary.md").read_bytes() == table
    (folder / "seed0/loss/scores.pt").unlink()  # from a checkpoint too
    (folder / "seed0/control/scores.pt").unlink()
    (folder / "start/scores.pt").unlink()
    assert finetune(["--resume", str(folder)]) == 1
    assert error in capsys.readouterr().out


@pytest.mark.slow
def test_what_no_result_depends_on_may_change(whole: Path, tmp_path: Path) -> None:
    changes = [
        ("name", "other"),
        ("out", "elsewhere"),
        ("folder", "elsewhere"),
        ("data.workers", 1),
        ("data.cache", True),
    ]
    changes += [("evaluation.resamples", 300), ("evaluation.level", 0.9), ("evaluation.pictures", 0)]
    folder = edited(whole, tmp_path / "run", *changes)
    assert finetune(["--resume", str(folder)]) == 0
    assert_same_run(whole, folder)
    assert json.loads((folder / "results.json").read_text())["lines"][0]["interval"]["level"] == 0.9
    assert not Path("elsewhere").exists()
    more = edited(folder, tmp_path / "more", ("seeds", [0, 1]))
    control = (more / "seed0/control/last.pt").read_bytes()
    assert finetune(["--resume", str(more)]) == 0
    assert len(json.loads((more / "results.json").read_text())["lines"][0]["per_seed"]) == 2
    assert (more / "seed0/control/last.pt").read_bytes() == control


@pytest.mark.slow
def test_an_arm_from_another_start_is_refused(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = edited(whole, tmp_path / "run", ("pretrain.lr", 0.01))
    shutil.rmtree(folder / "start")  # trained anew, otherwise than when the arms went from it
    assert finetune(["--resume", str(folder)]) == 1
    assert "error: start: expected weights " in capsys.readouterr().out


@pytest.mark.slow
def test_scores_of_other_weights_are_computed_again(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    last = folder / "seed0/loss/last.pt"
    assert load_checkpoint(last.with_name("previous.pt"))["step"] < load_checkpoint(last)["step"]
    last.with_name("previous.pt").replace(last)  # sound, and of the same training
    assert finetune(["--resume", str(folder)]) == 0
    assert "scores of other weights than those in last.pt" in capsys.readouterr().out
    assert_same_run(whole, folder)


@pytest.mark.slow
def test_another_machine_is_told(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    monkeypatch.setattr("recipes.training.origin.version", lambda name: f"{name} of tomorrow")
    assert finetune(["--resume", str(folder)]) == 0
    assert "note: seed 0 · loss was computed with torch " in capsys.readouterr().out


@pytest.mark.slow
def test_data_may_move_but_not_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(6):
        image = torch.randint(0, 256, (32, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(number))
        for split, kind, values in (("train", "images", image), ("train", "masks", image[..., 0] // 128)):
            for part in (split, "val"):
                path = tmp_path / "data" / part / kind / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(values.numpy()).save(path)
    changes = {"data__name": "folder", "data__root": str(tmp_path / "data"), "data__train_images": "null"}
    folder = tmp_path / "run"
    assert finetune(short(folder, **changes, data__eval_images="5", loss__weight="0.5")) == 0
    moved = (tmp_path / "data").rename(tmp_path / "moved")
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace(str(tmp_path / "data"), str(moved)))
    (moved / "val/images/5.png").write_bytes(b"not one of the five evaluated")
    assert finetune(["--resume", str(folder)]) == 0
    capsys.readouterr()
    (moved / "train/images/3.png").write_bytes((moved / "train/images/3.png").read_bytes() + b" ")
    assert finetune(["--resume", str(folder)]) == 1
    assert "error: data: training files: expected 12 (" in capsys.readouterr().out


def test_threads_are_written_as_a_number_and_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    used = []
    monkeypatch.setattr(torch, "set_num_threads", used.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(FinetuneJob, "run", lambda _: None)
    folder = tmp_path / "run"
    assert finetune(short(folder, hardware__accelerator="auto", hardware__devices="1")) == 0
    written = yaml.safe_load((folder / "config.yaml").read_text())["hardware"]
    assert (written["threads"], written["accelerator"]) == (1, "cpu" if not torch.cuda.is_available() else "cuda")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert finetune(["--resume", str(folder)]) == 0
    assert used == [1, 1]


@pytest.mark.slow
def test_what_was_measured_belongs_to_its_weights_and_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_nothing(monkeypatch)
    folder, file = tmp_path / "run", tmp_path / "weights.pt"
    one, other = (small_fcn(11, width=8).state_dict() for _ in range(2))
    torch.save(one, file)
    options = {"folder": str(folder), "model.checkpoint": str(file), "model.options": "{width: 8}", "do": "[counts]"}
    options |= {"data.eval_images": "2", "data.size": "[32,48]", "measure.units": "4", "measure.resamples": "100"}
    assert run_recipe(FixationJob, arguments(options)) == 0
    monkeypatch.setattr("recipes.tracing.counts.measure_counts", interrupted)  # measured already
    table = (folder / "counts.csv").read_bytes()

    def resumed(setting: str = "name", value: object = "again") -> str:
        """What is told when the run is continued with one setting changed."""
        changed = edited(folder, tmp_path / "changed", (setting, value))
        status = run_recipe(FixationJob, ["--resume", str(changed)])
        told = capsys.readouterr().out
        assert (status == 1) == ("error: " in told), told
        assert (changed / "counts.csv").read_bytes() == table
        shutil.rmtree(changed)
        return told

    for setting, value in (("picture.most", 3), ("measure.resamples", 200), ("data.workers", 1)):
        assert "error" not in resumed(setting, value)
    for setting, value in (("trace.k", 2), ("measure.units", 5), ("seed", 1), ("data.seed", 1)):
        assert f"error: {setting}: expected " in resumed(setting, value)
    torch.save(other, file)
    assert "error: weights: expected weights " in resumed()
    file.rename(tmp_path / "moved.pt")
    torch.save(one, tmp_path / "moved.pt")
    assert "error" not in resumed("model.checkpoint", str(tmp_path / "moved.pt"))


@pytest.mark.slow
def test_a_network_is_examined_as_what_it_was_trained_as(whole: Path) -> None:
    classes = Images(DataSettings(train_images=1, eval_images=1)).classes
    settings = FixationSettings(run=str(whole), model=ModelSettings(options={"width": 8}))
    assert load_network(settings, 11, classes) is not None
    with pytest.raises(ValueError, match=r"data: classes: expected .* as seed0/control of .* was trained"):
        load_network(settings, 11, classes[::-1])
    with pytest.raises(ValueError, match=r"model.options: expected {'width': 8}, as seed0/control"):
        load_network(FixationSettings(run=str(whole)), 11, classes)
