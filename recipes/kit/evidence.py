"""Synthetic data knows what decides each label: pixels to ask about, and where their evidence lies."""

from dataclasses import dataclass

from torch import Tensor

from perpixel.data import evidence_distance
from recipes.kit.images import Images
from recipes.kit.settings import MeasureSettings

# kind -> which pixels are asked about, and what their evidence is
KINDS = {
    "far body": "body pixels of confusable creatures far from the head, asked for their true class; evidence: the head",
    "far body, swapped": "the same pixels asked for the relative, for which the head does not speak",
    "far body, right": "those of the far body pixels that the network labels right",
    "far body, mistaken": "those that it takes for the relative, still asked for their true class",
    "local": "blossoms; evidence: the blossom itself, and nothing outside it",
    "context": "tortoises and turtles; evidence: the ground around them, and nothing on them",
    "whole mask": "all pixels of all objects; evidence: the whole mask, whosever it is",
}


@dataclass(frozen=True)
class EvidenceRegion:
    """Pixels `start` (H, W) of an image, asked for `label`; where their `evidence` lies, and their `own` object."""

    kind: str
    image: int
    label: int
    start: Tensor
    evidence: Tensor
    own: Tensor


def find_evidence_regions(
    images: Images, index: int, predicted: Tensor, measure: MeasureSettings
) -> list[EvidenceRegion]:
    """The regions of evaluation image number `index`; `predicted` (H, W) are the network's labels."""
    sample = images.evaluation_sample(index)
    kinds = {c: pair.kind for pair in images.pairs for c in (pair.first, pair.second)}
    rival = {a: b for pair in images.pairs for a, b in ((pair.first, pair.second), (pair.second, pair.first))}
    distance = evidence_distance(sample.instances, sample.evidence)
    far = (distance >= measure.far) & (distance <= (measure.view or float("inf"))) & distance.isfinite()
    regions = []
    for number in sample.instances.unique().tolist():
        own = sample.instances == number
        label = int(sample.labels[own][0])
        if kinds.get(label) == "local":
            regions.append(EvidenceRegion("local", index, label, own, own & sample.evidence, own))
        elif kinds.get(label) == "context":
            regions.append(EvidenceRegion("context", index, label, own, sample.evidence & (sample.instances == 0), own))
        elif kinds.get(label) == "confusable":
            head, start, other = own & sample.evidence, own & far, rival[label]
            regions.append(EvidenceRegion("far body", index, label, start, head, own))
            regions.append(EvidenceRegion("far body, right", index, label, start & (predicted == label), head, own))
            regions.append(EvidenceRegion("far body, mistaken", index, label, start & (predicted == other), head, own))
            regions.append(EvidenceRegion("far body, swapped", index, other, start, head, own))
    for label in sample.labels[sample.instances > 0].unique().tolist():
        if label in kinds:
            mine = (sample.labels == label) & (sample.instances > 0)
            regions.append(EvidenceRegion("whole mask", index, label, mine, sample.evidence, mine))
    return [region for region in regions if bool(region.start.any()) and bool(region.evidence.any())]
