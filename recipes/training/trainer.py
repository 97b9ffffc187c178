"""One stretch of training that can be killed at any moment and continued to the very same weights."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricOptimizer
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import perpixel
from perpixel.evaluation import SegmentationScores, score_images
from recipes.kit.images import Images
from recipes.kit.interrupt import Interrupt
from recipes.kit.networks import build_network, select_layers
from recipes.kit.progress import Progress
from recipes.kit.randomness import random_state, seed_everything, set_random_state
from recipes.kit.settings import Schedule, Settings
from recipes.kit.weights import Weights
from recipes.training.checkpoints import BEST, LAST, PREVIOUS, load_newest, save_checkpoint
from recipes.training.history import History, Row
from recipes.training.optimizer import build_optimizer, set_training
from recipes.training.sharding import is_sharded, set_whole, whole_optimizer, whole_weights

FLUSH = 10  # steps between looks at the loss values: each look waits for the device


@dataclass
class Stretch:
    """What to train: a schedule from `start` (None: random weights), with a loss term beside the base or without."""

    folder: Path
    title: str
    seed: int
    schedule: Schedule
    start: Weights | None = None
    term: Callable[[], nn.Module] | None = None


@dataclass
class _Running:
    """Counts within the epoch under way."""

    sums: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    seconds: float = 0.0


class Trainer:
    """Runs a `Stretch`; all its state is in the checkpoint, data order and augmentation come from (seed, epoch)."""

    def __init__(
        self, fabric: Fabric, settings: Settings, images: Images, stretch: Stretch, progress: Progress, stop: Interrupt
    ) -> None:
        self.fabric, self.settings, self.images, self.stretch = fabric, settings, images, stretch
        self.progress, self.stop = progress, stop
        schedule, hardware = stretch.schedule, settings.hardware
        seed_everything(stretch.seed * 1000 + fabric.global_rank)
        self.network = build_network(settings.model, images.num_classes)
        if stretch.start is not None:
            self.network.load_state_dict(stretch.start)
        self.chosen, self.classifier = select_layers(self.network, schedule.layers, settings.model.head)
        if hardware.channels_last:
            self.network.to(memory_format=torch.channels_last)
        self.network.to(fabric.device)
        self.average = None
        if schedule.ema is not None:
            average = get_ema_multi_avg_fn(schedule.ema)
            self.average = AveragedModel(self.network, multi_avg_fn=average, use_buffers=True)
        terms = () if stretch.term is None else (stretch.term(),)
        self.criterion = perpixel.attach(
            self.network, *terms, head=settings.model.head, ignore_index=settings.data.ignore_index
        )
        self.criterion.to(fabric.device)
        network = cast(nn.Module, torch.compile(self.network)) if hardware.compile else self.network
        self.model = fabric.setup_module(network)
        self.optimizer = build_optimizer(self.network, self.classifier, schedule)
        self.wrapped_optimizer = cast(_FabricOptimizer, fabric.setup_optimizers(self.optimizer))
        self.whole: nn.Module | None = None  # beside a sharded network: all of it, to evaluate and save
        if is_sharded(fabric.strategy):
            self.whole = build_network(settings.model, images.num_classes).to(fabric.device)
        self.per_epoch = images.steps_per_epoch(schedule.batch_size)
        self.steps = schedule.epochs * self.per_epoch
        self.step, self.best = 0, -1.0
        self.running, self.pending = _Running(), list[tuple[int, float, dict[str, Tensor]]]()
        self.history: History | None = None
        self.scores: SegmentationScores | None = None

    # -- state -----------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything the rest of the training depends on."""
        return {
            "format": "perpixel.finetune 1",
            "step": self.step,
            "model": (self._gather_weights() or self.network).state_dict(),
            "ema": self.average.state_dict() if self.average is not None else {},
            "optimizer": whole_optimizer(self.network, self.optimizer) if self.whole else self.optimizer.state_dict(),
            "criterion": self._gather(self.criterion.state_dict()),
            "precision": self.fabric.strategy.precision.state_dict(),
            "random": self._gather(random_state()),
            "running": vars(self.running),
            "best": self.best,
            "history": self.history.epochs if self.history is not None else [],
        }

    def _load(self, state: dict[str, Any]) -> None:
        self.step, self.best = state["step"], state["best"]
        if self.whole is not None:
            set_whole(self.network, self.optimizer, state["model"], state["optimizer"])
        else:
            self.network.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["ema"])
        self.criterion.load_state_dict(state["criterion"][self.fabric.global_rank])
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        self.running = _Running(**state["running"])
        set_random_state(state["random"][self.fabric.global_rank])

    def _gather(self, value: Any) -> list[Any]:
        if self.fabric.world_size == 1:
            return [value]
        gathered: list[Any] = [None] * self.fabric.world_size
        torch.distributed.all_gather_object(gathered, value)
        return gathered

    def _save(self) -> None:
        self._flush()
        self._agree_on_buffers()
        state = self.state()
        if self.fabric.is_global_zero:
            folder = self.stretch.folder
            save_checkpoint(folder / LAST, state, keep_as=folder / PREVIOUS)
        self.fabric.barrier()

    # -- running ---------------------------------------------------------------------------------------------------

    def run(self) -> SegmentationScores:
        """Train to the end, from the newest sound checkpoint if there is one; the scores of the last epoch."""
        folder = self.stretch.folder
        if self.fabric.is_global_zero:
            folder.mkdir(parents=True, exist_ok=True)
        self.fabric.barrier()
        found = load_newest(folder, self.progress.report)
        if found is not None:
            self._load(found)
        if self.fabric.is_global_zero:
            self.history = History(folder, epochs=found["history"] if found else (), step=self.step)
        self.progress.begin(self.stretch.title, self.step, self.steps)
        try:
            if found is None:
                self._save()
            while self.step < self.steps:
                self._train_epoch()
            return self.scores if self.scores is not None else self._evaluate()
        finally:
            self.progress.end()
            self.criterion.remove()
            if self.history is not None:
                self.history.close()

    def _train_epoch(self) -> None:
        epoch, done = divmod(self.step, self.per_epoch)
        schedule = self.stretch.schedule
        set_training(self.network, self.chosen)
        batches = self.images.training(
            seed=self.stretch.seed,
            epoch=epoch,
            batch_size=schedule.batch_size,
            skip=done,
            rank=self.fabric.global_rank,
            world=self.fabric.world_size,
        )
        began = time.perf_counter()
        for images, labels in batches:
            self._train_step(images, labels)
            now = time.perf_counter()
            self.running.seconds += now - began
            self.running.steps += 1
            if self.step % FLUSH == 0 or self.step % self.per_epoch == 0:
                self._flush()
            if self.step % self.settings.checkpoint_every == 0 and self.step % self.per_epoch:
                self._save()
            if self.step % self.per_epoch:
                self._stop_if_asked(saved=False)
            began = time.perf_counter()
        self._finish_epoch(epoch + 1)

    def _train_step(self, images: Tensor, labels: Tensor) -> None:
        schedule = self.stretch.schedule
        factor = schedule.factor(self.step, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        layout = torch.channels_last if self.settings.hardware.channels_last else torch.contiguous_format
        images = self.fabric.to_device(images).contiguous(memory_format=layout)
        loss = self.criterion(self.model(images), self.fabric.to_device(labels))
        self.wrapped_optimizer.zero_grad()
        self.fabric.backward(loss)
        if schedule.clip is not None:
            self.fabric.clip_gradients(self.model, self.wrapped_optimizer, max_norm=schedule.clip)
        self.wrapped_optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.network)
        self.step += 1
        terms = {**self.criterion.terms, "total": loss.detach()}
        self.pending.append((self.step, schedule.lr * factor, terms))

    def _flush(self) -> None:
        """Bring the pending loss values to the host: epoch sums, step file, progress line."""
        if not self.pending:
            return
        names = list(self.pending[0][2])
        values = torch.stack([torch.stack([terms[n].float() for n in names]) for _, _, terms in self.pending])
        if self.fabric.world_size > 1:
            values = cast(Tensor, self.fabric.all_reduce(values, reduce_op="mean"))
        rows: list[Row] = []
        for (step, lr, _), numbers in zip(self.pending, values.tolist()):
            row = dict(zip(names, numbers))
            for name, number in row.items():
                self.running.sums[name] = self.running.sums.get(name, 0.0) + number
            rows.append({"step": step, "epoch": (step - 1) // self.per_epoch + 1, "lr": lr, **row})
        self.pending.clear()
        if self.history is not None:
            self.history.add_steps(rows)
        for row in rows:
            if not np.isfinite(row["total"]):
                told = ", ".join(f"{n} {row[n]:g}" for n in names)
                raise FloatingPointError(
                    f"{self.stretch.title}: the loss is no longer finite at step {row['step']} ({told}). "
                    "Try a smaller --train.lr or --loss.weight, or --train.clip 1."
                )
        speed = self.running.steps * self.stretch.schedule.batch_size / max(self.running.seconds, 1e-9)
        self.progress.advance(self.step, {n: rows[-1][n] for n in names}, speed)

    def _finish_epoch(self, epoch: int) -> None:
        steps, seconds = max(self.running.steps, 1), self.running.seconds
        row: Row = {
            "epoch": epoch,
            "step": self.step,
            "lr": self.stretch.schedule.lr * self.stretch.schedule.factor(self.step - 1, self.steps),
            "seconds": seconds,
            "images_per_second": steps * self.stretch.schedule.batch_size / max(seconds, 1e-9),
            **{f"train/{name}": value / steps for name, value in self.running.sums.items()},
        }
        if epoch % self.settings.evaluation.every == 0 or self.step == self.steps:
            self.scores = scores = self._evaluate()
            row |= scores.row(list(self.images.classes))
            if scores.miou > self.best:
                self.best = scores.miou
                if self.fabric.is_global_zero:
                    best = {"model": self.evaluated.state_dict(), "epoch": epoch, "miou": scores.miou}
                    save_checkpoint(self.stretch.folder / BEST, best)
        self.running = _Running()
        if self.history is not None:
            self.history.add_epoch(row)
        self.progress.epoch(self.stretch.title, row, self.stretch.schedule.epochs)
        self._save()
        self._stop_if_asked(saved=True)

    @property
    def evaluated(self) -> nn.Module:
        """The network whose scores count: the averaged one if there is one; of a sharded one all of it, as gathered."""
        return self.average.module if self.average is not None else self.whole or self.network

    def _gather_weights(self) -> nn.Module | None:
        """Bring `whole` up to date, if there is one."""
        if self.whole is not None:
            self.whole.load_state_dict(whole_weights(self.network))
        return self.whole

    def _evaluate(self) -> SegmentationScores:
        evaluation = self.settings.evaluation
        self._agree_on_buffers()
        self._gather_weights()
        return score_images(
            self.evaluated,
            self.images.evaluation(
                batch_size=evaluation.batch_size,
                far=evaluation.far,
                rank=self.fabric.global_rank,
                world=self.fabric.world_size,
            ),
            self.images.num_classes,
            ignore_index=self.settings.data.ignore_index,
            boundary_share=evaluation.boundary_share,
            device=self.fabric.device,
            autocast=self.fabric.autocast,
        )

    def _stop_if_asked(self, *, saved: bool) -> None:
        asked = self.stop.asked
        if self.fabric.world_size > 1:
            if not saved and self.step % FLUSH:
                return
            asked = self.fabric.strategy.reduce_boolean_decision(asked, all=False)
        if asked:
            if not saved:
                self._save()
            raise KeyboardInterrupt

    def _agree_on_buffers(self) -> None:
        """Give every process the statistics of the first, as DistributedDataParallel does before each forward pass."""
        if self.fabric.world_size > 1:
            for module in filter(None, (self.network, self.average)):
                for buffer in module.buffers():
                    torch.distributed.broadcast(buffer, 0)
