"""Figures: training curves, prediction sheets, signed maps, fixations, and charts of what was measured."""
