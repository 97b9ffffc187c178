"""python -m recipes.finetune: did the template-similarity loss help, against a control that differs in nothing else?"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from lightning_fabric import Fabric
from rich.console import Console
from torch import nn

import perpixel
from perpixel.checks import complain
from perpixel.evaluation import SegmentationScores
from recipes.finetuning.comparison import Arms, compare, in_words, rich_table, save_comparison
from recipes.finetuning.pictures import draw_curves, draw_predictions, telling_images
from recipes.kit.command_line import Command, as_yaml, read_arguments, recipe_parser, set_threads
from recipes.kit.images import Images
from recipes.kit.interrupt import Interrupt
from recipes.kit.networks import build_network, select_layers
from recipes.kit.progress import Progress
from recipes.kit.randomness import seed_everything
from recipes.kit.run_folder import CONFIG, choose_folder, write_atomically
from recipes.kit.settings import Schedule, Settings
from recipes.kit.weights import Weights, load_weights, starting_weights, unwrap_weights
from recipes.training.checkpoints import LAST, DamagedCheckpoint, load_checkpoint, save_checkpoint
from recipes.training.history import read_json_lines
from recipes.training.sharding import choose_strategy
from recipes.training.trainer import Stretch, Trainer

SCORES = "scores.pt"


def build_parser() -> ArgumentParser:
    """The command line: every field of Settings, and the options of the loss."""
    example = "--config recipes/configs/camvid.yaml --data.root ../data/camvid"
    parser = recipe_parser("finetune", Settings, nested="data.root", example=example)
    parser.add_class_arguments(perpixel.TemplateSimilarityLoss, "loss", skip={"ignore_index"})
    parser.set_defaults({"loss.weight": 0.05})
    return parser


@dataclass
class Job:
    """What every part of a run needs."""

    settings: Settings
    loss_options: dict[str, Any]
    folder: Path
    fabric: Fabric
    images: Images
    progress: Progress
    stop: Interrupt
    given: Weights | None = None

    def loss(self) -> nn.Module:
        """A fresh loss term, with nothing in its buffers."""
        return perpixel.TemplateSimilarityLoss(**self.loss_options, ignore_index=self.settings.data.ignore_index)

    def run(self, stretch: Stretch) -> tuple[SegmentationScores, Weights]:
        """Train a stretch, or read what it gave when it was finished before: scores and the weights they belong to."""
        path = stretch.folder / SCORES
        try:
            if path.exists():
                scores = SegmentationScores(**load_checkpoint(path))
                return scores, unwrap_weights(load_checkpoint(stretch.folder / LAST), str(stretch.folder / LAST))
        except (DamagedCheckpoint, FileNotFoundError) as error:
            self.progress.report(f"damaged result: {error}; it is computed again")
        trainer = Trainer(self.fabric, self.settings, self.images, stretch, self.progress, self.stop)
        scores = trainer.run()
        weights = {name: value.detach().cpu().clone() for name, value in trainer.evaluated.state_dict().items()}
        if self.fabric.is_global_zero:
            save_checkpoint(path, vars(scores))
        self.fabric.barrier()
        return scores, weights

    def prepare(self) -> None:
        """Read the weights to start from and try the settings, so that mistakes show before anything is written."""
        settings, classes = self.settings, self.images.num_classes
        seed_everything(0)
        network = build_network(settings.model, classes)
        chosen = starting_weights(settings.model)
        if chosen is not None:
            replace = settings.model.replace_head or bool(settings.model.weights)
            new = load_weights(network, *chosen, replace_head=replace, num_classes=classes)
            if new:
                self.progress.report(f"{', '.join(new)} start at random: {chosen[1]} knows another number of classes")
            self.given = network.state_dict()
        select_layers(network, settings.train.layers, settings.model.head)
        for schedule in (settings.pretrain, settings.train):
            if schedule.ema is not None and settings.hardware.strategy == "fsdp":
                remedy = "Use --hardware.strategy ddp, or leave it out."
                raise ValueError(complain("ema", "null with fsdp", schedule.ema, remedy))
            self.images.steps_per_epoch(schedule.batch_size)

    def start(self, seed: int) -> tuple[SegmentationScores, Weights]:
        """The start of the arms of `seed`: given weights, or pre-training with cross-entropy alone."""
        settings = self.settings
        own = seed if settings.pretrain_per_seed else 0
        folder = self.folder / (f"seed{seed}/start" if settings.pretrain_per_seed else "start")
        name = f"seed {seed} · pre-training" if settings.pretrain_per_seed else "pre-training"
        schedule = settings.pretrain
        if self.given is not None:
            name, schedule = "start", Schedule(epochs=0)
        return self.run(Stretch(folder, name, own, schedule, self.given))

    def everything(self) -> None:
        """Starts, arms, table and pictures."""
        arms: dict[int, Arms] = {}
        starts: dict[int, SegmentationScores] = {}
        folders: dict[str, dict[int, Path]] = {"control": {}, "loss": {}}
        shown: dict[str, Weights] = {}
        for seed in self.settings.seeds:
            scores, weights = self.start(seed)
            if self.settings.pretrain_per_seed or not starts:
                starts[seed] = scores
            found: dict[str, SegmentationScores] = {}
            for arm, term in (("control", None), ("loss", self.loss)):
                folders[arm][seed] = self.folder / f"seed{seed}" / arm
                title = f"seed {seed} · {arm}"
                stretch = Stretch(folders[arm][seed], title, seed, self.settings.train, weights, term)
                found[arm], trained = self.run(stretch)
                shown.setdefault(arm, trained)
            arms[seed] = found
        if self.fabric.is_global_zero:
            self._conclude(starts, arms, folders, shown)

    def _conclude(
        self,
        starts: dict[int, SegmentationScores],
        arms: dict[int, Arms],
        folders: dict[str, dict[int, Path]],
        shown: dict[str, Weights],
    ) -> None:
        settings, console = self.settings, self.progress.console
        seconds = {
            arm: [row["seconds"] for folder in by_seed.values() for row in read_json_lines(folder / "metrics.jsonl")]
            for arm, by_seed in folders.items()
        }
        comparison = compare(
            starts,
            arms,
            seconds,
            classes=list(self.images.classes),
            evaluation=settings.evaluation,
            loss=describe_loss(self.loss_options),
            shared_start=not settings.pretrain_per_seed,
        )
        save_comparison(comparison, self.folder)
        title = f"{settings.name}: {settings.model.name} on {settings.data.name}"
        draw_curves(folders, starts, self.folder / "curves.png", title)
        networks = {}
        for arm, weights in shown.items():
            networks[arm] = build_network(settings.model, self.images.num_classes)
            networks[arm].load_state_dict(weights)
        first = settings.seeds[0]
        picks = telling_images(arms[first]["control"], arms[first]["loss"], settings.evaluation.pictures)
        draw_predictions(networks, self.images, picks, self.folder / "predictions.png", f"{title}, seed {first}")
        console.print(rich_table(comparison))
        for sentence in in_words(comparison):
            self.progress.report(f"- {sentence}")
        self.progress.report(f"\nTable, pictures, metrics and checkpoints: {self.folder}")


def describe_loss(options: dict[str, Any]) -> str:
    """The loss with the options that matter, such as "template similarity, weight 0.05, cosine, peak templates"."""
    parts = ["template similarity", f"weight {options['weight']:g}", str(options["similarity"])]
    parts += ["selective"] if options["selective"] else []
    parts += [f"contrast at temperature {options['temperature']:g}"] if options["objective"] == "contrast" else []
    parts += [f"{options['template']} templates" if isinstance(options["template"], str) else "own templates"]
    momentum = options.get("running_momentum")
    return ", ".join(parts + ([f"running with momentum {momentum:g}"] if momentum is not None else []))


def understand(parser: ArgumentParser, parsed: Namespace) -> tuple[Settings, dict[str, Any]]:
    """Settings, and the loss' options, both checked."""
    ready = parser.instantiate(parsed)
    settings = Settings(**{name: ready[name] for name in Settings.__dataclass_fields__})
    options = {**parsed.loss.as_dict(), "template": ready.loss.template}
    return settings, options


def main(arguments: list[str] | None = None) -> int:
    """Run the recipe; the exit status is 0, 1 after a mistake of the user or a full disk, 130 when interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    console = Console(width=None if sys.stdout.isatty() else 118)
    return Command(console, "python -m recipes.finetune").status(lambda attempt: _run(given, attempt))


def _run(arguments: list[str], attempt: Command) -> None:
    parser = build_parser()
    parsed, resumed = read_arguments(parser, arguments)
    settings, loss_options = understand(parser, parsed)
    hardware = settings.hardware
    set_threads(hardware)
    fabric = Fabric(
        accelerator=hardware.accelerator,
        devices=hardware.devices,
        strategy=choose_strategy(hardware.strategy),
        precision=hardware.precision,  # type: ignore[arg-type]
    )
    fabric.launch()
    chosen = resumed or choose_folder(settings.folder, settings.out, settings.name)
    folder = Path(fabric.broadcast(str(chosen)))
    progress = Progress(attempt.console, shown=fabric.is_global_zero)
    job = Job(settings, loss_options, folder, fabric, Images(settings.data), progress, Interrupt())
    job.prepare()
    attempt.folder = folder
    with job.stop:
        if fabric.is_global_zero and resumed is None:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / CONFIG, as_yaml(parser, parsed).encode())
        fabric.barrier()
        progress.report(f"run folder: {folder}")
        job.everything()
