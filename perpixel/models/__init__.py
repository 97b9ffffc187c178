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
from perpixel.models.fcn import FCN, fcn8s_vgg16, fcn16s_vgg16, fcn32s_alexnet, fcn32s_googlenet, fcn32s_vgg16
from perpixel.models.learnable_upsampling import LearnableUpsampling
from perpixel.models.small import SmallFCN, small_fcn

__all__ = [
    "FCN",
    "NETWORKS",
    "CheckpointMismatch",
    "CheckpointReport",
    "LearnableUpsampling",
    "SmallFCN",
    "build",
    "fcn8s_vgg16",
    "fcn16s_vgg16",
    "fcn32s_alexnet",
    "fcn32s_googlenet",
    "fcn32s_vgg16",
    "fetching",
    "find_state_dict",
    "load_checkpoint",
    "read_checkpoint",
    "small_fcn",
]
