"""What is measured of every explained image, in the order of summary.md: a file each, and a line here."""

from recipes.explaining.measurements.class_matrix import ClassContextMatrix
from recipes.explaining.measurements.curves import RemovalCurves
from recipes.explaining.measurements.measurement import Figure, Measurement, Results, Rows
from recipes.explaining.measurements.object_alone import ObjectAlone
from recipes.explaining.measurements.profiles import RadialProfiles
from recipes.explaining.measurements.salient_parts import ObjectsWithoutSalientParts
from recipes.explaining.measurements.signed_maps import EvidenceShares, SignedMaps

MEASUREMENTS: tuple[type[Measurement], ...] = (
    ClassContextMatrix,
    ObjectAlone,
    SignedMaps,
    EvidenceShares,
    RadialProfiles,
    RemovalCurves,
    ObjectsWithoutSalientParts,
)

__all__ = ["MEASUREMENTS", "Figure", "Measurement", "Results", "Rows"]
