"""perpixel: tell a segmentation network, pixel by pixel, which evidence its labels rest on, and train it with that."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from perpixel.attach.criterion import Feedback, attach
from perpixel.fixations import FixationRules, Fixations, Share, fixations
from perpixel.losses import (
    ImageLabelLoss,
    TemplateSimilarityLoss,
    image_label_loss,
    template_similarity_loss,
    weighted_cross_entropy,
)

if TYPE_CHECKING:
    from perpixel import attribution, data, evaluation, models, report, weighting
    from perpixel.attribution import (
        Attribution,
        Faithfulness,
        Influence,
        RegionTarget,
        explain,
        faithfulness,
        influence,
    )
    from perpixel.part_occlusion import SalientParts, salient_parts
    from perpixel.weighting import DiscriminativeRegionLoss, FixationWeightedLoss

__version__ = "0.1.0"
__all__ = [
    "Attribution",
    "DiscriminativeRegionLoss",
    "Faithfulness",
    "Feedback",
    "FixationRules",
    "FixationWeightedLoss",
    "Fixations",
    "ImageLabelLoss",
    "Influence",
    "RegionTarget",
    "SalientParts",
    "Share",
    "TemplateSimilarityLoss",
    "attach",
    "attribution",
    "data",
    "evaluation",
    "explain",
    "faithfulness",
    "fixations",
    "image_label_loss",
    "influence",
    "models",
    "report",
    "salient_parts",
    "template_similarity_loss",
    "weighted_cross_entropy",
    "weighting",
]
_SUBPACKAGES = ("attribution", "data", "evaluation", "models", "report", "weighting")
_INSIDE = {
    "attribution": (
        "Attribution",
        "Faithfulness",
        "Influence",
        "RegionTarget",
        "explain",
        "faithfulness",
        "influence",
    ),
    "part_occlusion": ("SalientParts", "salient_parts"),
    "weighting": ("DiscriminativeRegionLoss", "FixationWeightedLoss"),
}


def __getattr__(name: str) -> Any:
    """What brings torchvision, scipy, matplotlib or torch's compiler along, or is large, loads when first used."""
    if name in _SUBPACKAGES:
        return import_module(f"perpixel.{name}")
    for subpackage, names in _INSIDE.items():
        if name in names:
            return getattr(import_module(f"perpixel.{subpackage}"), name)
    raise AttributeError(f"module 'perpixel' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
