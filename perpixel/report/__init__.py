"""Figures for people: training curves and prediction sheets."""

from perpixel.report.plots import prediction_sheet, training_curves

__all__ = ["prediction_sheet", "training_curves"]
