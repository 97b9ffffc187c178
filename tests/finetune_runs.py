"""Helpers for the tests of recipes.finetune: a tiny run, what it must hold, and processes of its own."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from model_state import assert_same
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
    found = {
        f"{path.parent.relative_to(folder)}/{name}": value
        for path in sorted(folder.rglob("last.pt"))
        for name, value in load_checkpoint(path)["model"].items()
    }
    assert found
    return found


def assert_same_run(one: Path, other: Path) -> None:
    """The same weights and the same rows but for the times measured."""
    assert_same(weights(one), weights(other))
    for path in one.rglob("*s.jsonl"):
        rows, same = read_json_lines(path), read_json_lines(other / path.relative_to(one))
        for row in (*rows, *same):
            row.pop("seconds", None)
            row.pop("images_per_second", None)
        assert rows == same


def python(*given: str) -> subprocess.CompletedProcess[str]:
    """A process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *given]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
