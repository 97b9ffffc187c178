"""The settings of an evaluation."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from perpixel.checks import complain
from recipes.kit.settings import AnalysisSettings, EvaluationSettings

TEXTS = {  # on the command line, in place of those of a training
    "data.root": "Folder of the data set; one's own needs only eval_split/images and eval_split/masks in it.",
    "data.eval_split": "Part to score on, such as test.",
    "model.checkpoint": "A safetensors file or a state dict of torch.save to score.",
    "model.weights": "Name of torchvision weights of the whole network, such as DEFAULT, to score.",
    "evaluation.every": "Of no use here: for the settings of a run, which have it.",
}


@dataclass
class EvaluateSettings(AnalysisSettings):
    """How good is a network, or every arm of a run, on any split of any data, class by class?

    Args:
        run: A run folder with trained networks, whose data, model and evaluation settings are used (data and evaluation
            settings given beside it win). Without it: model.checkpoint or model.weights.
        arm: Which networks of that run: names such as control, for all of its seeds, or seed0/control for one (null:
            all). Of two, the second is compared with the first.
        evaluation: How they are scored and compared.
    """

    matter: ClassVar[tuple[str, ...]] = (
        "run",
        "arm",
        "model.checkpoint",
        "model.name",
        "data.name",
        "data.root",
        "data.eval_split",
        "data.size",
        "data.binary",
        "folder",
    )
    examples: ClassVar[dict[str, str]] = {
        "all seeds of one arm of a run, on a test set": "--run RUN_FOLDER --arm control --data.root PATH "
        "--data.eval_split test",
        "two arms, compared": "--run RUN_FOLDER --arm [control,loss] --data.root PATH --data.eval_split test",
        "weights of one's own": "--model.checkpoint FILE --model.name deeplabv3_resnet50 --data.name folder "
        "--data.root PATH --data.eval_split test",
    }
    name: str = "evaluate"
    arm: list[str] | None = None
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)

    def __post_init__(self) -> None:
        given = self.model.checkpoint or self.model.weights
        if self.run is None and not given:
            remedy = "Give --run RUN_FOLDER, --model.checkpoint FILE or --model.weights NAME."
            raise ValueError(complain("run, model.checkpoint, model.weights", "one of them", "none", remedy))
        if self.run is None and self.arm is not None:
            remedy = "Give --run RUN_FOLDER, or leave --arm out."
            raise ValueError(complain("arm", "nothing beside a single network", self.arm, remedy))
        if self.arm is not None and (not self.arm or len(set(self.arm)) < len(self.arm)):
            raise ValueError(complain("arm", "null, or one or more different names", self.arm, "Leave it out for all."))
        super().__post_init__()

    @classmethod
    def add_to(cls, parser: Any) -> None:
        """Every field but those of a training, and `part`: nothing is trained here, and `arm` may name one network."""
        parser.add_class_arguments(cls, skip={"pretrain", "part", "seed"})
        for action in parser._actions:
            action.help = TEXTS.get(action.dest, action.help)
