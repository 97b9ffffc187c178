"""Segmentation networks that torchvision does not have."""

from perpixel.models.build import NETWORKS, build
from perpixel.models.deconvolution import DeconvolutionStack, deconvolution_stack
from perpixel.models.small import SmallFCN, small_fcn

__all__ = ["NETWORKS", "DeconvolutionStack", "SmallFCN", "build", "deconvolution_stack", "small_fcn"]
