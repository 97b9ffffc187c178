"""Per-pixel losses that keep the signature of `nn.CrossEntropyLoss` once attached."""

from perpixel.losses.template_similarity.loss import TemplateSimilarityLoss, template_similarity_loss
from perpixel.losses.weighted_cross_entropy import weighted_cross_entropy

__all__ = ["TemplateSimilarityLoss", "template_similarity_loss", "weighted_cross_entropy"]
