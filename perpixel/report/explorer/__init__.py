"""`context_explorer`: a page in which a person asks any pixel which patches decide its label."""

from perpixel.report.explorer.page import ExplorerPage, context_explorer

__all__ = ["ExplorerPage", "context_explorer"]
