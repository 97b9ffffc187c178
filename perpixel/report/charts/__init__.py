"""Figures: one file per subject, all drawn by `perpixel.report.theme`."""
