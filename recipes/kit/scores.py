"""To be deleted: perpixel.evaluation has taken its place."""

from perpixel.evaluation import predict_labels as predict  # noqa: F401
