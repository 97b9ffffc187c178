"""Segmentation networks that torchvision does not have."""

from perpixel.models.backbones import fetching
from perpixel.models.build import NETWORKS, build
from perpixel.models.checkpoints import (
    CheckpointMismatch,
    CheckpointReport,
    find_state_dict,
    load_checkpoint,
    read_checkpoint,
)
from perpixel.models.small import SmallFCN, small_fcn

__all__ = [
    "NETWORKS",
    "CheckpointMismatch",
    "CheckpointReport",
    "SmallFCN",
    "build",
    "fetching",
    "find_state_dict",
    "load_checkpoint",
    "read_checkpoint",
    "small_fcn",
]
