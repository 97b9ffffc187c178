"""Data sets whose samples start with (image, labels), and the transforms for them. torchvision loads when needed."""

from typing import TYPE_CHECKING, Any

from perpixel.data.build import build
from perpixel.data.deterministic import Deterministic
from perpixel.data.files.folder import FolderSegmentation
from perpixel.data.files.samples import SegmentationData, palette, read_image
from perpixel.data.synthetic.classes import Pair
from perpixel.data.synthetic.dataset import EvidenceSample, SyntheticEvidence
from perpixel.data.synthetic.distance import evidence_distance

if TYPE_CHECKING:
    from perpixel.data.transforms import (
        IMAGENET_MEAN,
        IMAGENET_STD,
        PadTo,
        RandomScaledCrop,
        ResizeTo,
        denormalize,
        eval_transforms,
        train_transforms,
    )

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Deterministic",
    "EvidenceSample",
    "FolderSegmentation",
    "PadTo",
    "Pair",
    "RandomScaledCrop",
    "ResizeTo",
    "SegmentationData",
    "SyntheticEvidence",
    "build",
    "denormalize",
    "eval_transforms",
    "evidence_distance",
    "palette",
    "read_image",
    "train_transforms",
]


def __getattr__(name: str) -> Any:
    if name in __all__:  # those not imported above need torchvision
        from perpixel.data import transforms

        return getattr(transforms, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
