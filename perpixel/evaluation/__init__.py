"""How good is a segmentation, and is one better than another?"""

from perpixel.evaluation.per_image import SegmentationScores, predict_labels, score_images
from perpixel.evaluation.segmentation import (
    boundary_f_scores,
    boundary_tolerance,
    class_iou,
    confusion_matrices,
    mean_iou,
    pixel_accuracy,
    segmentation_metrics,
)
from perpixel.evaluation.statistics import BootstrapInterval, bootstrap_images, ratio

__all__ = [
    "BootstrapInterval",
    "SegmentationScores",
    "bootstrap_images",
    "boundary_f_scores",
    "boundary_tolerance",
    "class_iou",
    "confusion_matrices",
    "mean_iou",
    "pixel_accuracy",
    "predict_labels",
    "ratio",
    "score_images",
    "segmentation_metrics",
]
