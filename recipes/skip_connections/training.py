"""All arms with all seeds: scores trained on cached features, or whole networks by the house's trainer."""

import contextlib
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from perpixel.evaluation import SegmentationScores, score_images
from perpixel.models import FeatureMap, SkipHead
from perpixel.outputs import class_logits
from recipes.kit.images import Images
from recipes.kit.job import Job
from recipes.kit.networks import seed_everything
from recipes.kit.weights import Weights
from recipes.skip_connections.features import CachedFeatures, CachedNetwork, cache_features
from recipes.skip_connections.networks import StudyNetworks
from recipes.training.history import read_json_lines
from recipes.training.optimizer import build_optimizer
from recipes.training.origin import keep, origin
from recipes.training.state import TrainingState
from recipes.training.trainer import Training, train


@dataclass(frozen=True)
class Trained:
    """A network of one arm and seed: scores, weights (of its head alone where the backbone was frozen), seconds."""

    scores: SegmentationScores
    weights: Weights
    seconds: float


ByArm = dict[str, dict[int, Trained]]  # and seed
Parts = tuple[CachedFeatures, CachedFeatures]  # of the images to train on and to evaluate on


@dataclass(frozen=True)
class Cost:
    """Of cached features: bytes, seconds to compute them; steps of a training; seconds of one of all layers, or NaN."""

    bytes: int
    seconds: float
    steps: int
    whole_step: float


def train_whole(job: Job, networks: StudyNetworks) -> ByArm:
    """End to end, every arm from the same backbone."""
    settings = job.settings
    trained: ByArm = {arm: {} for arm in networks.arms}
    for seed in settings.seeds:
        for arm, maps in networks.arms.items():
            folder, start = job.folder / f"seed{seed}" / arm, networks.start(maps, seed).state_dict()
            training = Training(folder, f"seed {seed} · {arm}", seed, settings.train, start)
            scores, weights = train(job, as_set(job, training, networks.settings(maps)))
            seconds = sum(row["seconds"] for row in read_json_lines(folder / "metrics.jsonl"))
            trained[arm][seed] = Trained(scores, weights, seconds)
    return trained


def as_set(job: Job, training: Training, model: Any) -> Training:
    """The training with the evaluation and the checkpoints of the settings."""
    settings = job.settings
    return replace(training, model=model, evaluation=settings.evaluation, checkpoint_every=settings.checkpoint_every)


def train_heads(job: Job, networks: StudyNetworks) -> tuple[ByArm, Cost]:
    """On features that are computed once; results that are there already need none."""
    settings = job.settings
    parts = {"train": settings.train, "half": settings.study.half, "evaluation": settings.evaluation}
    began = origin(job, **parts, backbone=networks.backbone)
    trained: ByArm = {arm: {} for arm in networks.arms}
    with cached_parts(job, networks) as features:

        def measure() -> dict[str, float]:
            began = time.perf_counter()
            size = sum(one.bytes for one in features())
            seconds = time.perf_counter() - began
            steps = settings.train.epochs * job.images.steps_per_epoch(settings.train.batch_size)
            whole = seconds_of_whole_step(job, networks)
            return {"bytes": size, "seconds": seconds, "steps": steps, "whole_step": whole}

        cost = Cost(**keep(job.folder / "heads" / "cost.pt", began, measure, job.progress.report))
        for arm, maps in networks.arms.items():
            names = [one.name for one in maps]
            for seed in job.each(arm, settings.seeds, len(settings.seeds)):
                path, now = job.folder / "heads" / arm / f"seed{seed}.pt", {**began, "layers": names, "seed": seed}
                make = lambda seed=seed, maps=maps: train_head(job, maps, seed, *features())  # noqa: E731
                found = keep(path, now, make, job.progress.report)
                trained[arm][seed] = Trained(SegmentationScores(**found["scores"]), found["weights"], found["seconds"])
    return trained, cost


@contextlib.contextmanager
def cached_parts(job: Job, networks: StudyNetworks) -> Iterator[Callable[[], Parts]]:
    """The features of all arms, computed when they are first asked for; files of them end with the context."""
    settings, folder = job.settings, job.folder / "features"
    study, device = settings.study, job.fabric.device

    @cache
    def features() -> Parts:
        network, found = networks.frozen.to(device), []
        plain = replace(settings.data, eval_split=settings.data.train_split, eval_images=settings.data.train_images)
        for part, images in (("training", Images(plain)), ("evaluation", job.images)):
            batches = images.evaluation(batch_size=settings.evaluation.batch_size, far=settings.evaluation.far)
            listed = job.each(f"features of the {part} images", batches, images.evaluated, lambda batch: len(batch[0]))
            where = (folder / part, study.memory * 10**6 // 2)
            found.append(cache_features(network, listed, images.evaluated, device, half=study.half, where=where))
        return found[0], found[1]

    try:
        yield features
    finally:
        features.cache_clear()
        shutil.rmtree(folder, ignore_errors=True)


def train_head(
    job: Job, maps: Sequence[FeatureMap], seed: int, training: CachedFeatures, evaluation: CachedFeatures
) -> dict[str, Any]:
    """Scores of these maps, trained: their weights, `SegmentationScores` as a dictionary, seconds of the training.

    The same seed gives every head the same order of images and the same score of the last map to begin with.
    """
    settings, images, device = job.settings, job.images, job.fabric.device
    schedule, names = settings.train, [one.name for one in maps]
    seed_everything(seed)
    head = SkipHead(maps, images.channels).to(device)
    network = CachedNetwork(head, names, training)
    optimizer = build_optimizer(head, "classifier", schedule)
    count, size = len(training.labels), schedule.batch_size
    per_epoch = count // size
    scheduler = LambdaLR(optimizer, lambda step: schedule.factor(step, schedule.epochs * per_epoch))
    began = time.perf_counter()
    for epoch in range(schedule.epochs):
        order = torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(count))
        for places in order[: per_epoch * size].split(size):
            labels = training.labels[places].to(device).long()
            logits = class_logits(network(places))
            total = F.cross_entropy(logits, labels, ignore_index=images.ignore_index, reduction="sum")
            loss = total / (labels != images.ignore_index).sum().clamp(min=1)
            optimizer.zero_grad()
            loss.backward()
            if schedule.clip is not None:
                torch.nn.utils.clip_grad_norm_(head.parameters(), schedule.clip)
            optimizer.step()
            scheduler.step()
        job.stop_if_asked()
    seconds = time.perf_counter() - began
    if not bool(torch.isfinite(loss.detach())):
        raise FloatingPointError(f"{', '.join(names)}: the loss is no longer finite. Try a smaller --train.lr.")
    scores = score_images(
        CachedNetwork(head, names, evaluation),
        evaluation.batches(settings.evaluation.batch_size),
        images.num_classes,
        ignore_index=images.ignore_index,
        boundary_share=settings.evaluation.boundary_share,
        device=device,
    )
    weights = {name: value.detach().cpu() for name, value in head.state_dict().items()}
    return {"weights": weights, "scores": vars(scores), "seconds": seconds, "loss": float(loss.detach())}


def seconds_of_whole_step(job: Job, networks: StudyNetworks) -> float:
    """Of a training step of all of a network, on a batch of the study: the least of a few after a first; else NaN."""
    settings, maps = job.settings, list(networks.arms.values())[len(networks.arms) // 2]
    if not (count := settings.study.timed_steps):
        return math.nan
    start = networks.start(maps, 0).state_dict()
    training = Training(job.folder, "", 0, settings.train, start, model=networks.settings(maps))
    state = TrainingState(job, training, 1 + count)
    state.train()
    images, labels = next(job.images.training(seed=0, epoch=0, batch_size=settings.train.batch_size))
    took = []
    for _ in job.each("steps of a whole network", range(1 + count), 1 + count):
        began = time.perf_counter()
        float(state.step(images, labels)["total"])
        took.append(time.perf_counter() - began)
    state.criterion.remove()
    return min(took[1:])
