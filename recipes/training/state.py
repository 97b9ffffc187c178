"""All that a training step changes, and so all that a checkpoint holds of the model."""

import random
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning_fabric.strategies import ModelParallelStrategy
from lightning_fabric.wrappers import _FabricOptimizer
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import perpixel
from recipes.kit.job import Job
from recipes.kit.networks import build_network, select_layers
from recipes.kit.settings import EvaluationSettings, ModelSettings, Schedule
from recipes.kit.weights import Weights
from recipes.training.optimizer import build_optimizer, set_training
from recipes.training.sharding import WHOLE


@dataclass
class Training:
    """What to train: a schedule from `start` (None: random weights), with a loss term beside the base or without.

    term, base: make them (base None: cross-entropy); model: the network (None: that of the settings).
    """

    folder: Path
    title: str
    seed: int
    schedule: Schedule
    start: Weights | None = None
    term: partial[Any] | None = None
    base: partial[Any] | None = None
    model: ModelSettings | None = None
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    checkpoint_every: int = 100


class TrainingState:
    """Network, average of its weights, criterion, optimizer and learning rates, on one process or several."""

    def __init__(self, job: Job, training: Training, steps: int) -> None:
        schedule, model = training.schedule, training.model or job.settings.model
        self.fabric, self.schedule, self.layout = job.fabric, schedule, torch.contiguous_format
        hardware, device = job.settings.hardware, job.fabric.device
        self.network = build_network(model, job.images.channels)
        if training.start is not None:
            self.network.load_state_dict(training.start)
        self.trained, classifier = select_layers(self.network, schedule.layers, model.head)
        if hardware.channels_last:
            self.layout = torch.channels_last
            self.network.to(memory_format=torch.channels_last)
        self.network.to(device)
        self.average = None
        if schedule.ema is not None:
            average = get_ema_multi_avg_fn(schedule.ema)
            self.average = AveragedModel(self.network, multi_avg_fn=average, use_buffers=True)
        terms = () if training.term is None else (training.term(),)
        base = None if training.base is None else training.base()
        self.criterion = perpixel.attach(
            self.network, *terms, base=base, head=model.head, ignore_index=job.settings.data.ignore_index
        ).to(device)
        network = cast(nn.Module, torch.compile(self.network)) if hardware.compile else self.network
        self.model = self.fabric.setup_module(network)
        self.optimizer = build_optimizer(self.network, classifier, schedule)
        self.scheduler = LambdaLR(self.optimizer, lambda step: schedule.factor(step, steps))
        self.wrapped_optimizer = cast(_FabricOptimizer, self.fabric.setup_optimizers(self.optimizer))
        self.whole: nn.Module | None = None  # beside a sharded network: all of it, to evaluate and save
        if isinstance(self.fabric.strategy, ModelParallelStrategy):
            self.whole = build_network(model, job.images.channels).to(device)

    def step(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """One step on this process' share of a batch; the loss terms and their "total", still on the device."""
        images = self.fabric.to_device(images).contiguous(memory_format=self.layout)
        loss = self.criterion(self.model(images), self.fabric.to_device(labels))
        self.wrapped_optimizer.zero_grad()
        self.fabric.backward(loss)
        if self.schedule.clip is not None:
            self.fabric.clip_gradients(self.model, self.wrapped_optimizer, max_norm=self.schedule.clip)
        self.wrapped_optimizer.step()
        self.scheduler.step()
        if self.average is not None:
            self.average.update_parameters(self.network)
        return {**self.criterion.terms, "total": loss.detach()}

    def train(self) -> None:
        """Training mode for the layers that train."""
        set_training(self.network, self.trained)

    def evaluated(self) -> nn.Module:
        """The network whose scores count, the same on all processes: the average of its weights if there is one."""
        network = self._gather_network()
        return self.average.module if self.average is not None else network

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint; every process must ask."""
        optimizer = self.optimizer.state_dict()
        if self.whole is not None:
            optimizer = dict(get_optimizer_state_dict(self.network, self.optimizer, options=WHOLE))
        return {
            "model": self._gather_network().state_dict(),
            "ema": self.average.state_dict() if self.average is not None else {},
            "optimizer": optimizer,
            "scheduler": self.scheduler.state_dict(),
            "criterion": self._gather(self.criterion.state_dict()),
            "precision": self.fabric.strategy.precision.state_dict(),
            "random": self._gather(random_state()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        rank = self.fabric.global_rank
        if self.whole is not None:
            set_model_state_dict(self.network, state["model"], options=WHOLE)
            set_optimizer_state_dict(self.network, self.optimizer, state["optimizer"], options=WHOLE)
        else:
            self.network.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["ema"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.criterion.load_state_dict(state["criterion"][rank])
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        set_random_state(state["random"][rank])

    def _gather(self, value: Any) -> list[Any]:
        if self.fabric.world_size == 1:
            return [value]
        gathered: list[Any] = [None] * self.fabric.world_size
        torch.distributed.all_gather_object(gathered, value)
        return gathered

    def _gather_network(self) -> nn.Module:
        """All of the network, with the statistics of the first process, as DistributedDataParallel has them too."""
        if self.fabric.world_size > 1:
            for module in filter(None, (self.network, self.average)):
                for buffer in module.buffers():
                    torch.distributed.broadcast(buffer, 0)
        if self.whole is None:
            return self.network
        self.whole.load_state_dict(get_model_state_dict(self.network, options=WHOLE))
        return self.whole


def random_state() -> dict[str, Any]:
    """The state of all generators, of types that `torch.load(weights_only=True)` accepts."""
    kind, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached),
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Put back what `random_state` gave."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
