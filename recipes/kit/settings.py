"""The settings of runs: dataclasses that become the YAML file and the command line."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from perpixel.checks import check_integer, check_number, check_option, complain
from perpixel.evaluation import BootstrapInterval, bootstrap_images
from recipes.kit.checks import check_options, check_seeds


@dataclass
class DataSettings:
    """Which images, and how they are brought to the network.

    Args:
        name: synthetic (made on the spot, no files), folder (images and masks of one's own), camvid, voc, sbd,
            cityscapes or oxford-pets.
        root: Folder of the data set; of one's own: train/images, train/masks, val/images, val/masks inside.
        binary: Two classes by a network with one output. In masks of one's own 0 is background and the only other value
            foreground (so 255 beside 0), or 1 where 255 is beside it as void.
        train_split: Part to train on.
        eval_split: Part to evaluate on.
        options: Further keyword arguments of the data set, as a mapping to numbers, texts and lists of them.
        train_images: How many training images to use (null: all; synthetic makes 1000, and 200 to evaluate on).
        eval_images: The same for the evaluation images.
        size: Height and width every image is brought to first (null: its own; synthetic: 96 x 128).
        crop: Height and width of the training crop (null: size, or else the size of the first training image).
        scale: Smallest and largest factor of the random scale in training (null: none).
        flip: Mirror half of the training images.
        jitter: Strength of the random brightness, contrast and saturation in training.
        ignore_index: Label of void pixels.
        workers: Processes that load images beside the main one.
        cache: Keep decoded images in memory (null: only for synthetic).
        seed: Seed of the synthetic images.
    """

    name: str = "synthetic"
    root: str | None = None
    binary: bool = False
    train_split: str = "train"
    eval_split: str = "val"
    options: dict[str, Any] = field(default_factory=dict)
    train_images: int | None = None
    eval_images: int | None = None
    size: tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    scale: tuple[float, float] | None = None
    flip: bool = True
    jitter: float = 0.0
    ignore_index: int = 255
    workers: int = 0
    cache: bool | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_options("options", self.options)
        check_integer("workers", self.workers, low=0)
        check_number("jitter", self.jitter, low=0, high=1)
        for name in ("train_images", "eval_images"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), low=1)
        for name in ("size", "crop"):
            for side in getattr(self, name) or ():
                check_integer(name, side, low=1)
        if self.scale is not None and not 0 < self.scale[0] <= self.scale[1]:
            expected = "the smallest and the largest factor, both above 0"
            raise ValueError(complain("scale", expected, f"{list(self.scale)}", "Example: --data.scale [0.5,2]."))


@dataclass
class ModelSettings:
    """Which network, and where its weights start.

    Args:
        name: small_fcn, fcn8s_vgg16 or others of perpixel.models, or of torchvision's, such as deeplabv3_resnet50.
        weights: Name of torchvision weights of the whole network, such as DEFAULT; a misfit classifier is replaced.
        weights_backbone: Name of torchvision weights of the backbone alone; pre-training follows.
        checkpoint: A safetensors file or a state dict of torch.save to start from.
        caffe_pixels: Whether a checkpoint with Caffe's names saw BGR from 0 to 255 and must be suited to RGB.
        replace_head: Let classifier layers of another number of classes in the checkpoint start at random.
        head: Dotted name of the classifier layer the losses listen to (null: found).
        aux_loss: Train torchvision's auxiliary classifier too (weight 0.5).
        options: Further keyword arguments of the network, such as '{backbone: resnet18, layer: layer1}' of single_skip.
    """

    name: str = "small_fcn"
    weights: str | None = None
    weights_backbone: str | None = None
    checkpoint: str | None = None
    caffe_pixels: bool | None = None
    replace_head: bool = False
    head: str | None = None
    aux_loss: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_options("options", self.options)


@dataclass
class Schedule:
    """One stretch of training.

    Args:
        epochs: Passes over the training images.
        batch_size: Images per step, over all devices together.
        layers: What trains: last-3 (the last three convolutions or linear layers before the logits, with the
            normalisation that follows them), head (the classifier) or all. The rest stays, statistics included.
        optimizer: sgd or adamw.
        lr: Learning rate of ordinary weights.
        momentum: Momentum of sgd.
        weight_decay: Weight decay; biases and normalisation layers have none.
        bias_multiplier: Learning rate of biases, times lr.
        head_multiplier: Learning rate of the classifier, times lr (its bias: times bias_multiplier as well).
        policy: poly (falls to zero as (1 - progress) ** power), step (times gamma after every third) or constant.
        power: Exponent of poly.
        gamma: Factor of step.
        warmup: Steps over which the learning rate rises linearly at the start.
        clip: Largest norm of the gradient (null: not clipped).
        ema: Decay of an exponential moving average of the weights, which is then what is evaluated (null: none).
    """

    epochs: int = 10
    batch_size: int = 8
    layers: Literal["last-3", "head", "all"] = "all"
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    bias_multiplier: float = 2.0
    head_multiplier: float = 10.0
    policy: Literal["poly", "step", "constant"] = "poly"
    power: float = 0.9
    gamma: float = 0.1
    warmup: int = 0
    clip: float | None = None
    ema: float | None = None

    def __post_init__(self) -> None:
        check_integer("epochs", self.epochs, low=0)
        check_integer("batch_size", self.batch_size, low=1)
        check_integer("warmup", self.warmup, low=0)
        check_number("lr", self.lr, low=0, open_low=True)
        check_number("momentum", self.momentum, low=0, high=1, open_high=True)
        for name in ("weight_decay", "bias_multiplier", "head_multiplier", "power", "gamma"):
            check_number(name, getattr(self, name), low=0)
        if self.clip is not None:
            check_number("clip", self.clip, low=0, open_low=True)
        if self.ema is not None:
            check_number("ema", self.ema, low=0, high=1, open_high=True)

    def factor(self, step: int, steps: int) -> float:
        """What the learning rates are multiplied by at `step` (from 0) of `steps`."""
        progress = step / max(steps, 1)
        shape = {
            "poly": (1 - progress) ** self.power,
            "step": self.gamma ** int(3 * progress),
            "constant": 1.0,
        }[self.policy]
        return shape * min(1.0, (step + 1) / self.warmup if self.warmup else 1.0)


@dataclass
class EvaluationSettings:
    """How the networks are compared.

    Args:
        every: Evaluate after every so many epochs (and always after the last).
        batch_size: Images per step of evaluation; 1 when sizes differ.
        boundary_share: Tolerance of the boundary F-score as a share of the image diagonal.
        far: Synthetic only: a body pixel counts as far when its evidence is at least so many pixels away.
        level: Level of the bootstrap interval.
        resamples: Draws of the bootstrap.
        pictures: Rows of predictions.png.
    """

    every: int = 1
    batch_size: int = 8
    boundary_share: float = 0.0075
    far: float = 24.0
    level: float = 0.95
    resamples: int = 4999
    pictures: int = 4

    def __post_init__(self) -> None:
        check_integer("every", self.every, low=1)
        check_integer("batch_size", self.batch_size, low=1)
        check_number("boundary_share", self.boundary_share, low=0)
        check_number("far", self.far, low=0)
        check_number("level", self.level, low=0, high=1, open_low=True, open_high=True)
        check_integer("resamples", self.resamples, low=100)
        check_integer("pictures", self.pictures, low=0)


@dataclass
class HardwareSettings:
    """Where and how the arithmetic runs (Lightning Fabric).

    Args:
        accelerator: auto, cpu, cuda or mps.
        devices: How many devices, or auto.
        strategy: auto, ddp or fsdp.
        precision: 32-true, bf16-mixed, 16-mixed or another of Fabric's.
        threads: Threads per process on the CPU (null: the cores this process may use, shared among the devices; the
            number is written with the settings, so that a run is resumed with as many).
        channels_last: Lay images out with the channels innermost.
        compile: Compile the network with torch.compile.
    """

    accelerator: str = "auto"
    devices: int | str = 1
    strategy: str = "auto"
    precision: str = "32-true"
    threads: int | None = None
    channels_last: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        check_option("accelerator", self.accelerator, ("auto", "cpu", "cuda", "gpu", "mps", "tpu"))
        if (str(self.devices) not in ("auto", "-1") and not str(self.devices).isdecimal()) or str(self.devices) == "0":
            raise ValueError(complain("devices", "a number from 1, or auto", self.devices, "Leave it out for one."))
        if self.threads is not None:
            check_integer("threads", self.threads, low=1, high=1024)


def pretraining(epochs: int = 12) -> Schedule:
    """The default schedule of a training from scratch with cross-entropy alone."""
    return Schedule(epochs=epochs, optimizer="adamw", lr=3e-3, bias_multiplier=1.0, head_multiplier=1.0, warmup=20)


@dataclass
class RunSettings:
    """The settings of all recipes.

    Args:
        name: Name of the run, and of its folder.
        out: Folder the run folders go to.
        folder: Where all is written, a new or empty folder (null: out/name-date-time).
        data: Which images.
        model: Which network.
        pretrain: The training from scratch with cross-entropy alone, where no weights are given.
        hardware: Where it runs.
    """

    matter: ClassVar[tuple[str, ...]]  # the settings that --help shows
    examples: ClassVar[dict[str, str]]  # what is done -> the arguments
    name: str = "run"
    out: str = "runs"
    folder: str | None = None
    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    pretrain: Schedule = field(default_factory=pretraining)
    hardware: HardwareSettings = field(default_factory=HardwareSettings)

    @classmethod
    def add_to(cls, parser: Any) -> None:
        """Every field as an argument of a parser of jsonargparse."""
        parser.add_class_arguments(cls)


@dataclass
class AnalysisSettings(RunSettings):
    """The settings of recipes that examine one network.

    Args:
        run: A run folder of recipes.finetune, whose data, model and weights are used (data and model settings given
            beside it win). Without it: model.checkpoint or model.weights, or else a short training first.
        part: Which weights of that run: seed0/control, seed0/loss, start and so on.
        seed: Seed of the training, if there is one, and of random choices.
        hardware: Where it runs; one device.
    """

    run: str | None = None
    part: str = "seed0/control"
    seed: int = 0

    def __post_init__(self) -> None:
        check_integer("seed", self.seed, low=0)
        if not (self.run or self.model.checkpoint or self.model.weights or self.pretrain.epochs):
            remedy = "Give --pretrain.epochs 1 or more, or weights: --run, --model.checkpoint or --model.weights."
            raise ValueError(complain("pretrain.epochs", "a training where no weights are given", "0", remedy))
        if self.run is not None and (self.model.checkpoint or self.model.weights):
            came = f"run={self.run!r} and {self.model.checkpoint or self.model.weights!r}"
            raise ValueError(complain("run, model.checkpoint, model.weights", "one of them", came, "Leave one out."))
        if str(self.hardware.devices) != "1":
            remedy = "Leave it out: this recipe runs on one device."
            raise ValueError(complain("hardware.devices", "1", self.hardware.devices, remedy))


@dataclass
class MeasureSettings:
    """What is measured over the evaluation images, with what controls and intervals.

    Args:
        far: Synthetic only: a body pixel counts as far when its evidence is at least so many pixels away.
        view: Synthetic only: pixels whose evidence is further away than this are left out, since the network cannot see
            it from there (60: the default network sees 63 pixels each way; null: none left out).
        random_seeds: Seeds of the networks with random weights to compare with.
        level: Level of the bootstrap intervals.
        resamples: Draws of the bootstrap.
    """

    far: float = 24.0
    view: float | None = 60.0
    random_seeds: list[int] = field(default_factory=lambda: [0])
    level: float = 0.95
    resamples: int = 1999

    def __post_init__(self) -> None:
        check_number("measure.far", self.far, low=0)
        if self.view is not None:
            check_number("measure.view", self.view, low=self.far)
        check_seeds("measure.random_seeds", self.random_seeds)
        check_number("measure.level", self.level, low=0, high=1, open_low=True, open_high=True)
        check_integer("measure.resamples", self.resamples, low=100)

    def interval(self, statistic: Callable[[Any], Any], images: int, null: float = 0.0) -> BootstrapInterval:
        """`bootstrap_images` of a statistic of the weights of the images."""
        return bootstrap_images(statistic, images, level=self.level, resamples=self.resamples, null=null)
