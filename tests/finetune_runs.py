"""Helpers for the tests of recipes.finetune: a tiny run, what it must hold, and processes of its own."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from recipe_jobs import arguments

from recipes.finetuning.job import FinetuneJob
from recipes.kit.job import run_recipe
from recipes.training.checkpoints import load_checkpoint
from recipes.training.history import read_json_lines

ROOT = Path(__file__).parents[1]
# 12 images, 3 steps an epoch; dropout-free small_fcn 8 wide; 2 epochs of pre-training and 2 of each arm: 18 steps.
TINY = {
    "data.train_images": "12",
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
    "evaluation.pictures": "2",
    "checkpoint_every": "2",
}


def finetune(given: list[str]) -> int:
    return run_recipe(FinetuneJob, given)


def tiny(folder: Path, **changes: str) -> list[str]:
    return arguments({"folder": str(folder), **TINY}, **changes)


def short(folder: Path, **changes: str) -> list[str]:
    """`tiny` with an epoch of each training."""
    return tiny(folder, pretrain__epochs="1", train__epochs="1", **changes)


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
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *given]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
