"""What a term of the criterion is."""

import inspect
from typing import Protocol

from torch import Tensor, nn

from perpixel.checks import check_number, complain


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
