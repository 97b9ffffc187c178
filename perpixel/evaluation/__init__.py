"""How good is a segmentation, and is one better than another?"""

from perpixel.evaluation.comparison import METRICS, SEEDS, ScoreDifference, compare_scores, mean_score, t_interval
from perpixel.evaluation.per_image import SegmentationScores, predict_labels, score_images
from perpixel.evaluation.segmentation import (
    boundary_f_scores,
    class_iou,
    confusion_matrices,
    mean_iou,
    pixel_accuracy,
)
from perpixel.evaluation.statistics import (
    IMAGES,
    BootstrapInterval,
    Floats,
    Statistic,
    bootstrap_images,
    difference,
    holm,
    quotient,
    ratio,
    ratio_of_sums,
    verdicts,
)

__all__ = [
    "IMAGES",
    "METRICS",
    "SEEDS",
    "BootstrapInterval",
    "Floats",
    "ScoreDifference",
    "SegmentationScores",
    "Statistic",
    "bootstrap_images",
    "boundary_f_scores",
    "class_iou",
    "compare_scores",
    "confusion_matrices",
    "difference",
    "holm",
    "mean_iou",
    "mean_score",
    "pixel_accuracy",
    "predict_labels",
    "quotient",
    "ratio",
    "ratio_of_sums",
    "score_images",
    "t_interval",
    "verdicts",
]
