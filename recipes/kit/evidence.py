"""Synthetic data knows what decides each label: pixels to ask about, and where their evidence lies."""

from dataclasses import dataclass

from torch import Tensor

from perpixel.data import evidence_distance
from recipes.kit.images import Images
from recipes.kit.settings import MeasureSettings

FAR, GROUND, BLOSSOM, WHOLE = "body far from its head", "tortoise or turtle", "blossom", "whole object"
FAR_RIGHT, FAR_MISTAKEN = f"{FAR}, labelled right", f"{FAR}, taken for the other species"
FAR_OTHER = f"{FAR}, asked for the other species"
# kind -> which pixels are asked about, and what decides their label
KINDS = {
    FAR: "pixels of long creatures that only the head tells from a second species, far from it, asked for their "
    "true species; what decides: the head",
    FAR_OTHER: "the same pixels asked for the second species, for which the head does not speak",
    FAR_RIGHT: "those of them that the network labels right",
    FAR_MISTAKEN: "those that it takes for the second species, still asked for their true one",
    BLOSSOM: "poppies and cornflowers; what decides: the blossom itself, and nothing outside it",
    GROUND: "they look the same; what decides: the ground around them (meadow or sea), and nothing on them",
    WHOLE: "all pixels of all objects; what decides here: any pixel of any object",
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
            regions.append(EvidenceRegion(BLOSSOM, index, label, own, own & sample.evidence, own))
        elif kinds.get(label) == "context":
            regions.append(EvidenceRegion(GROUND, index, label, own, sample.evidence & (sample.instances == 0), own))
        elif kinds.get(label) == "confusable":
            head, start, other = own & sample.evidence, own & far, rival[label]
            regions.append(EvidenceRegion(FAR, index, label, start, head, own))
            regions.append(EvidenceRegion(FAR_RIGHT, index, label, start & (predicted == label), head, own))
            regions.append(EvidenceRegion(FAR_MISTAKEN, index, label, start & (predicted == other), head, own))
            regions.append(EvidenceRegion(FAR_OTHER, index, other, start, head, own))
    for label in sample.labels[sample.instances > 0].unique().tolist():
        if label in kinds:
            mine = (sample.labels == label) & (sample.instances > 0)
            regions.append(EvidenceRegion(WHOLE, index, label, mine, sample.evidence, mine))
    return [region for region in regions if bool(region.start.any()) and bool(region.evidence.any())]
