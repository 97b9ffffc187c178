"""How good is a segmentation, and is one better than another?"""

from perpixel.evaluation.comparison import METRICS, ScoreDifference, compare_scores, mean_score, t_interval
from perpixel.evaluation.per_image import SegmentationScores, predict_labels, score_images
from perpixel.evaluation.segmentation import (
    boundary_f_scores,
    class_iou,
    confusion_matrices,
    mean_iou,
    pixel_accuracy,
)
from perpixel.evaluation.statistics import BootstrapInterval, bootstrap_images, ratio

__all__ = [
    "METRICS",
    "BootstrapInterval",
    "ScoreDifference",
    "SegmentationScores",
    "bootstrap_images",
    "boundary_f_scores",
    "class_iou",
    "compare_scores",
    "confusion_matrices",
    "mean_iou",
    "mean_score",
    "pixel_accuracy",
    "predict_labels",
    "ratio",
    "score_images",
    "t_interval",
]
