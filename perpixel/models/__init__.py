"""Segmentation networks that torchvision does not have."""

from perpixel.models.build import NETWORKS, build
from perpixel.models.fcn import FCN, fcn8s_vgg16, fcn16s_vgg16, fcn32s_alexnet, fcn32s_googlenet, fcn32s_vgg16
from perpixel.models.learnable_upsampling import LearnableUpsampling
from perpixel.models.nodes import FeatureMap, feature_maps
from perpixel.models.skips import SkipHead, SkipNetwork, single_skip
from perpixel.models.small import SmallFCN, small_fcn

__all__ = [
    "FCN",
    "NETWORKS",
    "FeatureMap",
    "LearnableUpsampling",
    "SkipHead",
    "SkipNetwork",
    "SmallFCN",
    "build",
    "fcn8s_vgg16",
    "fcn16s_vgg16",
    "fcn32s_alexnet",
    "fcn32s_googlenet",
    "fcn32s_vgg16",
    "feature_maps",
    "single_skip",
    "small_fcn",
]
