"""The settings of a fine-tuning run."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import perpixel
from perpixel.checks import check_integer, complain
from recipes.kit.checks import check_seeds
from recipes.kit.settings import EvaluationSettings, RunSettings, Schedule

# texts for the command line, in plain words
LOSS_OPTIONS = {
    "loss.weight": "How much the loss counts beside the cross-entropy.",
    "loss.similarity": "cosine, or correlation (the cosine of features less their mean over the channels).",
    "loss.selective": "Count only the pixels that the network labels wrong.",
    "loss.objective": "similarity (towards the template of the own class, away from the others), or contrast (the "
    "cross-entropy of the similarities).",
    "loss.temperature": "What contrast divides the similarities by.",
    "loss.template": "What stands for a class: peak (its most certain pixel) or mean (of all its pixels).",
    "loss.detach_templates": "Let no gradient flow through the templates.",
    "loss.reduction": "mean over the counted pixels, or their sum.",
    "loss.share_templates": "On several devices: templates of the images of all of them.",
    "loss.validate": "Check labels, features and logits at every step, which takes time on a GPU.",
    "loss.running_momentum": "Compare with a moving average of the templates, of this momentum in [0, 1) (null: with "
    "those of the batch).",
}


def _fine_tuning() -> Schedule:
    return Schedule(epochs=4, optimizer="adamw", lr=1e-3, bias_multiplier=1.0, head_multiplier=1.0)


@dataclass
class FinetuneSettings(RunSettings):
    """Fine-tune a segmentation network with and without a template-similarity loss, and say whether the loss helped.

    Args:
        pretrain: The short cross-entropy training from scratch; skipped when model.weights or model.checkpoint says
            where to start.
        seeds: Seeds of data order, augmentation and dropout; each trains one control and one loss arm.
        pretrain_per_seed: Pre-train once per seed instead of one start for all.
        checkpoint_every: Steps between checkpoints (one is also written after every epoch).
        train: The fine-tuning, the same for control and loss.
        evaluation: How they are compared.
        loss: Options of the template-similarity loss.
    """

    matter: ClassVar[tuple[str, ...]] = (
        "data.name",
        "data.root",
        "data.binary",
        "data.size",
        "model.name",
        "model.weights",
        "train.epochs",
        "loss.weight",
        "seeds",
        "folder",
    )
    examples: ClassVar[dict[str, str]] = {
        "a small network on synthetic images, which need no files": "",
        "images and masks of one's own": "--data.name folder --data.root PATH --model.name deeplabv3_resnet50 "
        "--model.weights DEFAULT",
        "masks of 0 and 1, or 0 and 255": "--data.name folder --data.root PATH --data.binary true",
        "settings from a file": "--config camvid.yaml --data.root PATH",
    }
    name: str = "finetune"
    seeds: list[int] = field(default_factory=lambda: [0])
    pretrain_per_seed: bool = False
    checkpoint_every: int = 100
    train: Schedule = field(default_factory=_fine_tuning)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    loss: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_integer("checkpoint_every", self.checkpoint_every, low=1)
        check_seeds("seeds", self.seeds)
        check_integer("train.epochs", self.train.epochs, low=1)
        if self.train.layers == "head":
            remedy = "The loss acts on the features, which are frozen then: both arms would train alike."
            raise ValueError(complain("train.layers", "last-3 or all", "head", remedy))

    @classmethod
    def add_to(cls, parser: Any) -> None:
        """Every field, and the options of the loss; a template of one's own is for Python, not here."""
        parser.add_class_arguments(cls, skip={"loss"})
        parser.add_class_arguments(perpixel.TemplateSimilarityLoss, "loss", skip={"ignore_index", "template"})
        loss = parser.groups["loss"]
        loss.title = "Options of the template-similarity loss"
        loss.add_argument("--loss.template", type=Literal["peak", "mean"], default="peak")
        parser.set_defaults({"loss.weight": 0.05})
        for action in parser._actions:
            action.help = LOSS_OPTIONS.get(action.dest, action.help)
