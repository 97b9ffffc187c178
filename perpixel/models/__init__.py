"""Segmentation networks that torchvision does not have."""

from perpixel.models.build import NETWORKS, build
from perpixel.models.skips import FeatureMap, SkipHead, SkipNetwork, feature_maps, single_skip
from perpixel.models.small import SmallFCN, small_fcn

__all__ = [
    "NETWORKS",
    "FeatureMap",
    "SkipHead",
    "SkipNetwork",
    "SmallFCN",
    "build",
    "feature_maps",
    "single_skip",
    "small_fcn",
]
