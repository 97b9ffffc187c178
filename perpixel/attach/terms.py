"""What a term of the criterion is, and the default base."""

import inspect
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perpixel.checks import check_number, complain
from perpixel.outputs import check_labels, class_logits, logits_at


class FeatureTerm(Protocol):
    """`weight` times a scalar of features (N, D, h, w), logits on their grid (N, C, h, w), and labels (N, H, W)."""

    weight: float

    def __call__(self, features: Tensor, logits: Tensor, labels: Tensor, /) -> Tensor: ...


class MapTerm(Protocol):
    """`weight` times a scalar of the model, its images, the logits as it returned them, and labels.

    Its `weight_map` distinguishes it from a `FeatureTerm`. It may run the model again, and leaves it as it was.
    """

    weight: float

    def __call__(self, model: nn.Module, images: Tensor, logits: Tensor, labels: Tensor, /) -> Tensor: ...

    def weight_map(self, model: nn.Module, images: Tensor, logits: Tensor, labels: Tensor, /) -> Tensor: ...


Term = FeatureTerm | MapTerm


def has_weight_map(term: Term) -> bool:
    """Whether a term asks for the model and its images."""
    return callable(getattr(term, "weight_map", None))


def named_terms(terms: tuple[Term, ...]) -> dict[str, Term]:
    """Terms by name, a number added to the second and later of one name; TypeError or ValueError if one is no term."""
    named: dict[str, Term] = {}
    count = {"base": 1}
    for place, term in enumerate(terms):
        argument = f"terms[{place}]"
        if inspect.isclass(term) or not callable(term) or not hasattr(term, "weight"):
            expected = "a loss module, or a callable on (features, logits, labels) with a .weight"
            raise TypeError(complain(argument, expected, term, "Pass perpixel.TemplateSimilarityLoss()."))
        check_number(f"{argument}.weight", term.weight, low=0.0)
        name = getattr(term, "name", None) or getattr(term, "__name__", None) or type(term).__name__
        count[name] = count.get(name, 0) + 1
        named[name if count[name] == 1 else f"{name}_{count[name]}"] = term
    return named


def cross_entropy(logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """Mean cross-entropy of logits (N, C, h, w) at label size, binary for C = 1, over pixels not `ignore_index`.

    Summed in float32 or better; what lies at void, NaN too, has no say. Zero, not NaN, where every pixel is void. On
    the CPU void pixels are replaced only where there is need: that would take as long again as the rest. Labels as in
    `check_labels`.
    """
    looks = logits.device.type == "cpu" and not torch.compiler.is_compiling()
    labels = check_labels(labels, logits, ignore_index, values=looks)
    logits = class_logits(logits_at(logits, labels.shape[-2:]))
    if torch.finfo(logits.dtype).bits < 32:
        logits = logits.float()
    valid = labels != ignore_index
    logs = F.log_softmax(logits, 1) if looks else logits
    if not looks or not bool(logs.detach()[:, 0].sum().isfinite()):  # NaN of one class is NaN of all
        logs = F.log_softmax(torch.where(valid[:, None], logits, 0.0), 1)
    total = F.nll_loss(logs, labels, ignore_index=ignore_index, reduction="sum")
    return total / valid.sum().clamp(min=1)
