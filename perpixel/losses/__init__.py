"""Per-pixel losses that keep the signature of `nn.CrossEntropyLoss` once attached."""

from perpixel.losses.image_label import ImageLabelLoss, image_label_loss, pool_maps
from perpixel.losses.template_similarity.loss import TemplateSimilarityLoss, template_similarity_loss
from perpixel.losses.weighted_cross_entropy import weighted_cross_entropy

__all__ = [
    "ImageLabelLoss",
    "TemplateSimilarityLoss",
    "image_label_loss",
    "pool_maps",
    "template_similarity_loss",
    "weighted_cross_entropy",
]
