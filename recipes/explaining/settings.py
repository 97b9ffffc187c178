"""The settings of an explanation run: dataclasses that become the YAML file and the command line."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

from perpixel.checks import check_integer, check_number, check_option, complain
from recipes.kit.settings import AnalysisSettings, MeasureSettings, Schedule, pretraining

INFLUENCE = "Influence"


@dataclass
class AskSettings:
    """What is asked: which labels, of which images.

    Args:
        images: Image files, or numbers of evaluation images, to draw (null: `pictures` evaluation images, in turns for
            each label the one in which most of its pixels are labelled right).
        pictures: How many images are chosen then.
        labels: Names of the classes to ask about (null: all but the background, of synthetic data; of other data all
            that are labelled right somewhere, the rarest first).
        most: Labels drawn per image, at most.
        least: Pixels that a label must be predicted on, and in data with labels also be right on, to be asked about.
        score: margin (what puts the label above its best rival), or logit (what raises the label's own score).
    """

    images: list[int | str] | None = None
    pictures: int = 3
    labels: list[str] | None = None
    most: int = 2
    least: int = 60
    score: Literal["margin", "logit"] = "margin"

    def __post_init__(self) -> None:
        for name in ("pictures", "most", "least"):
            check_integer(f"ask.{name}", getattr(self, name), low=1)
        for name, given in (("images", self.images), ("labels", self.labels)):
            if given is not None and (not given or len(set(given)) < len(given)):
                remedy = "Leave it out for the default."
                raise ValueError(complain(f"ask.{name}", "null, or one or more different ones", given, remedy))
        for image in self.images or ():
            if isinstance(image, str) and not Path(image).is_file():
                remedy = "Check the path, or give the number of an evaluation image."
                raise FileNotFoundError(complain("ask.images", "image files", image, remedy))

    @property
    def files(self) -> list[str]:
        """The image files among `images`."""
        return [image for image in self.images or () if isinstance(image, str)]


@dataclass
class MapSettings:
    """How the maps are made.

    Args:
        methods: Influence (hide patch by patch), or names of captum's methods, such as IntegratedGradients.
        patch: Side of the patches that are hidden, in pixels (null: an eighth of the images' shorter side).
        stride: Step between patches (null: the patch).
        baselines: What stands in for what is hidden, and where integrated gradients start: zero (the mean colour of
            the data that normalisation knows), mean (of the image), blur.
        steps: Steps of the methods that integrate.
        border: Pixels around the region that the context shares leave out (null: the patch, since one that lies across
            the border hides object and context at once).
        batch_size: Images per forward pass (null: as the library chooses).
    """

    methods: list[str] = field(default_factory=lambda: [INFLUENCE, "IntegratedGradients", "LayerGradCam"])
    patch: int | None = None
    stride: int | None = None
    baselines: Literal["zero", "mean", "blur"] = "zero"
    steps: int = 16
    border: float | None = None
    batch_size: int | None = None

    def __post_init__(self) -> None:
        check_integer("maps.steps", self.steps, low=2)
        if self.border is not None:
            check_number("maps.border", self.border, low=0)
        for name in ("patch", "stride", "batch_size"):
            if getattr(self, name) is not None:
                check_integer(f"maps.{name}", getattr(self, name), low=1)
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise ValueError(complain("maps.methods", "one or more different names", self.methods, "Name one."))


@dataclass
class CurveSettings:
    """Deletion and insertion, on the images that are drawn.

    Args:
        draw: Whether to compute them.
        steps: Points of a curve, less one.
        seeds: Random orders to compare with.
        stages: Compare each map with that of the network after its layers lost what they had learnt, in so many steps
            (0: not; 1: once, after all of them).
    """

    draw: bool = True
    steps: int = 10
    seeds: int = 4
    stages: int = 1

    def __post_init__(self) -> None:
        for name, low in (("steps", 2), ("seeds", 2), ("stages", 0)):
            check_integer(f"curves.{name}", getattr(self, name), low=low)


@dataclass
class DataSetSettings(MeasureSettings):
    """What is measured over a data set.

    Args:
        images: Evaluation images measured, evenly spread over those with a label that is asked about (0: only those
            that are drawn).
        methods: The maps that are measured there, of maps.methods (null: those that take few passes,
            Influence and Layer methods).
        truth: Whether the classes of the class-context matrix are those of the labels (true) or of the prediction.
        least: A patch belongs to a class of the matrix where more than this share of its pixels does (0: any pixel).
        controls: Random choices of as many pixels, per class and image of the matrix.
        bins: Bins of the radial profiles.
    """

    images: int = 40
    methods: list[str] | None = None
    truth: bool = True
    least: float = 0.25
    controls: int = 2
    bins: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("measure.least", self.least, low=0, high=1, open_high=True)
        for name, low in (("images", 0), ("controls", 1), ("bins", 2)):
            check_integer(f"measure.{name}", getattr(self, name), low=low)


@dataclass
class ExplainSettings(AnalysisSettings):
    """Which context decides which labels? Maps, matrix and curves of a network, beside one with random weights.

    Args:
        backdrop: What stands behind regions and patches: photograph (the image), labels (pale colours of the predicted
            labels) or outlines (their borders on white): the last two show nothing of the image, for data whose images
            must not be published; maps by pixel, such as those of IntegratedGradients, trace its edges all the same.
        explorer: Whether to write a page (HTML) per drawn image in which any pixel can be asked.
        ask: Which labels of which images.
        maps: How the maps are made.
        curves: Deletion and insertion.
        measure: What is measured over the data.
    """

    matter: ClassVar[tuple[str, ...]] = (
        "run",
        "model.checkpoint",
        "data.name",
        "data.root",
        "ask.labels",
        "ask.images",
        "maps.methods",
        "maps.patch",
        "measure.images",
        "folder",
    )
    examples: ClassVar[dict[str, str]] = {
        "train a small network on synthetic images first": "",
        "the network and data of a run of recipes.finetune": "--run RUN_FOLDER --ask.labels [pedestrian,pavement]",
        "pictures of one's own beside evaluation image 7": "--run RUN_FOLDER --ask.images [my.jpg,7]",
        "weights of one's own": "--model.checkpoint FILE --model.name deeplabv3_resnet50 --data.name folder "
        "--data.root PATH",
    }
    name: str = "explain"
    pretrain: Schedule = field(default_factory=partial(pretraining, epochs=4))
    backdrop: Literal["photograph", "labels", "outlines"] = "photograph"
    explorer: bool = True
    ask: AskSettings = field(default_factory=AskSettings)
    maps: MapSettings = field(default_factory=MapSettings)
    curves: CurveSettings = field(default_factory=CurveSettings)
    measure: DataSetSettings = field(default_factory=DataSetSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        for method in self.measure.methods or ():
            check_option("measure.methods", method, self.maps.methods)

    @property
    def measured_methods(self) -> list[str]:
        """The methods whose maps are measured over the data."""
        if self.measure.methods is not None:
            return self.measure.methods
        return [m for m in self.maps.methods if m == INFLUENCE or m.startswith("Layer")]
