"""Pictures and pages for people: charts (one file per subject in `charts/`), and the context explorer."""

from perpixel.report.charts.attribution import CurvePanel, class_matrix_chart, profile_chart, removal_chart
from perpixel.report.charts.fixations import PointPanel, fixation_backdrop, on_backdrop, point_sheet
from perpixel.report.charts.intervals import count_chart, interval_chart
from perpixel.report.charts.maps import MapPanel, signed_panels
from perpixel.report.charts.predictions import prediction_sheet
from perpixel.report.charts.skips import character_chart, depth_chart
from perpixel.report.charts.training import training_curves
from perpixel.report.explorer.page import ExplorerPage, context_explorer
from perpixel.report.summary_page import summary_page
from perpixel.report.theme import animation_bytes, picture_bytes

__all__ = [
    "CurvePanel",
    "ExplorerPage",
    "MapPanel",
    "PointPanel",
    "animation_bytes",
    "character_chart",
    "class_matrix_chart",
    "context_explorer",
    "count_chart",
    "depth_chart",
    "fixation_backdrop",
    "interval_chart",
    "on_backdrop",
    "picture_bytes",
    "point_sheet",
    "prediction_sheet",
    "profile_chart",
    "removal_chart",
    "signed_panels",
    "summary_page",
    "training_curves",
]
