"""What a fixation run can be told: dataclasses that become the YAML file and the command line."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from perpixel.checks import check_integer, check_number, complain
from perpixel.fixations import FixationRules, Share
from recipes.kit.settings import DataSettings, HardwareSettings, ModelSettings, Schedule, check_seeds

Part = Literal["image", "shares", "counts", "evidence"]
SHIFTS = ("full", "partial", "none")


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
    shift: Literal["full", "partial", "none"] = "full"
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
        if isinstance(self.k, int) or self.k >= 1:
            if self.k != int(self.k):
                expected = "a whole number from 1, a share between 0 and 1, or resolution"
                raise ValueError(complain("trace.k", expected, self.k, "Round it."))
            return check_integer("trace.k", int(self.k), low=1)
        return Share(check_number("trace.k", self.k, low=0, open_low=True))


@dataclass
class PictureSettings:
    """What is drawn.

    Args:
        image: An image file, or the number of an evaluation image.
        backdrop: photograph (the image), labels (pale colours of the predicted labels) or outlines (their borders on
            white): the last two show nothing of the image, for data whose images must not be published.
        classes: Names of the classes to draw (null: the predicted ones, those with the most pixels first).
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
        check_integer("picture.most", self.most, low=1)
        check_integer("picture.frames", self.frames, low=2)
        check_integer("picture.milliseconds", self.milliseconds, low=20)


@dataclass
class MeasureSettings:
    """How much is measured.

    Args:
        images: Evaluation images measured, evenly spread over them (null: all).
        batch_size: Images per step; 1 when sizes differ.
        units: Units per layer and image whose K is counted.
        unit_images: Images that units are taken from, at most.
        far: Synthetic only: a body pixel counts as far when its evidence is at least so many pixels away.
        view: Synthetic only: pixels whose evidence is further away than this are left out, since the network cannot see
            it from there (60: the default network sees 63 pixels each way; null: none left out).
        random_seeds: Synthetic only: seeds of the networks with random weights to compare with.
        level: Level of the bootstrap intervals.
        resamples: Draws of the bootstrap.
    """

    images: int | None = None
    batch_size: int = 8
    units: int = 40
    unit_images: int = 50
    far: float = 24.0
    view: float | None = 60.0
    random_seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    level: float = 0.95
    resamples: int = 1999

    def __post_init__(self) -> None:
        if self.images is not None:
            check_integer("measure.images", self.images, low=2)
        for name in ("batch_size", "units", "unit_images"):
            check_integer(f"measure.{name}", getattr(self, name), low=1)
        check_number("measure.far", self.far, low=0)
        if self.view is not None:
            check_number("measure.view", self.view, low=self.far)
        check_seeds("measure.random_seeds", self.random_seeds)
        check_number("measure.level", self.level, low=0, high=1, open_low=True, open_high=True)
        check_integer("measure.resamples", self.resamples, low=100)


def _pretraining() -> Schedule:
    return Schedule(epochs=12, optimizer="adamw", lr=3e-3, bias_multiplier=1.0, head_multiplier=1.0, warmup=20)


@dataclass
class FixationSettings:
    """Where do the labels of a network rest? Fixations of an image as pictures, and of a data set as numbers.

    Args:
        name: Name of the run, and of its folder.
        out: Folder the run folders go to.
        folder: The run folder itself (null: out/name-date-time).
        run: A run folder of recipes.finetune, whose data, model and weights are used (data and model settings given
            beside it win). Without it: model.checkpoint or model.weights, or else a short training first.
        part: Which weights of that run: seed0/control, seed0/loss, start and so on.
        do: What to do, of: image (pictures of one image), shares (mass on the object beside IoU, for three shifts),
            counts (how many inputs hold how much of a unit's activation), evidence (synthetic data: does the mass lie
            on what decides the label?).
        seed: Seed of the training, if there is one, and of the sample of units.
        data: Which images.
        model: Which network.
        pretrain: The training, where no weights are given.
        trace: How points are followed.
        picture: What is drawn.
        measure: How much is measured.
        hardware: Where it runs; one device.
    """

    name: str = "fixations"
    out: str = "runs"
    folder: str | None = None
    run: str | None = None
    part: str = "seed0/control"
    do: list[Part] = field(default_factory=lambda: ["image", "shares", "counts", "evidence"])
    seed: int = 0
    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    pretrain: Schedule = field(default_factory=_pretraining)
    trace: TraceSettings = field(default_factory=TraceSettings)
    picture: PictureSettings = field(default_factory=PictureSettings)
    measure: MeasureSettings = field(default_factory=MeasureSettings)
    hardware: HardwareSettings = field(default_factory=HardwareSettings)

    def __post_init__(self) -> None:
        check_integer("seed", self.seed, low=0)
        if not self.do:
            raise ValueError(complain("do", "at least one of image, shares, counts, evidence", "none", "Name one."))
        if self.run is not None and (self.model.checkpoint or self.model.weights):
            came = f"run={self.run!r} and {self.model.checkpoint or self.model.weights!r}"
            raise ValueError(complain("run, model.checkpoint, model.weights", "one of them", came, "Leave one out."))
        if str(self.hardware.devices) != "1":
            remedy = "Leave it out: points are followed on one device."
            raise ValueError(complain("hardware.devices", "1", self.hardware.devices, remedy))
        if isinstance(self.picture.image, str) and not Path(self.picture.image).is_file():
            remedy = "Check the path, or give the number of an evaluation image."
            raise FileNotFoundError(complain("picture.image", "an image file", self.picture.image, remedy))
