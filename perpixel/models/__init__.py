"""Segmentation networks that torchvision does not have."""

from perpixel.models.build import NETWORKS, build
from perpixel.models.deeplab import (
    AtrousPyramid,
    DeepLab,
    deeplab_largefov_vgg16,
    deeplab_v2_resnet101,
    deeplab_v2_vgg16,
)
from perpixel.models.parameter_groups import parameter_groups
from perpixel.models.small import SmallFCN, small_fcn

__all__ = [
    "NETWORKS",
    "AtrousPyramid",
    "DeepLab",
    "SmallFCN",
    "build",
    "deeplab_largefov_vgg16",
    "deeplab_v2_resnet101",
    "deeplab_v2_vgg16",
    "parameter_groups",
    "small_fcn",
]
