"""The network whose fixations are asked for, the same with random weights, and the question put to it."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from perpixel.checks import complain
from perpixel.fixations import Fixations, fixations
from perpixel.outputs import dense_logits
from recipes.kit.images import Images
from recipes.kit.interrupt import Interrupt
from recipes.kit.job import Job
from recipes.kit.networks import build_network, load_weights, select_layers, starting_weights, unwrap_weights
from recipes.kit.progress import Progress
from recipes.kit.randomness import seed_everything
from recipes.kit.scores import predict
from recipes.tracing.settings import FixationSettings, TraceSettings
from recipes.training import pretraining
from recipes.training.checkpoints import LAST, load_checkpoint


@dataclass
class Subject:
    """A network in evaluation mode; asked: the network the points are followed through, where it is another.

    about: where its weights are from, in words.
    """

    network: nn.Module
    asked: nn.Module
    trace: TraceSettings
    device: torch.device
    about: str

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Labels (N, H, W) on the device."""
        return predict(self.network, images.to(self.device), images.shape[-2:])

    def fixations(self, images: Tensor, start: Tensor, *, shift: str | None = None, record: bool = False) -> Fixations:
        """Fixations of the labels `start`, by the settings of the run."""
        trace = self.trace
        return fixations(
            self.asked,
            images.to(self.device),
            start=start.to(self.device),
            k=trace.count,
            shift=shift or trace.shift,
            rules=trace.fixation_rules,
            record=record,
        )

    def asking(self, rivals: Mapping[int, int]) -> "Subject":
        """The same network asked what put each class above its rival; without rivals, what made its score high."""
        asked = against(self.network, rivals) if rivals else self.network
        return Subject(self.network, asked, self.trace, self.device, self.about)


def against(network: nn.Module, rivals: Mapping[int, int]) -> nn.Module:
    """A copy whose logit c is the network's logit c minus logit rivals[c]; those of classes without rival stay.

    Done in the weights of the classifier, so that a contribution to the new logit is the difference of contributions:
    what speaks for both classes cancels. ValueError if the logits are not a linear function of the classifier's output.
    """
    result = copy.deepcopy(network)
    name = select_layers(copy.deepcopy(network), "head")[1]
    layer = result.get_submodule(name)
    mine = torch.tensor(sorted(rivals))
    other = torch.tensor([rivals[c] for c in sorted(rivals)])
    with torch.no_grad():
        for parameter in layer.parameters(recurse=False):
            parameter[mine] = parameter[mine] - parameter[other]
        like = next(network.parameters())
        probe = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)).to(like)
        expected = dense_logits(network(probe)).clone()
        expected[:, mine] = expected[:, mine] - expected[:, other]
        found = dense_logits(result(probe))
    if not torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())):
        came = f"{name}, after which the network is not linear"
        raise ValueError(complain("trace.question", "a classifier that gives the logits", came, "Ask: class."))
    return result


def rivals_of(images: Images, trace: TraceSettings) -> dict[int, int]:
    """Class -> rival: those of the settings, or the pairs of the synthetic data."""
    known = {name: number for number, name in enumerate(images.classes)}
    for name in (*trace.rivals, *trace.rivals.values()):
        if name not in known:
            raise ValueError(complain("trace.rivals", f"names among {', '.join(known)}", name, "Check the spelling."))
    if trace.rivals:
        return {known[name]: known[rival] for name, rival in trace.rivals.items()}
    found = {pair.first: pair.second for pair in images.pairs}
    return found | {second: first for first, second in found.items()}


def question(images: Images, trace: TraceSettings) -> dict[int, int]:
    """The rivals to ask about: none for the class question."""
    if trace.question == "class":
        return {}
    rivals = rivals_of(images, trace)
    if not rivals:
        remedy = "Example: --trace.rivals '{car: bicyclist}'."
        raise ValueError(complain("trace.rivals", "a rival for some class", "none known for this data", remedy))
    return rivals


def prepare_network(settings: FixationSettings, classes: int) -> tuple[nn.Module, str] | None:
    """The network with the weights the settings name, and where they are from; None where it must be trained first."""
    seed_everything(settings.seed)
    network = build_network(settings.model, classes)
    if settings.run is not None:
        path = Path(settings.run) / settings.part / LAST
        if not path.is_file():
            known = [str(p.parent.relative_to(settings.run)) for p in sorted(Path(settings.run).rglob(LAST))]
            raise FileNotFoundError(complain("part", f"one of {', '.join(known) or 'none'}", settings.part, "Choose."))
        weights, source = unwrap_weights(load_checkpoint(path), str(path)), f"{settings.part} of {settings.run}"
    else:
        given = starting_weights(settings.model)
        if given is None:
            return None
        weights, source = given
    load_weights(network, weights, source, replace_head=False, num_classes=classes)
    return network, source


def train_network(
    settings: FixationSettings, folder: Path, fabric: Fabric, images: Images, progress: Progress, stop: Interrupt
) -> tuple[nn.Module, str]:
    """To be deleted: recipes.training.pretraining has taken its place."""
    return pretraining.train_network(Job(settings, folder, fabric, images, progress, stop), folder)


def random_network(settings: FixationSettings, classes: int, seed: int, batches: Sequence[Tensor]) -> nn.Module:
    """The network with random weights; its normalisation layers know the statistics of `batches`.

    Without those, a fresh network's activations shrink or grow from layer to layer as no trained one's do.
    """
    seed_everything(seed + 1000)
    network = build_network(settings.model, classes)
    moving: list[Any] = [m for m in network.modules() if getattr(m, "running_mean", None) is not None]
    for layer in moving:
        layer.reset_running_stats()
        layer.momentum = None  # the plain average over the batches
    network.eval()
    for layer in moving:
        layer.train()
    with torch.no_grad():
        for images in batches if moving else ():
            network(images)
    return network.eval()
