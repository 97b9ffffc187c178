"""Losses whose weight map asks the model: cross-entropy weighted by what the labels of an image rest on."""

from perpixel.weighting.discriminative_region import DiscriminativeRegionLoss
from perpixel.weighting.fixation_weighted import FixationWeightedLoss
from perpixel.weighting.weight_map import WeightMapLoss

__all__ = ["DiscriminativeRegionLoss", "FixationWeightedLoss", "WeightMapLoss"]
