"""Pictures and pages for people: curves, prediction sheets, fixations, signed maps with their charts, the explorer."""

from perpixel.report.charts.attribution import CurvePanel, class_matrix_chart, profile_chart, removal_chart
from perpixel.report.charts.fixations import (
    PointPanel,
    animation_bytes,
    count_chart,
    fixation_backdrop,
    interval_chart,
    on_backdrop,
    picture_bytes,
    point_sheet,
)
from perpixel.report.charts.maps import MapPanel, signed_panels
from perpixel.report.charts.salient_parts import salient_sheet
from perpixel.report.charts.training import prediction_sheet, training_curves
from perpixel.report.explorer.page import ExplorerPage, context_explorer

__all__ = [
    "CurvePanel",
    "ExplorerPage",
    "MapPanel",
    "PointPanel",
    "animation_bytes",
    "class_matrix_chart",
    "context_explorer",
    "count_chart",
    "fixation_backdrop",
    "interval_chart",
    "on_backdrop",
    "picture_bytes",
    "point_sheet",
    "prediction_sheet",
    "profile_chart",
    "removal_chart",
    "salient_sheet",
    "signed_panels",
    "training_curves",
]
