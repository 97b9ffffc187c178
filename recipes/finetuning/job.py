"""python -m recipes.finetune: did the template-similarity loss help, against a control that differs in nothing else?"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from lightning_fabric import Fabric

import perpixel
from perpixel.checks import complain
from perpixel.evaluation import SegmentationScores
from recipes.finetuning.pictures import draw_curves, select_examples
from recipes.finetuning.results import ARMS, Results
from recipes.finetuning.settings import FinetuneSettings
from recipes.kit.command_line import named
from recipes.kit.job import Job
from recipes.kit.networks import build_network, seed_everything, select_layers
from recipes.kit.run_folder import CONFIG
from recipes.kit.settings import RunSettings, Schedule
from recipes.kit.summary import subject
from recipes.kit.tables import markdown_text
from recipes.kit.weights import Weights, load_weights, starting_weights
from recipes.training.history import Row, read_json_lines
from recipes.training.pictures import draw_predictions
from recipes.training.sharding import choose_strategy
from recipes.training.trainer import Training, train

Scores = dict[int, SegmentationScores]  # by seed
Histories = dict[str, dict[int, list[Row]]]  # by arm and seed


@dataclass
class FinetuneJob(Job):
    """One start for all seeds, or one per seed; from it a control and a loss arm for each."""

    recipe = "finetune"
    settings_class = FinetuneSettings

    settings: FinetuneSettings
    given: Weights | None = None

    @classmethod
    def read_settings(cls, parser: ArgumentParser, parsed: Namespace) -> FinetuneSettings:
        """The settings, checked, with the options of the loss."""
        settings = replace(super().read_settings(parser, parsed), loss=parsed.loss.as_dict())
        try:
            perpixel.TemplateSimilarityLoss(**settings.loss)
        except (TypeError, ValueError) as error:
            raise type(error)(f"loss.{error}") from error
        return settings

    @classmethod
    def build_fabric(cls, settings: RunSettings) -> Fabric:
        """One device or several."""
        hardware = settings.hardware
        return Fabric(
            accelerator=hardware.accelerator,
            devices=hardware.devices,
            strategy=choose_strategy(hardware.strategy),
            precision=hardware.precision,  # type: ignore[arg-type]
        )

    def prepare(self) -> None:
        """Read the weights to start from and try the settings, so that mistakes show before anything is written."""
        settings, classes = self.settings, self.images.channels
        seed_everything(0)
        network = build_network(settings.model, classes)
        weights = starting_weights(settings.model)
        if weights is not None:
            may_replace = settings.model.replace_head or bool(settings.model.weights)
            new = load_weights(
                network,
                *weights,
                replace_head=may_replace,
                num_classes=classes,
                caffe_pixels=settings.model.caffe_pixels,
            )
            if new:
                self.progress.report(f"{', '.join(new)} start at random: {weights[1]} knows another number of classes")
            self.given = network.state_dict()
        elif not settings.pretrain.epochs:
            self.progress.report("pretrain.epochs is 0: control and loss start from random weights")
        select_layers(network, settings.train.layers, settings.model.head)
        for name, schedule in (("pretrain", settings.pretrain), ("train", settings.train)):
            if schedule.ema is not None and settings.hardware.strategy == "fsdp":
                remedy = "Use --hardware.strategy ddp, or leave it out."
                raise ValueError(complain(f"{name}.ema", "null with fsdp", schedule.ema, remedy))
            with named(f"{name}."):
                self.images.steps_per_epoch(schedule.batch_size)
        if self.images.evaluated < 2:
            remedy = "Raise data.eval_images, or add images: the interval is over images."
            raise ValueError(complain("data", "at least two evaluation images", f"{self.images.evaluated}", remedy))
        self.images.check_labels(self.progress.report)

    def run(self) -> None:
        """Starts, arms, table and pictures."""
        settings = self.settings
        build_loss = partial(  # a fresh term each time, with nothing in its buffers
            perpixel.TemplateSimilarityLoss, **settings.loss, ignore_index=settings.data.ignore_index
        )
        starts: Scores = {}
        arms: dict[str, Scores] = {arm: {} for arm in ARMS}
        first: dict[str, Weights] = {}
        for seed in settings.seeds:
            scores, weights = self._train_start(seed)
            if settings.pretrain_per_seed or not starts:
                starts[seed] = scores
            for arm, term in zip(ARMS, (None, build_loss)):
                title, folder = f"seed {seed} · {arm}", self._folder(seed, arm)
                training = Training(folder, title, seed, settings.train, weights, term)
                arms[arm][seed], trained = self._train(training)
                first.setdefault(arm, trained)
        if self.fabric.is_global_zero:
            histories: Histories = {arm: {} for arm in ARMS}
            for arm, seed in itertools.product(ARMS, settings.seeds):
                histories[arm][seed] = read_json_lines(self._folder(seed, arm) / "metrics.jsonl")
            results = self._save_results(starts, arms, histories)
            pictures = self._draw(starts, arms, first, histories)
            title = f"{markdown_text(settings.name)}: did the loss help?"
            results.summary(title, subject(settings), pictures, self._files()).save(self.folder, self.progress)

    def _folder(self, seed: int, arm: str) -> Path:
        return self.folder / f"seed{seed}" / arm

    def _train_start(self, seed: int) -> tuple[SegmentationScores, Weights]:
        """The start of the arms of `seed`: given weights, or pre-training with cross-entropy alone."""
        per_seed = self.settings.pretrain_per_seed
        title, schedule = "pre-training", self.settings.pretrain
        if self.given is not None:
            title, schedule = "start", Schedule(epochs=0)
        elif per_seed:
            title = f"seed {seed} · pre-training"
        folder = self._folder(seed, "start") if per_seed else self.folder / "start"
        return self._train(Training(folder, title, seed if per_seed else 0, schedule, self.given))

    def _train(self, training: Training) -> tuple[SegmentationScores, Weights]:
        settings = self.settings
        return train(
            self, replace(training, evaluation=settings.evaluation, checkpoint_every=settings.checkpoint_every)
        )

    def _save_results(self, starts: Scores, arms: Mapping[str, Scores], histories: Histories) -> Results:
        settings = self.settings
        seconds = {arm: [row["seconds"] for rows in of.values() for row in rows] for arm, of in histories.items()}
        loss, shared = describe_loss(settings.loss), not settings.pretrain_per_seed
        results = Results(starts, arms, self.images.classes, seconds, settings.evaluation, loss, shared)
        results.save(self.folder)
        return results

    def _files(self) -> dict[str, str]:
        files = {"results.json": "all numbers of this page", CONFIG: "the settings, with all defaults"}
        for arm, seed in itertools.product(ARMS, self.settings.seeds):
            place = (self._folder(seed, arm) / "metrics.csv").relative_to(self.folder)
            files[place.as_posix()] = f"loss terms and scores by epoch: {arm}, seed {seed}"
        return files

    def _draw(
        self, starts: Scores, arms: Mapping[str, Scores], first: Mapping[str, Weights], histories: Histories
    ) -> dict[str, str]:
        """Curves of all seeds, predictions of the first: their names and what they show."""
        settings, seed = self.settings, self.settings.seeds[0]
        title = f"{settings.name}: {subject(settings)}"
        draw_curves(self.folder / "curves.png", histories, starts, title)
        networks = {}
        for arm, weights in first.items():
            networks[arm] = build_network(settings.model, self.images.channels).eval()
            networks[arm].load_state_dict(weights)
        examples = select_examples(arms["control"][seed], arms["loss"][seed], settings.evaluation.pictures)
        path = self.folder / "predictions.png"
        draw_predictions(path, networks, self.images, examples, f"{title}, seed {seed}")
        shown = {
            "predictions.png": "where control and loss differ the most, for better and for worse, and a typical image"
        }
        return (shown if examples else {}) | {
            "curves.png": "loss terms and scores by epoch; epoch 0 is the shared start"
        }


def describe_loss(options: Mapping[str, Any]) -> str:
    """The loss with the options that matter, such as "template similarity, weight 0.05, cosine, peak templates"."""
    parts = ["template similarity", f"weight {options['weight']:g}", str(options["similarity"])]
    parts += ["selective"] if options["selective"] else []
    parts += [f"contrast at temperature {options['temperature']:g}"] if options["objective"] == "contrast" else []
    parts += [f"{options['template']} templates" if isinstance(options["template"], str) else "own templates"]
    momentum = options.get("running_momentum")
    return ", ".join(parts + ([f"running with momentum {momentum:g}"] if momentum is not None else []))
