"""Masks of 0 and 255 through all recipes: one output, two classes, and the numbers that two outputs would have."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import put_mask
from finetune_runs import finetune, short
from PIL import Image
from recipe_jobs import arguments, check_mistake, draw_nothing, table

from perpixel.evaluation import predict_labels
from perpixel.models import small_fcn
from recipes.explaining.job import ExplainJob
from recipes.finetuning.job import FinetuneJob
from recipes.kit.job import run_recipe
from recipes.tracing.job import FixationJob
from recipes.training.checkpoints import load_checkpoint

OWN = {"data__name": "folder", "data__binary": "true", "data__train_images": "null", "data__eval_images": "null"}
SQUARE = (slice(8, 24), slice(10, 34))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bright objects on noise, masks of 0 and 255."""
    root, noise = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        (root / split / "images").mkdir(parents=True)
        for number in range(count):
            image, mask = noise.integers(0, 90, (32, 48, 3)), np.zeros((32, 48), np.uint8)
            place = tuple(slice(one.start - number, one.stop - number) for one in SQUARE)
            image[place] += 150
            mask[place] = 255
            Image.fromarray(image.astype(np.uint8)).save(root / split / f"images/{number}.png")
            put_mask(root / split / f"masks/{number}.png", mask)
    return root


@pytest.fixture(scope="module")
def run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert finetune(short(folder, data__root=str(root), **OWN, pretrain__lr="0.05", evaluation__pictures="1")) == 0
    return folder


def test_one_output_learns_two_classes(run: Path, root: Path) -> None:
    network = small_fcn(1, width=8).eval()
    network.load_state_dict(load_checkpoint(run / "seed0/loss/last.pt")["model"])
    results = json.loads((run / "results.json").read_text())
    assert list(results["iou"]) == ["background", "foreground"]
    scores = load_checkpoint(run / "seed0/loss/scores.pt")
    assert scores["confusion"].shape == (4, 2, 2)
    assert scores["confusion"].sum() == 4 * 32 * 48
    assert scores["confusion"].sum(-1)[:, 1].tolist() == [16 * 24] * 4
    assert json.loads((run / "seed0/loss/steps.jsonl").read_text().split("\n")[0])["template_similarity"] != 0
    assert Image.open(run / "predictions.png").size[0] > 100
    assert set(predict_labels(network, torch.zeros(1, 3, 32, 48)).unique().tolist()) <= {0, 1}


def test_fixations_and_maps_of_a_network_of_one_output(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_nothing(monkeypatch)
    least = {"run": str(run), "part": "start", "folder": str(tmp_path / "fixations"), "measure.resamples": "100"}
    assert run_recipe(FixationJob, arguments(least, do="[image,shares]", picture__frames="2")) == 0
    shares = table(tmp_path / "fixations/shares.csv")
    assert {row["class"] for row in shares} <= {"background", "foreground"}
    least |= {"folder": str(tmp_path / "maps"), "ask.pictures": "1", "ask.least": "5"}
    few = {"curves__draw": "false", "measure__images": "2", "maps__methods": "[Influence]", "explorer": "false"}
    assert run_recipe(ExplainJob, arguments(least, **few, ask__labels="[foreground]")) == 0
    assert {row["label"] for row in table(tmp_path / "maps/shares.csv")} == {"foreground"}


def test_the_question_against_the_rival_is_the_question_of_the_class(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments({"run": str(run), "folder": str(tmp_path / "no"), "trace.question": "rival"})
    check_mistake(FixationJob, given, "trace.question: expected class", tmp_path / "no", capsys)


def test_weights_of_two_outputs_are_no_binary_network(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(small_fcn(2, width=8).state_dict(), tmp_path / "two.pt")
    given = short(tmp_path / "no", data__root=str(root), **OWN, model__checkpoint=str(tmp_path / "two.pt"))
    check_mistake(
        FinetuneJob, given, "model.checkpoint: expected one output, as data.binary asks", tmp_path / "no", capsys
    )
