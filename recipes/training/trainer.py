"""A training that can be killed at any moment and continued to the very same weights."""

import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics.aggregation import MeanMetric

from perpixel.evaluation import SegmentationScores, score_images
from recipes.kit.job import Job
from recipes.kit.networks import seed_everything
from recipes.kit.run_folder import DamagedCheckpoint
from recipes.kit.weights import Weights, unwrap_weights
from recipes.training.checkpoints import BEST, LAST, PREVIOUS, load_checkpoint, load_newest, save_checkpoint
from recipes.training.history import History, Row
from recipes.training.origin import Origin, compare, digest, origin
from recipes.training.state import Training, TrainingState

FLUSH = 10  # steps between readings of the loss values: each waits for the device
SCORES = "scores.pt"


def train(job: Job, training: Training) -> tuple[SegmentationScores, Weights]:
    """Train, or load what that gave when it was finished before: scores and the weights they belong to."""
    path, last, began = training.folder / SCORES, training.folder / LAST, training_origin(job, training)
    try:
        if path.exists():
            kept, state = load_checkpoint(path), load_checkpoint(last)
            compare(kept.pop("origin", {}), began, training.title, job.progress.report)
            weights = unwrap_weights(state, str(last))
            if kept.pop("weights", None) != digest(weights):
                raise DamagedCheckpoint(f"{path}: scores of other weights than those in {last.name}")
            if job.fabric.is_global_zero:
                _open_history(job, training, state).close()
            return SegmentationScores(**kept), weights
    except (DamagedCheckpoint, FileNotFoundError) as error:
        job.progress.report(f"damaged result: {error}; it is computed again")
    trainer = Trainer(job, training, began)
    scores = trainer.run()
    weights = {name: value.detach().cpu().clone() for name, value in trainer.state.evaluated().state_dict().items()}
    if job.fabric.is_global_zero:
        save_checkpoint(path, vars(scores) | {"origin": began, "weights": digest(weights)})
    job.fabric.barrier()
    return scores, weights


def training_origin(job: Job, training: Training) -> Origin:
    """All that the weights and scores of a training depend on."""
    settings, schedule = job.settings, training.schedule
    name = next((one.name for one in fields(settings) if getattr(settings, one.name) is schedule), "schedule")
    loss = training.term.keywords if training.term is not None else "none"
    start = training.start if training.start is not None else "random weights"
    parts: dict[str, Any] = {name: schedule, "seed": training.seed, "start": start, "loss": loss}
    parts["evaluation"] = training.evaluation
    if training.base is not None:
        parts["base"] = {"name": training.base.func.__name__, **training.base.keywords}
    return origin(job, **parts, model=training.model or settings.model)


def _open_history(job: Job, training: Training, checkpoint: Mapping[str, Any]) -> History:
    """The logs of a training as they were at a checkpoint ({}: at its beginning), mended where they were damaged."""
    kept = {"epochs": checkpoint["history"], "digest": checkpoint["steps_digest"]} if checkpoint else {}
    return History(training.folder, step=checkpoint.get("step", 0), report=job.progress.report, **kept)


def _running_mean() -> MeanMetric:
    return MeanMetric(nan_strategy="disable", sync_on_compute=False).set_dtype(torch.float64)


class Trainer:
    """Runs a `Training`; all its state is in the checkpoint, data order and augmentation come from (seed, epoch)."""

    def __init__(self, job: Job, training: Training, began: Origin) -> None:
        self.job, self.training, self.fabric, self.origin = job, training, job.fabric, began
        self.share: dict[str, Any] = {"rank": job.fabric.global_rank, "world": job.fabric.world_size}
        schedule = training.schedule
        self.per_epoch = job.images.steps_per_epoch(schedule.batch_size)
        self.step, self.steps = 0, schedule.epochs * self.per_epoch
        seed_everything(training.seed * 1000 + self.fabric.global_rank)
        self.state = TrainingState(job, training, self.steps)
        self.best = -1.0
        self.means: dict[str, MeanMetric] = defaultdict(_running_mean)  # of the epoch: seconds and loss terms
        self.pending: list[tuple[int, float, dict[str, Tensor]]] = []
        self.history: History | None = None
        self.scores: SegmentationScores | None = None

    def run(self) -> SegmentationScores:
        """Train to the end, from the newest sound checkpoint if there is one; the scores of the last epoch."""
        folder, progress = self.training.folder, self.job.progress
        if self.fabric.is_global_zero:
            folder.mkdir(parents=True, exist_ok=True)
        self.fabric.barrier()
        checkpoint = load_newest(folder, progress.report)
        if checkpoint is not None:
            self._load(checkpoint)
        if self.fabric.is_global_zero:
            self.history = _open_history(self.job, self.training, checkpoint or {})
        progress.begin(self.training.title, self.step, self.steps)
        try:
            if checkpoint is None:
                self._save()
            while self.step < self.steps:
                self._train_epoch()
            return self.scores if self.scores is not None else self._evaluate()[0]
        finally:
            progress.end()
            self.state.criterion.remove()
            if self.history is not None:
                self.history.close()

    def _train_epoch(self) -> None:
        epoch, done = divmod(self.step, self.per_epoch)
        self.state.train()
        batches = self.job.images.training(
            seed=self.training.seed,
            epoch=epoch,
            batch_size=self.training.schedule.batch_size,
            skip=done,
            **self.share,
        )
        began = time.perf_counter()
        for images, labels in batches:
            rate = self.training.schedule.lr * self.training.schedule.factor(self.step, self.steps)
            terms = self.state.step(images, labels)
            self.step += 1
            self.pending.append((self.step, rate, terms))
            self.means["seconds"].update(time.perf_counter() - began)
            if self.step % self.per_epoch == 0:
                continue  # to the end of the epoch, where all this is done too
            if self.step % FLUSH == 0:
                self._flush()
            if self.step % self.training.checkpoint_every == 0:
                self._save()
            self._stop_if_asked(saved=False)
            began = time.perf_counter()
        self._flush()
        self._finish_epoch(epoch + 1)

    def _flush(self) -> None:
        """Bring the pending loss values to the host: means of the epoch, step file, progress line."""
        if not self.pending:
            return
        names = list(self.pending[0][2])
        values = torch.stack([torch.stack([terms[n].float() for n in names]) for _, _, terms in self.pending])
        if self.fabric.world_size > 1:
            values = cast(Tensor, self.fabric.all_reduce(values, reduce_op="mean"))
        rows: list[Row] = []
        for (step, rate, _), numbers in zip(self.pending, values.tolist()):
            rows.append({"step": step, "epoch": (step - 1) // self.per_epoch + 1, "lr": rate})
            for name, number in zip(names, numbers):
                rows[-1][name] = number
                self.means[name].update(number)
        self.pending.clear()
        if self.history is not None:
            self.history.add_steps(rows)
        for row in rows:
            if not np.isfinite(row["total"]):
                terms = ", ".join(f"{n} {row[n]:g}" for n in names)
                raise FloatingPointError(
                    f"{self.training.title}: the loss is no longer finite at step {row['step']} ({terms}). "
                    "Try a smaller --train.lr or --loss.weight, or --train.clip 1."
                )
        self.job.progress.advance(self.step, {n: rows[-1][n] for n in names}, self._speed())

    def _speed(self) -> float:
        return self.training.schedule.batch_size / max(float(self.means["seconds"].compute()), 1e-9)

    def _finish_epoch(self, epoch: int) -> None:
        schedule = self.training.schedule
        row: Row = {
            "epoch": epoch,
            "step": self.step,
            "lr": schedule.lr * schedule.factor(self.step - 1, self.steps),
            "seconds": float(self.means["seconds"].mean_value),
            "images_per_second": self._speed(),
            **{f"train/{name}": float(mean.compute()) for name, mean in self.means.items() if name != "seconds"},
        }
        if epoch % self.training.evaluation.every == 0 or self.step == self.steps:
            self.scores, network = self._evaluate()
            row |= self.scores.row(self.job.images.classes)
            if self.scores.miou > self.best:
                self.best = self.scores.miou
                if self.fabric.is_global_zero:
                    best = {"model": network.state_dict(), "epoch": epoch, "miou": self.best}
                    save_checkpoint(self.training.folder / BEST, best)
        self.means.clear()
        if self.history is not None:
            self.history.add_epoch(row)
        self.job.progress.epoch(self.training.title, row, schedule.epochs)
        self._save()
        self._stop_if_asked(saved=True)

    def _evaluate(self) -> tuple[SegmentationScores, nn.Module]:
        """The scores so far, and the network they belong to."""
        evaluation, images, network = self.training.evaluation, self.job.images, self.state.evaluated()
        scores = score_images(
            network,
            images.evaluation(batch_size=evaluation.batch_size, far=evaluation.far, **self.share),
            images.num_classes,
            ignore_index=images.ignore_index,
            boundary_share=evaluation.boundary_share,
            device=self.fabric.device,
            autocast=self.fabric.autocast,
        )
        return scores, network

    def _stop_if_asked(self, *, saved: bool) -> None:
        asked = self.job.interrupt.asked
        if self.fabric.world_size > 1:
            if not saved and self.step % FLUSH:
                return
            asked = self.fabric.strategy.reduce_boolean_decision(asked, all=False)
        if asked:
            if not saved:
                self._save()
            raise KeyboardInterrupt

    def _save(self) -> None:
        self._flush()
        checkpoint = {
            "step": self.step,
            "origin": self.origin,
            **self.state.state_dict(),
            "means": {name: (float(mean.mean_value), float(mean.weight)) for name, mean in self.means.items()},
            "best": self.best,
            "history": self.history.epochs if self.history is not None else [],
            "steps_digest": self.history.steps_digest if self.history is not None else "",
        }
        if self.fabric.is_global_zero:
            folder = self.training.folder
            save_checkpoint(folder / LAST, checkpoint, keep_as=folder / PREVIOUS)
        self.fabric.barrier()

    def _load(self, checkpoint: dict[str, Any]) -> None:
        compare(checkpoint.get("origin", {}), self.origin, self.training.title, self.job.progress.report)
        self.step, self.best = checkpoint["step"], checkpoint["best"]
        self.state.load_state_dict(checkpoint)
        for name, (total, weight) in checkpoint["means"].items():
            self.means[name].mean_value += total
            self.means[name].weight += weight
