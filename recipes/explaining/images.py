"""Which images are explained, and the regions asked about: where a label is predicted, or its evidence is known."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from perpixel.checks import complain
from perpixel.evaluation import predict_labels
from recipes.explaining.settings import AskSettings, ExplainSettings
from recipes.kit.evidence import BLOSSOM, FAR_MISTAKEN, FAR_RIGHT, GROUND, find_evidence_regions
from recipes.kit.images import Images

ALL_OF_LABEL = "all pixels of the label"
# kinds of regions of which it is known what decides their label -> what that is
EVIDENCE = {
    FAR_RIGHT: "the head",
    FAR_MISTAKEN: "the head",
    GROUND: "the ground around",
    BLOSSOM: "the blossom itself",
}


@dataclass(frozen=True)
class Region:
    """What puts `label` on the pixels of `mask`, bool (H, W)? evidence: bool (H, W), where that is known.

    kind: ALL_OF_LABEL for all pixels that are predicted so, or one of EVIDENCE.
    """

    kind: str
    label: int
    mask: Tensor
    evidence: Tensor | None = None


@dataclass(frozen=True)
class ExplainedImage:
    """An image (3, H, W), normalised and as it looks (in [0, 1]), its truth, and the labels of the explained network.

    regions: of the labels asked about; evidence_regions: those with known evidence.
    """

    name: str
    pixels: Tensor
    display: Tensor
    truth: Tensor | None
    predicted: Tensor
    regions: list[Region]
    evidence_regions: list[Region] = field(default_factory=list)

    @property
    def file_name(self) -> str:
        return file_name(self.name)


def file_name(text: str) -> str:
    """Letters, digits and hyphens."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-") or "image"


def with_distinct_names(images: Sequence[ExplainedImage]) -> list[ExplainedImage]:
    """The images; where file names would be the same (files of one name in two folders), numbered."""
    result, taken = list[ExplainedImage](), set[str]()
    for image in images:
        name, number = image.name, 2
        while file_name(name) in taken:
            name, number = f"{image.name} {number}", number + 1
        taken.add(file_name(name))
        result.append(replace(image, name=name))
    return result


@dataclass(frozen=True)
class Selection:
    """Numbers of evaluation images to draw, with their labels, and to measure; files to draw; labels asked about."""

    drawn: dict[int, list[int]]
    measured: list[int]
    files: list[str]
    labels: list[int]


def named_labels(images: Images, ask: AskSettings) -> list[int] | None:
    """The classes named in the settings; None where they are to be found in the data."""
    if ask.labels is not None:
        return images.class_numbers(ask.labels, "ask.labels")
    if images.pairs:  # one of each pair first: they differ the most
        return [pair.first for pair in images.pairs] + [pair.second for pair in images.pairs]
    return None


@torch.no_grad()
def count_predicted(network: nn.Module, device: torch.device, images: Images) -> tuple[Tensor, Tensor]:
    """Pixels of every evaluation image and class predicted, and predicted right: int64 (N, C) each."""
    found, right = [], []
    for _, batch, labels, _ in images.evaluation(batch_size=8, far=0.0):
        predicted = predict_labels(network, batch.to(device)).cpu()
        for one, truth in zip(predicted, labels):
            found.append(torch.bincount(one.flatten(), minlength=images.num_classes))
            right.append(torch.bincount(one[one == truth], minlength=images.num_classes))
    return torch.stack(found), torch.stack(right)


def select_images(settings: ExplainSettings, images: Images, found: Tensor, right: Tensor) -> Selection:
    """The images and labels of a run, from what the network predicts (`count_predicted`)."""
    ask = settings.ask
    enough = (found >= ask.least) & (right >= ask.least)
    labels = named_labels(images, ask)
    if labels is None:
        labels = [c for c in right.sum(0).argsort().tolist() if enough[:, c].any()]
    numbers = [image for image in ask.images or () if isinstance(image, int)]
    for number in numbers:
        if not 0 <= number < images.evaluated:
            expected = f"numbers in [0, {images.evaluated})"
            raise ValueError(complain("ask.images", expected, number, "Count the evaluation images from 0."))
    if ask.images is None:
        numbers = _most_right(right.where(enough, 0), labels, ask.pictures)
        if not numbers:
            names = ", ".join(images.classes[c] for c in labels)
            expected = f"labels right on {ask.least} pixels of an image"
            raise ValueError(complain("ask.labels", expected, f"none of {names}", "Train longer, or ask others."))
    usual = found.double().mean(0)
    drawn = {n: _predicted_labels(found[n], labels, ask, usual) for n in numbers}
    candidates = enough[:, labels].any(1).nonzero().flatten().tolist()
    measured = evenly(candidates, settings.measure.images) if settings.measure.images else numbers
    return Selection(drawn, measured, ask.files, labels)


def _most_right(right: Tensor, labels: Sequence[int], count: int) -> list[int]:
    """For each label in turn, again and again, the image where most of it is right, among those not yet chosen."""
    left, chosen = right.clone(), list[int]()
    while len(chosen) < count and bool((left[:, list(labels)] > 0).any()):
        for label in labels:
            best = int(left[:, label].argmax())
            if len(chosen) < count and left[best, label] > 0:
                chosen.append(best)
                left[best] = 0
    return chosen


def _predicted_labels(found: Tensor, labels: Sequence[int], ask: AskSettings, usual: Tensor | None = None) -> list[int]:
    """The labels predicted on enough pixels of one image: the most pixels first, relative to `usual` ones."""
    here = [c for c in labels if found[c] >= ask.least]
    weight = found if usual is None else found / usual
    return sorted(here, key=lambda c: -float(weight[c]))[: ask.most]


def evenly(values: Sequence[int], count: int) -> list[int]:
    """At most `count` of the values, evenly spread over them."""
    if count >= len(values):
        return list(values)
    return [values[int(i)] for i in np.linspace(0, len(values) - 1, count).round()]


@dataclass
class ImageReader:
    """Reads images, has the explained network label them, and finds their regions."""

    settings: ExplainSettings
    images: Images
    network: nn.Module
    device: torch.device

    def drawn(self, selection: Selection) -> list[ExplainedImage]:
        found = [self.with_labels(number, labels) for number, labels in selection.drawn.items()]
        return with_distinct_names([*found, *(self.file(path, selection.labels) for path in selection.files)])

    def with_labels(self, index: int, labels: Sequence[int]) -> ExplainedImage:
        """Evaluation image number `index`, asked about these labels, whatever the truth is."""
        image = self.evaluation(index, [])
        for label in labels:
            known = [r.evidence for r in image.evidence_regions if r.label == label and r.evidence is not None]
            evidence = torch.stack(known).any(0) if known else None
            image.regions.append(Region(ALL_OF_LABEL, label, image.predicted == label, evidence))
        return replace(image, evidence_regions=[]) if self.settings.measure.images else image

    def evaluation(self, index: int, labels: Sequence[int]) -> ExplainedImage:
        """Evaluation image number `index`, asked about those of the labels that are right on enough pixels."""
        _, batch, truth, _ = next(iter(self.images.evaluation(batch_size=1, far=0.0, only=[index])))
        predicted = self._predict(batch)
        right = predicted[predicted == truth[0]]
        least, evidence_regions = self.settings.ask.least, []
        regions = [Region(ALL_OF_LABEL, c, predicted == c) for c in labels if int((right == c).sum()) >= least]
        if self.images.pairs:
            found = find_evidence_regions(self.images, index, predicted, self.settings.measure)
            evidence_regions = [Region(r.kind, r.label, r.start, r.evidence) for r in found if r.kind in EVIDENCE]
        display = self.images.displayed(batch[0])
        return ExplainedImage(f"image {index}", batch[0], display, truth[0], predicted, regions, evidence_regions)

    def file(self, path: str, labels: Sequence[int]) -> ExplainedImage:
        """An image file, brought to the size of the data where that has one."""
        batch, name = self.images.picture(path, "ask.images")
        predicted = self._predict(batch)
        found = torch.bincount(predicted.flatten(), minlength=self.images.num_classes)
        regions = [Region(ALL_OF_LABEL, c, predicted == c) for c in _predicted_labels(found, labels, self.settings.ask)]
        return ExplainedImage(name, batch[0], self.images.displayed(batch[0]), None, predicted, regions)

    @torch.no_grad()
    def _predict(self, batch: Tensor) -> Tensor:
        return predict_labels(self.network, batch.to(self.device))[0].cpu()
