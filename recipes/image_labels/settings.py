"""The settings of a run on image labels alone."""

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from perpixel.checks import check_integer, check_number, complain
from recipes.kit.checks import check_seeds
from recipes.kit.settings import EvaluationSettings, ModelSettings, RunSettings, Schedule, pretraining

Arm = Literal["stack", "raw", "cam"]
ARMS: dict[str, str] = {  # in the order of tables
    "stack": "restored by unpooling and tied deconvolution",
    "raw": "the same layers' own features, not unpooled",
    "cam": "features of the last layer alone, as class activation mapping (CAM) takes them",
}


def _network() -> ModelSettings:
    return ModelSettings(name="deconvolution_stack", options={"backbone": "vgg11_bn", "width": 0.125, "blocks": 4})


def _schedule() -> Schedule:
    return replace(pretraining(epochs=3), lr=5e-3)


def _at_the_end() -> EvaluationSettings:
    return EvaluationSettings(every=1000)


@dataclass
class WeakSettings(RunSettings):
    """Learn to segment from which classes are in an image, and not where; do unpooled features cut false positives?

    Args:
        model: The network of all arms: deconvolution_stack, with its options but restore, which the arms set (and
            layers, which CAM sets).
        pretrain: The training with image labels alone, the same for all arms.
        pooling: What makes a score of the image of a class map: logsumexp, average or max.
        sharpness: That of logsumexp: towards 0 it is the average, towards infinity the maximum.
        background: Name of the class that is where no other is, which image labels do not teach (null: class 0 if it is
            called background, else none).
        threshold: A pixel is background where no map reaches this share of its maximum in the image.
        unsure: Pseudo-labels are void where the best two shares (that of the background is the threshold) differ by
            less.
        pseudo: Whose maps become pseudo-labels of the training images: stack, raw, cam, or null for none.
        seeds: Seeds of weights, data order and augmentation, each trains every arm.
        checkpoint_every: Steps between checkpoints (one is also written after every epoch).
        evaluation: How the arms are compared; the arg-max of the maps, without background, is scored every so many
            epochs.
    """

    matter: ClassVar[tuple[str, ...]] = (
        "data.name",
        "data.root",
        "data.size",
        "model.options",
        "pretrain.epochs",
        "pooling",
        "threshold",
        "pseudo",
        "seeds",
        "folder",
    )
    examples: ClassVar[dict[str, str]] = {
        "synthetic images, which need no files": "",
        "images and masks of one's own; of training masks only the classes are read": "--data.name folder --data.root "
        "PATH --data.size [160,160]",
        "settings from a file": "--config weak_supervision_clothing.yaml --data.root PATH",
    }
    name: str = "weak_supervision"
    model: ModelSettings = field(default_factory=_network)
    pretrain: Schedule = field(default_factory=_schedule)
    pooling: Literal["logsumexp", "average", "max"] = "logsumexp"
    sharpness: float = 4.0
    background: str | None = None
    threshold: float = 0.2
    unsure: float = 0.1
    pseudo: Arm | None = "raw"
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])
    checkpoint_every: int = 1000
    evaluation: EvaluationSettings = field(default_factory=_at_the_end)

    def __post_init__(self) -> None:
        check_number("sharpness", self.sharpness, low=0, open_low=True)
        check_number("threshold", self.threshold, low=0, high=1, open_low=True, open_high=True)
        check_number("unsure", self.unsure, low=0, high=1)
        check_seeds("seeds", self.seeds)
        check_integer("checkpoint_every", self.checkpoint_every, low=1)
        check_integer("pretrain.epochs", self.pretrain.epochs, low=1)
        if self.model.name != "deconvolution_stack":
            raise ValueError(complain("model.name", "deconvolution_stack", self.model.name, "Leave it out."))
        if "restore" in self.model.options:
            remedy = "Leave it out: the arms differ in it."
            raise ValueError(complain("model.options.restore", "nothing", self.model.options["restore"], remedy))
        if self.model.weights or self.model.checkpoint:
            remedy = "Give --model.weights_backbone: every arm starts from the same backbone."
            came = f"{self.model.weights or self.model.checkpoint}"
            raise ValueError(complain("model.weights, model.checkpoint", "null", came, remedy))
