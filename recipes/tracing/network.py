"""The network whose labels are traced, and the rival classes it is asked about."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from perpixel.checks import complain
from perpixel.evaluation import predict_labels
from perpixel.fixations import Fixations, fixations
from perpixel.outputs import dense_logits
from recipes.kit.images import Images
from recipes.kit.networks import select_layers
from recipes.tracing.settings import Shift, TraceSettings


@dataclass(frozen=True)
class TracedNetwork:
    """A network in evaluation mode, and how its points are followed; `followed`: through another network."""

    network: nn.Module
    trace: TraceSettings
    device: torch.device
    followed: nn.Module | None = None

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Labels (N, H, W) on the device."""
        return predict_labels(self.network, images.to(self.device))

    def fixations(
        self, images: Tensor, start: Tensor, *, shift: Shift | None = None, record: bool = False
    ) -> Fixations:
        """Fixations of the labels `start`, by the settings of the run."""
        return fixations(
            self.network if self.followed is None else self.followed,
            images.to(self.device),
            start=start.to(self.device),
            k=self.trace.count,
            shift=shift or self.trace.shift,
            rules=self.trace.fixation_rules,
            record=record,
        )

    def against(self, rivals: Mapping[int, int]) -> "TracedNetwork":
        """The same network asked what put each class above its rival; without rivals, what made its score high."""
        return replace(self, followed=rival_logits(self.network, rivals) if rivals else None)


def rival_logits(network: nn.Module, rivals: Mapping[int, int]) -> nn.Module:
    """A copy whose logit c is the network's logit c minus logit rivals[c]; those of classes without rival stay.

    Done in the weights of the classifier (and of the scores of skips), so that a contribution to the new logit is the
    difference of contributions: what speaks for both classes cancels. ValueError if the logits are not a linear
    function of the scores, the same for all classes, such as where upsampling was learned class by class.
    """
    result, plain = (copy.deepcopy(network).eval() for _ in range(2))  # training statistics do not move with the probe
    names, classifier = select_layers(plain, "head")
    mine, other = torch.tensor(sorted(rivals.items())).T
    with torch.no_grad():
        for layer in map(result.get_submodule, names):
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                for parameter in layer.parameters():
                    parameter[mine] = parameter[mine] - parameter[other]
        like = next(network.parameters())
        probe = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)).to(like)
        expected = dense_logits(plain(probe)).clone()
        expected[:, mine] = expected[:, mine] - expected[:, other]
        found = dense_logits(result(probe))
    if not torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())):
        came = f"{classifier}, after which the network is not linear, or not the same for all classes"
        raise ValueError(complain("trace.question", "a classifier that gives the logits", came, "Ask: class."))
    return result


def known_rivals(images: Images, trace: TraceSettings) -> dict[int, int]:
    """Class -> rival: those of the settings, or the pairs of the synthetic data."""
    if trace.rivals:
        classes, rivals = (images.class_numbers(names, "trace.rivals") for names in zip(*trace.rivals.items()))
        return dict(zip(classes, rivals))
    found = {pair.first: pair.second for pair in images.pairs}
    return found | {second: first for first, second in found.items()}


def asked_rivals(images: Images, trace: TraceSettings) -> dict[int, int]:
    """The rivals to ask about: none for the class question."""
    if trace.question == "class":
        return {}
    if images.channels == 1:
        remedy = "The score of a network with one output is the margin over the other class already."
        raise ValueError(complain("trace.question", "class, beside data.binary", "rival", remedy))
    rivals = known_rivals(images, trace)
    if not rivals:
        remedy = "Example: --trace.rivals '{car: bicyclist}'."
        raise ValueError(complain("trace.rivals", "a rival for some class", "none known for this data", remedy))
    return rivals
