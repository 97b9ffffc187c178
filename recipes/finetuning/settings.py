"""The settings of a fine-tuning run."""

from dataclasses import dataclass, field
from typing import Any

from perpixel.checks import check_integer
from recipes.kit.checks import check_seeds
from recipes.kit.settings import EvaluationSettings, RunSettings, Schedule


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
