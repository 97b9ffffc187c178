"""The recipe of image labels end to end at a tiny size, its rule and its numbers against slow recomputation."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from recipe_jobs import (
    CONFIGS,
    arguments,
    check_mistake,
    check_not_overwritten,
    check_survives_its_file,
    draw_nothing,
    interrupted,
)

from perpixel.data import FolderSegmentation
from perpixel.evaluation import class_iou
from recipes.finetuning.job import FinetuneJob
from recipes.image_labels.job import WeakJob
from recipes.image_labels.maps import MapScores, Rule, present_classes, score_maps
from recipes.image_labels.results import FALSE, HALF, PEAK, Results
from recipes.image_labels.settings import ARMS
from recipes.kit.images import Images
from recipes.kit.job import run_recipe
from recipes.kit.settings import DataSettings, EvaluationSettings
from recipes.training.checkpoints import load_checkpoint

TINY = {
    "data.train_images": "8",
    "data.eval_images": "6",
    "data.size": "[32,48]",
    "model.options": "{backbone: vgg11_bn, width: 0.03125, blocks: 2, stride: 2}",
    "pretrain.epochs": "1",
    "pretrain.batch_size": "4",
    "evaluation.resamples": "100",
    "evaluation.pictures": "1",
    "seeds": "[0,1]",
}


def given(folder: Path, **changes: str) -> list[str]:
    return arguments({"folder": str(folder)}, TINY, **changes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert run_recipe(WeakJob, given(folder)) == 0
    return folder


def weights(folder: Path, arm: str, seed: int = 0) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / f"seed{seed}" / arm / "last.pt")["model"]


def scores(folder: Path, arm: str, seed: int = 0) -> MapScores:
    return MapScores(**load_checkpoint(folder / f"seed{seed}" / arm / "maps.pt")["result"])


def test_everything_is_written_and_said(whole: Path) -> None:
    for name in ("summary.md", "index.html", "results.json", "config.yaml", "predictions.png", "maps.png"):
        assert (whole / name).stat().st_size > 0
    text = (whole / "summary.md").read_text()
    for part in ("unpooled features", "Restored features against CAM", "average precision", "% of images", "finetune"):
        assert part in text
    numbers = json.loads((whole / "results.json").read_text())
    assert set(numbers["arms"]) == set(ARMS)
    assert [row["metric"] for row in numbers["stack against"]["raw"]] == [FALSE, HALF, "mIoU", PEAK]
    assert numbers["share of training images"]["background"] == 1


def test_arms_start_from_the_same_backbone_and_differ_in_what_they_stack(whole: Path) -> None:
    trained = {arm: weights(whole, arm) for arm in ARMS}
    shapes = {arm: tuple(of["classifier.weight"].shape) for arm, of in trained.items()}
    assert shapes["stack"] == shapes["raw"] == (11, 6, 1, 1)
    assert shapes["cam"] == (11, 4, 1, 1)  # conv2_1 alone
    assert not torch.equal(trained["stack"]["features.4.weight"], trained["raw"]["features.4.weight"])
    first = [load_checkpoint(whole / "seed0" / arm / "previous.pt")["model"] for arm in ARMS]  # before any step
    assert all(torch.equal(one["features.4.weight"], first[0]["features.4.weight"]) for one in first)


def slow_shares(maps: np.ndarray, present: set[int], rule: Rule) -> np.ndarray:
    """Of one image."""
    found = np.zeros_like(maps)
    for c in present:
        peak = maps[c].max()
        found[c] = np.maximum(maps[c], 0) / peak if peak > 0 else 0.0
    if rule.background is not None:
        found[rule.background] = rule.threshold
    return found


@pytest.mark.parametrize("background", [None, 0, 2])
def test_labels_and_scores_against_loops(background: int | None) -> None:
    torch.manual_seed(0)
    rule, classes = Rule(background, 0.3), 4
    maps, values = torch.randn(3, classes, 5, 6), torch.randn(3, classes)
    values[2] = -1.0
    labels = torch.randint(0, 3, (3, 5, 6))
    labels[0, 0] = 255
    found = score_maps(maps, values, labels, rule, 255)
    for n in range(3):
        own = slow_shares(maps[n].numpy(), {c for c in range(classes) if values[n, c] > 0}, rule)
        confusion = np.zeros((classes, classes), int)
        for y in range(5):
            for x in range(6):
                best = int(own[:, y, x].argmax())
                best = best if own[best, y, x] > 0 else int(maps[n, :, y, x].argmax())
                if labels[n, y, x] != 255:
                    confusion[labels[n, y, x], best] += 1
        assert found.confusion[n].tolist() == confusion.tolist()
        for c in range(classes):
            inside = [float(v) for v, label in zip(maps[n, c].flatten(), labels[n].flatten()) if label == c]
            outside = [float(v) for v, label in zip(maps[n, c].flatten(), labels[n].flatten()) if label not in (c, 255)]
            if not inside or c == background:
                assert math.isnan(found.half[n, c])
                assert math.isnan(found.peak[n, c])
                continue
            middle = sorted(inside)[len(inside) // 2]
            assert sum(v >= middle for v in inside) * 2 >= len(inside)
            assert float(found.half[n, c]) == pytest.approx(sum(v >= middle for v in outside) / len(outside))
            assert bool(found.peak[n, c]) == (float(maps[n, c].max()) in inside)
    assert found.present.tolist() == [[c in labels[n] for c in range(classes)] for n in range(3)]


def test_the_rates_of_the_table_against_loops() -> None:
    torch.manual_seed(0)
    rule = Rule(0, 0.2)
    one, other = (
        score_maps(torch.randn(9, 3, 6, 6), torch.ones(9, 3), torch.randint(0, 3, (9, 6, 6)), rule, 255) for _ in "ab"
    )
    by_arm = {"stack": {0: one}, "raw": {0: other}, "cam": {0: other}}
    empty = {arm: [1.0] for arm in ARMS}
    results = Results(by_arm, "abc", 0, [1, 1, 1], empty, dict.fromkeys(ARMS, 1), EvaluationSettings(resamples=100))
    total = one.confusion.sum(0).numpy()
    rates = []
    for c in (1, 2):
        false = total[:, c].sum() - total[c, c]
        rates.append(false / (total.sum() - total[c].sum()))
    row = results.arm("stack")
    assert row[FALSE] == pytest.approx(100 * np.mean(rates))
    assert row["mIoU"] == pytest.approx(100 * float(class_iou(one.confusion.sum(0)).mean()))
    assert row[HALF] == pytest.approx(100 * float(one.half.nanmean()))
    assert row["recall"] == pytest.approx(100 * np.mean([total[c, c] / total[c].sum() for c in (1, 2)]))
    difference = results.differences["raw"][0]
    assert difference.interval.value == pytest.approx(row[FALSE] - results.arm("raw")[FALSE])
    assert results.differences["raw"][0].verdict != "helped"  # of one seed nothing is claimed


def test_pseudo_labels_know_the_image_and_not_the_place(whole: Path) -> None:
    train, val = (FolderSegmentation(whole / "pseudo", split) for split in ("train", "val"))
    settings = DataSettings(train_images=8, eval_images=6, size=(32, 48))
    images = Images(settings)
    assert train.classes == images.classes
    assert (len(train), len(val)) == (8, 6)
    source, _ = images.sources["training"]
    for number in range(8):
        image, labels, *_ = source[number]
        drawn, mask = train[number]
        torch.testing.assert_close(drawn, image, rtol=0, atol=0.5 / 255 + 1e-6)
        assert set(mask.unique().tolist()) <= set(labels.unique().tolist()) | {255}
    assert all(torch.equal(val[n][1], images.evaluation_sample(n).labels) for n in range(6))
    assert any(bool((train[n][1] == 255).any()) for n in range(8))
    with Image.open(train.masks[0]) as mask:
        assert mask.getpalette()[3:6] == images.colors[1].tolist()


def test_unsure_pixels_are_void() -> None:
    maps = torch.tensor([[[[9.0, 9.0, 9.0]], [[1.0, 0.25, -1.0]], [[0.2, 1.0, 1.0]]]])
    present = torch.tensor([[True, True, True]])
    rule = Rule(0, 0.2)
    assert rule.labels(maps, present).tolist() == [[[1, 2, 2]]]
    assert rule.is_sure(maps, present, 0.1).all()
    assert rule.is_sure(maps, present, 0.78).tolist() == [[[True, False, True]]]
    assert rule.labels(maps, torch.tensor([[True, True, False]])).tolist() == [[[1, 1, 0]]]
    assert present_classes(torch.tensor([[[0, 2]]]), 3).tolist() == [[True, False, True]]


def test_finetune_takes_the_pseudo_labels(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_nothing(monkeypatch)
    changes = {"data__name": "folder", "data__root": str(whole / "pseudo"), "pretrain__epochs": "1"}
    changes |= {"data__size": "[32,48]", "model__options": "{width: 8}", "train__epochs": "1"}
    batches = {"train__batch_size": "4", "pretrain__batch_size": "4", "evaluation__resamples": "100"}
    folder = tmp_path / "bridge"
    assert run_recipe(FinetuneJob, arguments({"folder": str(folder)}, **changes, **batches)) == 0
    assert json.loads((folder / "results.json").read_text())["images"] == 6


def test_an_interrupted_run_goes_on_to_the_same(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_nothing(monkeypatch)
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("recipes.image_labels.job.train", interrupted)
        assert run_recipe(WeakJob, given(folder)) == 130
    assert f"--resume {folder}" in capsys.readouterr().out
    for part in ("seed0", "seed1"):
        shutil.copytree(whole / part, folder / part)
    shutil.rmtree(folder / "seed1" / "raw")
    (folder / "seed0" / "cam" / "maps.pt").unlink()
    assert run_recipe(WeakJob, ["--resume", str(folder)]) == 0
    for arm, seed in (("raw", 1), ("cam", 0)):
        assert torch.equal(scores(folder, arm, seed).half.nan_to_num(), scores(whole, arm, seed).half.nan_to_num())
    one, other = (json.loads((path / "results.json").read_text()) for path in (folder, whole))
    assert one["stack against"] == other["stack against"]
    assert run_recipe(FinetuneJob, ["--resume", str(folder)]) == 1
    assert "one of recipes.weak_supervision" in capsys.readouterr().out


def test_a_binary_network_and_data_without_background(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_nothing(monkeypatch)
    root = tmp_path / "data"
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
            for number in range(8):
                shape = (16, 16, 3) if kind == "images" else (16, 16)
                pixels = rng.integers(0, 255, shape) if kind == "images" else rng.integers(0, 2, shape) * (number % 2)
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / kind / f"{number}.png")
    shared = {"data__name": "folder", "data__root": str(root), "data__size": "[16,16]", "seeds": "[0]"}
    shared |= {"model__options": "{width: 0.03125, blocks: 1, stride: 1}", "pseudo": "null"}
    shared |= {"data__train_images": "null", "data__eval_images": "null"}
    for number, changes in enumerate(({"data__binary": "true"}, {})):
        folder = tmp_path / f"run{number}"
        assert run_recipe(WeakJob, given(folder, **shared, **changes)) == 0
        numbers = json.loads((folder / "results.json").read_text())
        assert list(numbers["iou"]["stack"].values())[1] is not None
        assert not (folder / "pseudo").exists()


def test_mistakes_are_told_before_anything_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "none"
    for changes, message in (
        ({"model__name": "small_fcn"}, "model.name: expected deconvolution_stack"),
        ({"model__options": "{restore: false}"}, "model.options.restore: expected nothing"),
        ({"model__options": "{backbone: vgg12}"}, "model.options.backbone: expected one of vgg11"),
        ({"model__options": "{stride: 64}"}, "model.options.stride: expected one of 1, 2, 4, 8, 16"),
        ({"threshold": "1.5"}, "threshold: expected a finite number in (0, 1)"),
        ({"background": "sky"}, "background: expected names among background"),
        ({"pooling": "mean"}, "--pooling: expected one of logsumexp, average, max"),
        ({"data__size": "[32,32]", "model__options": "{width: 0.1, blocks: 5}", "data__eval_images": "1"}, "two eval"),
        ({"pretrain__batch_size": "16"}, "pretrain.batch_size"),
    ):
        check_mistake(WeakJob, given(folder, **changes), message, folder, capsys)


def test_the_settings_survive_their_file_and_a_run_is_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check_not_overwritten(WeakJob, given(tmp_path), tmp_path, capsys)
    for config in CONFIGS.glob("weak_supervision_*.yaml"):
        settings = check_survives_its_file(WeakJob, [f"--config={config}"], tmp_path / "settings.yaml")
        assert settings.model.name == "deconvolution_stack"
