"""The network of a job: that of a run folder, of a checkpoint, or one trained first with cross-entropy alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from perpixel.checks import complain
from recipes.kit.job import Job
from recipes.kit.networks import build_network, seed_everything
from recipes.kit.settings import AnalysisSettings
from recipes.kit.weights import Weights, load_weights, starting_weights, unwrap_weights
from recipes.training.checkpoints import LAST, load_checkpoint
from recipes.training.origin import Origin
from recipes.training.trainer import Training, train


def load_network(
    settings: AnalysisSettings, num_classes: int, classes: Sequence[str] | None = None
) -> tuple[nn.Module, str] | None:
    """The network with the weights the settings name, and where they are from; None where it must be trained first.

    ValueError where those of a run were trained as another network, or for other `classes`.
    """
    seed_everything(settings.seed)
    network = build_network(settings.model, num_classes)
    if settings.run is not None:
        weights, trained, source = read_part(settings.run, settings.part)
        asked = {"model.name": settings.model.name, "model.options": settings.model.options}
        check_same_task(trained, asked | ({"data: classes": list(classes)} if classes is not None else {}), source)
    else:
        given = starting_weights(settings.model)
        if given is None:
            return None
        weights, source = given
    load_weights(
        network, weights, source, replace_head=None, num_classes=num_classes, caffe_pixels=settings.model.caffe_pixels
    )
    return network, source


def trained_parts(run: str) -> list[str]:
    """The folders of the networks in a run, such as seed0/control; FileNotFoundError where there are none."""
    found = [path.parent.relative_to(run).as_posix() for path in sorted(Path(run).rglob(LAST))]
    if not found:
        remedy = "Give one of recipes.finetune, or a file of weights as --model.checkpoint."
        came = f"{run}, which holds none"
        raise FileNotFoundError(complain("run", "a run folder with trained networks", came, remedy))
    return found


def read_part(run: str, part: str) -> tuple[Weights, Origin, str]:
    """The weights of one network of a run, what they depend on, and which they are."""
    path = Path(run) / part / LAST
    if not path.is_file():
        raise FileNotFoundError(complain("part", f"one of {', '.join(trained_parts(run))}", part, "Choose."))
    checkpoint = load_checkpoint(path, any_format=True)
    return unwrap_weights(checkpoint, str(path)), checkpoint.get("origin", {}), f"{part} of {run}"


def check_same_task(trained: Origin, asked: Mapping[str, Any], source: str) -> None:
    """ValueError naming the first of the settings `asked` with which a network was not trained."""
    for name, value in asked.items():
        if name in trained and trained[name] != value:
            remedy = "Leave it as it was, or give the file of weights as --model.checkpoint instead of --run."
            raise ValueError(complain(name, f"{trained[name]}, as {source} was trained", f"{value}", remedy))


def train_network(job: Job, folder: Path) -> tuple[nn.Module, str]:
    """A network trained by `pretrain` in `folder`, and how; continues where it was stopped."""
    schedule = job.settings.pretrain
    job.images.check_labels(job.progress.report)
    scores, weights = train(job, Training(folder, "training", job.settings.seed, schedule))
    network = build_network(job.settings.model, job.images.channels).to(job.fabric.device)
    network.load_state_dict(weights)
    epochs = "1 epoch" if schedule.epochs == 1 else f"{schedule.epochs} epochs"
    return network, f"a training of {epochs} with cross-entropy, {100 * scores.miou:.1f} mIoU"
