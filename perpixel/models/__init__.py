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
from perpixel.models.deconvolution import DeconvolutionStack, deconvolution_stack
from perpixel.models.deeplab import (
    AtrousPyramid,
    DeepLab,
    deeplab_largefov_vgg16,
    deeplab_v2_resnet101,
    deeplab_v2_vgg16,
)
from perpixel.models.fcn import FCN, fcn8s_vgg16, fcn16s_vgg16, fcn32s_alexnet, fcn32s_googlenet, fcn32s_vgg16
from perpixel.models.learnable_upsampling import LearnableUpsampling
from perpixel.models.nodes import FeatureMap, feature_maps
from perpixel.models.parameter_groups import parameter_groups
from perpixel.models.skips import SkipHead, SkipNetwork, single_skip
from perpixel.models.small import SmallFCN, small_fcn

__all__ = [
    "FCN",
    "NETWORKS",
    "AtrousPyramid",
    "CheckpointMismatch",
    "CheckpointReport",
    "DeconvolutionStack",
    "DeepLab",
    "FeatureMap",
    "LearnableUpsampling",
    "SkipHead",
    "SkipNetwork",
    "SmallFCN",
    "build",
    "deconvolution_stack",
    "deeplab_largefov_vgg16",
    "deeplab_v2_resnet101",
    "deeplab_v2_vgg16",
    "fcn8s_vgg16",
    "fcn16s_vgg16",
    "fcn32s_alexnet",
    "fcn32s_googlenet",
    "fcn32s_vgg16",
    "feature_maps",
    "fetching",
    "find_state_dict",
    "load_checkpoint",
    "parameter_groups",
    "read_checkpoint",
    "single_skip",
    "small_fcn",
]
