"""Figures for people: training curves, prediction sheets, and fixations as points, heat, flow and charts."""

from perpixel.report.fixation_pictures import (
    PointPanel,
    animation_bytes,
    count_chart,
    fixation_backdrop,
    interval_chart,
    on_backdrop,
    picture_bytes,
    point_sheet,
)
from perpixel.report.plots import prediction_sheet, training_curves

__all__ = [
    "PointPanel",
    "animation_bytes",
    "count_chart",
    "fixation_backdrop",
    "interval_chart",
    "on_backdrop",
    "picture_bytes",
    "point_sheet",
    "prediction_sheet",
    "training_curves",
]
