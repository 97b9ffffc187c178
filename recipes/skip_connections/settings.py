"""The settings of a study of skip connections."""

from dataclasses import dataclass, field
from typing import ClassVar

from perpixel.checks import check_integer, complain
from recipes.kit.checks import check_seeds
from recipes.kit.settings import EvaluationSettings, ModelSettings, RunSettings, Schedule, pretraining


def _heads() -> Schedule:
    return Schedule(
        epochs=1, batch_size=8, optimizer="adamw", lr=0.01, weight_decay=0.0, bias_multiplier=1.0, head_multiplier=1.0
    )


@dataclass
class StudySettings:
    """Which skips are compared, and how they are trained.

    Args:
        layers: Nodes of the backbone to skip from: their names, or those of modules; blocks (the ends of its blocks, a
            dozen at most), or all.
        end_to_end: Train the whole network for every layer and seed, instead of scores on cached features.
        half: Keep cached features in half precision.
        memory: Megabytes of cached features from which on they are kept in files, under the run folder.
        fixation_images: Evaluation images whose labels are traced to see where they rest, two or more (0: none).
        timed_steps: End-to-end steps to measure what the cached features save (0: none).
    """

    layers: list[str] = field(default_factory=lambda: ["blocks"])
    end_to_end: bool = False
    half: bool = True
    memory: int = 2000
    fixation_images: int = 12
    timed_steps: int = 3

    def __post_init__(self) -> None:
        for name in ("memory", "fixation_images", "timed_steps"):
            check_integer(f"study.{name}", getattr(self, name), low=0)
        if self.fixation_images == 1:
            raise ValueError(complain("study.fixation_images", "0, or at least 2", "1", "Intervals are over images."))
        if not self.layers or (len(self.layers) > 1 and {"all", "blocks"} & set(self.layers)):
            expected = "blocks, all, or the names of nodes"
            raise ValueError(
                complain("study.layers", expected, self.layers, "Example: --study.layers [layer2,layer3].")
            )


@dataclass
class SkipStudySettings(RunSettings):
    """Which single skip connection helps a backbone most, and what does it bring: outline or meaning?

    Args:
        model: The backbone, model.options {backbone: NAME}; with model.weights_backbone it stays as torchvision trained
            it, else it is trained first, without a skip.
        pretrain: That training.
        seeds: Seeds of the order of the images and of the first weights of the scores.
        study: Which skips are compared, and how they are trained.
        train: The training of every network of the study, the same for all.
        checkpoint_every: Steps between checkpoints of trainings of whole networks.
        evaluation: How they are compared.
        hardware: Where it runs; one device.
    """

    matter: ClassVar[tuple[str, ...]] = (
        "data.name",
        "data.root",
        "data.size",
        "model.options",
        "model.weights_backbone",
        "study.layers",
        "study.end_to_end",
        "train.epochs",
        "seeds",
        "folder",
    )
    examples: ClassVar[dict[str, str]] = {
        "ResNet-18 on synthetic images, which need no files": "",
        "images and masks of one's own, a backbone that torchvision trained": "--data.name folder --data.root PATH "
        "--data.size [256,256] --model.options '{backbone: resnet50}' --model.weights_backbone DEFAULT",
        "some layers only": "--study.layers [layer1,layer2,layer3]",
    }
    name: str = "skip_study"
    model: ModelSettings = field(default_factory=lambda: ModelSettings("single_skip", options={"backbone": "resnet18"}))
    pretrain: Schedule = field(default_factory=lambda: pretraining(4))
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])
    study: StudySettings = field(default_factory=StudySettings)
    train: Schedule = field(default_factory=_heads)
    checkpoint_every: int = 100
    evaluation: EvaluationSettings = field(default_factory=lambda: EvaluationSettings(every=4))

    def __post_init__(self) -> None:
        check_seeds("seeds", self.seeds)
        check_integer("checkpoint_every", self.checkpoint_every, low=1)
        check_integer("train.epochs", self.train.epochs, low=1)
        if self.model.name != "single_skip" or "layer" in self.model.options:
            came = f"{self.model.name} with {self.model.options}"
            remedy = "The layers are those of study.layers."
            raise ValueError(complain("model", "single_skip with the option backbone alone", came, remedy))
        if str(self.hardware.devices) != "1":
            remedy = "Leave it out: this recipe runs on one device."
            raise ValueError(complain("hardware.devices", "1", self.hardware.devices, remedy))
        if not self.study.end_to_end and (self.train.ema is not None or self.train.layers != "all"):
            came = f"ema {self.train.ema}, layers {self.train.layers}"
            remedy = "Leave them out, or give --study.end_to_end true."
            raise ValueError(complain("train", "no ema and all layers for scores on cached features", came, remedy))
        if not (self.model.weights_backbone or self.model.checkpoint or self.pretrain.epochs):
            remedy = "Give --pretrain.epochs 1 or more, or weights: --model.weights_backbone or --model.checkpoint."
            raise ValueError(complain("pretrain.epochs", "a training where no weights are given", "0", remedy))

    @property
    def backbone(self) -> str:
        """torchvision's name of the backbone."""
        return str(self.model.options.get("backbone", "resnet18"))
