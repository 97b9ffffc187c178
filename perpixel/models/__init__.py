"""Segmentation networks that torchvision does not have."""

from perpixel.models.build import NETWORKS, build
from perpixel.models.small import SmallFCN, small_fcn

__all__ = ["NETWORKS", "SmallFCN", "build", "small_fcn"]
