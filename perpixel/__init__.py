"""perpixel: tell a segmentation network, pixel by pixel, which evidence its labels rest on, and train it with that."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from perpixel.attach import Feedback, attach
from perpixel.fixations import FixationRules, Fixations, Share, fixations
from perpixel.losses import TemplateSimilarityLoss, template_similarity_loss, weighted_cross_entropy

if TYPE_CHECKING:
    from perpixel import data, evaluation, models, report

__version__ = "0.1.0"
__all__ = [
    "Feedback",
    "FixationRules",
    "Fixations",
    "Share",
    "TemplateSimilarityLoss",
    "attach",
    "data",
    "evaluation",
    "fixations",
    "models",
    "report",
    "template_similarity_loss",
    "weighted_cross_entropy",
]
_SUBPACKAGES = ("data", "evaluation", "models", "report")


def __getattr__(name: str) -> Any:
    """Subpackages load when first used; they bring torchvision, scipy and matplotlib."""
    if name in _SUBPACKAGES:
        return import_module(f"perpixel.{name}")
    raise AttributeError(f"module 'perpixel' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
