"""Segmentation networks that torchvision does not have."""

from perpixel.models.small import SmallFCN, small_fcn

__all__ = ["SmallFCN", "small_fcn"]
