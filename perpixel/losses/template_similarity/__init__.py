"""Per-pixel template similarity (Ganeshan 2017, arXiv 1712.02861, chapter 3)."""

from perpixel.losses.template_similarity.loss import TemplateSimilarityLoss, template_similarity_loss

__all__ = ["TemplateSimilarityLoss", "template_similarity_loss"]
