"""A run that is killed, interrupted or damaged goes on to the same bits, or says why it does not."""

import errno
import io
import itertools
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from finetune_runs import assert_same_run, finetune, python, short, tiny
from model_state import assert_same
from recipe_jobs import interrupted
from rich.console import Console
from torch import nn

from perpixel.models import SmallFCN
from recipes.finetuning.job import FinetuneJob
from recipes.training.checkpoints import load_checkpoint


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FinetuneJob, "_draw", lambda *_: {})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert finetune(tiny(folder)) == 0
    return folder


def at_step(
    patch: pytest.MonkeyPatch, optimizer: type[torch.optim.Optimizer], number: int, act: Callable[[], object]
) -> None:
    """Let `act` happen before step `number` of all trainings that use the optimizer."""
    step, calls = optimizer.step, itertools.count(1)

    def counted(self: torch.optim.Optimizer, *args: object) -> object:
        if next(calls) == number:
            act()
        return step(self, *args)

    patch.setattr(optimizer, "step", counted)


# Each stage is a process of its own, forked where all libraries are imported and nothing else has happened.
KILLER = """
import os, signal, sys, torch
from recipes.finetuning.job import FinetuneJob
from recipes.kit.job import run_recipe
def kill_at(owner, name, count, text):
    original, calls = getattr(owner, name), 0
    def fatal(*args, **kwargs):
        nonlocal calls
        calls += text in str(args[-1])
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)
    setattr(owner, name, fatal)
for stage in sys.argv[2:]:
    if not os.fork():
        owner, *rest = eval(stage)
        kill_at(owner, *rest)
        sys.exit(run_recipe(FinetuneJob, ["--resume", sys.argv[1]]))
    print(os.WTERMSIG(os.wait()[1]), flush=True)
"""


@pytest.mark.slow
def test_killed_or_interrupted_in_any_part_it_continues_to_the_same_bits(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:  # in pre-training, within the second epoch
        at_step(patch, torch.optim.AdamW, 4, lambda: os.kill(os.getpid(), signal.SIGINT))
        assert finetune(tiny(folder)) == 130
    stopped = capsys.readouterr()
    assert f"--resume {folder}" in stopped.out
    assert "Traceback" not in stopped.err
    assert load_checkpoint(folder / "start/last.pt")["step"] == 4
    in_a_step = "(torch.optim.SGD, 'step', 5, '')"  # of the control
    in_a_write = f"(os, 'replace', 8, '{folder}/seed0/loss/')"  # while files are put in place
    killed = python("-c", KILLER, str(folder), in_a_step, in_a_write)
    signals = [line for line in killed.stdout.splitlines() if line.isdigit()]
    assert signals == [str(int(signal.SIGKILL))] * 2, killed.stdout + killed.stderr
    assert (folder / "seed0/loss/last.pt").is_file()
    assert not (folder / "summary.md").exists()
    assert finetune(["--resume", str(folder)]) == 0
    assert_same_run(whole, folder)
    assert (folder / "summary.md").exists()


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
def test_damaged_logs_of_a_finished_run_are_mended_or_said(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    arm, sound = folder / "seed0/loss", whole / "seed0/loss"
    (arm / "metrics.jsonl").write_bytes(b"\xffgarbage\n" + (arm / "metrics.jsonl").read_bytes()[:-9])
    lines = (arm / "steps.jsonl").read_bytes().splitlines(keepends=True)
    (arm / "steps.jsonl").write_bytes(b"".join([lines[0], b"garbage\n", *lines[2:]]))
    assert finetune(["--resume", str(folder)]) == 0
    assert (arm / "metrics.jsonl").read_bytes() == (sound / "metrics.jsonl").read_bytes()
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("damaged")]
    assert len(told) == 1
    assert f"{arm}/steps.jsonl: its rows up to step 6 are not those that were written; the 5 that" in told[0]


@pytest.mark.slow
@pytest.mark.parametrize("file", ["last.pt", "scores.pt"])
def test_a_run_begun_by_another_version_is_refused_in_one_line(
    file: str, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    arm = folder / "seed0/loss"
    path = arm / file
    torch.save({**load_checkpoint(path), "format": "perpixel.finetune 1"}, path)
    if file == "last.pt":
        (arm / "scores.pt").unlink()
    assert finetune(["--resume", str(folder)]) == 1
    error = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("error: "))
    assert f"got 'perpixel.finetune 1' in {path}. Finish the run with the version" in error


def test_no_bar_is_left_in_the_terminal_after_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), force_terminal=True)
    bars = []

    def fail(job: FinetuneJob) -> None:
        job.progress.begin("a part", 0, 5)
        bars.append(job.progress._bar)
        raise RuntimeError("not foreseen")

    monkeypatch.setattr("recipes.kit.job.Console", lambda **_: console)
    monkeypatch.setattr(FinetuneJob, "run", fail)
    with pytest.raises(RuntimeError, match="not foreseen"):
        finetune(tiny(tmp_path / "run"))
    assert bars[0].live.is_started is False


@pytest.mark.slow
def test_a_full_disk_ends_the_run_with_a_clear_message_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, synced = tmp_path / "run", os.fsync

    def full(file: int) -> None:
        if (folder / "start/last.pt").exists() and load_checkpoint(folder / "start/last.pt")["step"] == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        synced(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert finetune(short(folder)) == 1
    told = capsys.readouterr().out
    assert "no space left to write" in told
    assert f"--resume {folder}" in told
    assert load_checkpoint(folder / "start/last.pt")["step"] == 3
    assert not list(folder.rglob(".*writing"))
    assert finetune(["--resume", str(folder)]) == 0


class Dropping(SmallFCN):
    """With dropout, and its output in a mapping as torchvision's networks have it."""

    def __init__(self, num_classes: int, *, width: int) -> None:
        super().__init__(num_classes, width=width)
        self.context.append(nn.Dropout2d(0.5))

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"out": super().forward(images)}


@pytest.mark.slow
def test_dropout_averages_running_templates_and_jitter_continue_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Everything with state at once: a crash inside a step, after a checkpoint within the epoch."""
    monkeypatch.setattr("perpixel.models.small.small_fcn", Dropping)
    changes = {
        "data__jitter": "0.3",
        "data__workers": "1",
        "train__ema": "0.9",
        "train__clip": "1.0",
        "train__warmup": "2",
        "loss__running_momentum": "0.9",
        "loss__template": "mean",
    }
    one, other = tmp_path / "one", tmp_path / "other"
    assert finetune(short(one, **changes)) == 0
    with monkeypatch.context() as patch:  # the loss arm's third and last
        at_step(patch, torch.optim.SGD, 6, interrupted)
        assert finetune(short(other, **changes)) == 130
    assert load_checkpoint(other / "seed0/loss/last.pt")["step"] == 2
    assert finetune(["--resume", str(other)]) == 0
    assert "damaged" not in capsys.readouterr().out  # the finished arm is known again by its averaged weights
    assert_same_run(one, other)
    first, second = (load_checkpoint(folder / "seed0/loss/last.pt") for folder in (one, other))
    assert first["ema"]
    assert first["criterion"][0]
    assert_same(second["ema"], first["ema"])
    assert_same(second["criterion"][0], first["criterion"][0])


def test_resume_takes_no_other_setting_and_needs_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert finetune(["--resume", str(tmp_path)]) == 1
    assert "resume: expected a run folder" in capsys.readouterr().out
    assert finetune(["--resume", str(tmp_path), "--train.lr", "1"]) == 1
    assert "resume: expected no other setting beside it" in capsys.readouterr().out


# Processes that go as far as the first images, loaded by a worker, and wait there; forked as above.
RIVALS = """
import os, signal, sys
from recipes.finetuning.job import FinetuneJob
from recipes.kit.job import run_recipe
def start(*given):
    told, tell = os.pipe()
    child = os.fork()
    if child:
        os.close(tell)
        return child, os.fdopen(told)
    def wait(job):
        batches = job.images.training(seed=0, epoch=0, batch_size=1)
        next(batches)
        os.write(tell, str(job.folder).encode() + b"\\n")
        signal.pause()
    FinetuneJob.run = wait
    os.write(tell, f"refused {run_recipe(FinetuneJob, list(given))}\\n".encode())
    os._exit(0)
def answers(*rivals):
    print(*(lines.readline().strip() for _, lines in rivals), sep=";", flush=True)
folder, out, *options = sys.argv[1:]
one, two = start(folder, *options), start(folder, *options)  # at about the same moment
answers(one, two)
resumed = "--resume=" + folder.partition("=")[2]
answers(start(resumed))
for child, _ in (one, two):  # their workers live on for some seconds
    os.kill(child, signal.SIGKILL)
third = start(resumed)
answers(third)
several = [start(out, *options) for _ in range(2)]
answers(*several)
for child, _ in (third, *several):
    os.kill(child, signal.SIGKILL)
"""


@pytest.mark.slow
def test_one_process_at_a_time_works_in_a_run_folder(tmp_path: Path) -> None:
    folder, (_, *options) = tmp_path / "run", short(tmp_path, data__workers="1")
    process = python("-c", RIVALS, f"--folder={folder}", f"--out={tmp_path / 'out'}", *options)
    lines = process.stdout.splitlines()
    assert process.returncode == 0, process.stdout + process.stderr
    first, second = (line for line in lines if line.startswith("error"))
    assert first.startswith("error: folder: expected a")  # ... run folder that no other works in, or one without a run
    assert second.startswith("error: folder: expected a run folder that no other process works in")
    started, again, after, several = (line for line in lines if line.startswith(("refused", str(tmp_path))))
    assert sorted(started.split(";")) == sorted([str(folder), "refused 1"])
    assert (again, after) == ("refused 1", str(folder))
    assert len(set(several.split(";"))) == 2
    assert "refused" not in several
    assert not (folder / "error.log").exists()
