"""The settings of a fixation run: dataclasses that become the YAML file and the command line."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, get_args

from perpixel.checks import check_integer, check_number, complain
from perpixel.fixations import FixationRules, Share
from recipes.kit.settings import AnalysisSettings, MeasureSettings

Part = Literal["image", "shares", "counts", "evidence"]
Shift = Literal["full", "partial", "none"]
SHIFTS: tuple[Shift, ...] = get_args(Shift)


@dataclass
class TraceSettings:
    """How points are followed.

    Args:
        rules: modern, or seg-unravel (as published).
        select: What a convolution's inputs are ranked by (modern): channel, or element (single contributions).
        shift: full, partial or none, for the pictures and the evidence; the shares are measured under all three.
        k: How many inputs a point moves to: a number from 1, a share of the activation between 0 and 1, or resolution.
        question: class (what made the score of the label high) or rival (what put it above the score of its rival).
        rivals: Class and rival, by name, as a mapping; classes left out are asked the class question. Synthetic data
            knows them: the other class of the pair.
    """

    rules: Literal["modern", "seg-unravel"] = "modern"
    select: Literal["channel", "element"] = "channel"
    shift: Shift = "full"
    k: int | float | Literal["resolution"] = 1
    question: Literal["class", "rival"] = "class"
    rivals: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _ = self.fixation_rules, self.count

    @property
    def fixation_rules(self) -> FixationRules:
        """`rules` of perpixel.fixations."""
        return FixationRules(base=self.rules, select=self.select)

    @property
    def count(self) -> int | Share | str:
        """`k` of perpixel.fixations."""
        if isinstance(self.k, str):
            return self.k
        if isinstance(self.k, float) and self.k < 1:
            return Share(check_number("trace.k", self.k, low=0, open_low=True))
        if self.k != int(self.k):
            expected = "a whole number from 1, a share between 0 and 1, or resolution"
            raise ValueError(complain("trace.k", expected, self.k, "Round it."))
        return check_integer("trace.k", int(self.k), low=1)


@dataclass
class PictureSettings:
    """What is drawn.

    Args:
        image: An image file, or the number of an evaluation image.
        backdrop: photograph (the image), labels (pale colours of the predicted labels) or outlines (their borders on
            white): the last two show nothing of the image, for data whose images must not be published.
        classes: Names of the classes to draw (null: the predicted ones but the background, the most pixels first).
        most: Draw at most so many classes one by one.
        frames: Steps of the flow through the layers, at most.
        milliseconds: Time per step of the animation.
    """

    image: int | str = 0
    backdrop: Literal["photograph", "labels", "outlines"] = "photograph"
    classes: list[str] | None = None
    most: int = 8
    frames: int = 12
    milliseconds: int = 900

    def __post_init__(self) -> None:
        for name, low in (("most", 1), ("frames", 2), ("milliseconds", 20)):
            check_integer(f"picture.{name}", getattr(self, name), low=low)


@dataclass
class FixationMeasureSettings(MeasureSettings):
    """How much is measured.

    Args:
        images: Evaluation images measured, evenly spread over them (null: all).
        batch_size: Images per step; 1 when sizes differ.
        units: Units per layer and image whose K is counted.
        unit_images: Images that units are taken from, at most.
        random_seeds: Synthetic only: seeds of the networks with random weights to compare with.
    """

    images: int | None = None
    batch_size: int = 8
    units: int = 40
    unit_images: int = 50
    random_seeds: list[int] = field(default_factory=lambda: [0, 1, 2])

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.images is not None:
            check_integer("measure.images", self.images, low=2)
        for name in ("batch_size", "units", "unit_images"):
            check_integer(f"measure.{name}", getattr(self, name), low=1)


@dataclass
class FixationSettings(AnalysisSettings):
    """Where do the labels of a network rest? Fixations of an image as pictures, and of a data set as numbers.

    Args:
        seed: Seed of the training, if there is one, and of the sample of units.
        do: What to do, of: image (pictures of one image), shares (mass on the object beside IoU, for three shifts),
            counts (how many inputs hold how much of a unit's activation), evidence (synthetic data: does the mass lie
            on what decides the label?).
        trace: How points are followed.
        picture: What is drawn.
        measure: How much is measured.
    """

    matter: ClassVar[tuple[str, ...]] = (
        "run",
        "model.checkpoint",
        "data.name",
        "data.root",
        "do",
        "picture.image",
        "trace.rules",
        "trace.shift",
        "measure.images",
        "folder",
    )
    examples: ClassVar[dict[str, str]] = {
        "train a small network on synthetic images first": "",
        "the network and data of a run of recipes.finetune, one image": "--run RUN_FOLDER --do image --picture.image 7",
        "weights of one's own": "--model.checkpoint FILE --model.name deeplabv3_resnet50 --data.name folder "
        "--data.root PATH",
    }
    name: str = "fixations"
    do: list[Part] = field(default_factory=lambda: ["image", "shares", "counts", "evidence"])
    trace: TraceSettings = field(default_factory=TraceSettings)
    picture: PictureSettings = field(default_factory=PictureSettings)
    measure: FixationMeasureSettings = field(default_factory=FixationMeasureSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.do:
            raise ValueError(complain("do", "at least one of image, shares, counts, evidence", "none", "Name one."))
        if isinstance(self.picture.image, str) and not Path(self.picture.image).is_file():
            remedy = "Check the path, or give the number of an evaluation image."
            raise FileNotFoundError(complain("picture.image", "an image file", self.picture.image, remedy))
