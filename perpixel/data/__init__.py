"""Data sets whose samples start with (image, labels), and the transforms for them."""

from .bestiary import Pair
from .synthetic import EvidenceSample, SyntheticEvidence, evidence_distance

__all__ = ["EvidenceSample", "Pair", "SyntheticEvidence", "evidence_distance"]
