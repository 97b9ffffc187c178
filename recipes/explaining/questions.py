"""Which images are looked at, and what is asked of each: a label, and the region where the network sees it."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from perpixel.checks import complain
from recipes.explaining.settings import AskSettings, DataSetSettings, ExplainSettings
from recipes.kit.images import Images
from recipes.kit.scores import predict
from recipes.tracing.evidence import find_trials
from recipes.tracing.pictures import read_picture
from recipes.tracing.settings import MeasureSettings

KINDS = ("far body, right", "far body, mistaken", "context", "local")  # trials whose evidence is known
EVIDENCE = {
    "far body, right": "the head, asked of body pixels far from it that are labelled right",
    "far body, mistaken": "the head, asked of far body pixels taken for the relative, and for that label",
    "context": "the ground around a tortoise or turtle",
    "local": "the blossom itself (control: there is no context to find)",
}


@dataclass(frozen=True)
class Question:
    """What puts `label` on the pixels of `region`, bool (H, W)? evidence: bool (H, W), where that is known."""

    kind: str
    label: int
    region: Tensor
    evidence: Tensor | None = None


@dataclass(frozen=True)
class Scene:
    """An image (3, H, W), normalised, as it looks (in [0, 1]), its truth, and the labels of the explained network.

    questions: those about labels; trials: those with known evidence.
    """

    name: str
    image: Tensor
    shown: Tensor
    truth: Tensor | None
    predicted: Tensor
    questions: list[Question]
    trials: list[Question] = field(default_factory=list)

    @property
    def slug(self) -> str:
        """The name in a file name: letters, digits and hyphens."""
        return slug(self.name)


def slug(text: str) -> str:
    """Letters, digits and hyphens."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-") or "image"


def with_distinct_names(scenes: Sequence[Scene]) -> list[Scene]:
    """The scenes; where file names would be the same (files of one name in two folders), numbered."""
    result, taken = list[Scene](), set[str]()
    for scene in scenes:
        name, number = scene.name, 2
        while slug(name) in taken:
            name, number = f"{scene.name} {number}", number + 1
        taken.add(slug(name))
        result.append(replace(scene, name=name))
    return result


@dataclass(frozen=True)
class Choice:
    """Numbers of evaluation images to draw and to measure, files to draw, classes asked about; labels per drawn one."""

    drawn: dict[int, list[int]]
    measured: list[int]
    files: list[str]
    asked: list[int]


def asked_classes(images: Images, ask: AskSettings) -> list[int] | None:
    """The classes named in the settings; None where they are to be found in the data."""
    known = {name: number for number, name in enumerate(images.classes)}
    for name in ask.labels or ():
        if name not in known:
            raise ValueError(complain("ask.labels", f"names among {', '.join(known)}", name, "Check the spelling."))
    if ask.labels is not None:
        return [known[name] for name in ask.labels]
    if images.pairs:  # one of each pair first: they differ the most
        return [pair.first for pair in images.pairs] + [pair.second for pair in images.pairs]
    return None


@torch.no_grad()
def count_right(
    network: nn.Module, device: torch.device, images: Images, told: Callable[[int], None] | None = None
) -> tuple[Tensor, Tensor]:
    """Pixels of every evaluation image and class predicted, and predicted right: int64 (N, C) each."""
    found, right = [], []
    for index, batch, labels, _ in images.evaluation(batch_size=8, far=0.0):
        predicted = predict(network, batch.to(device), labels.shape[-2:]).cpu()
        for one, truth in zip(predicted, labels):
            found.append(torch.bincount(one.flatten(), minlength=images.num_classes))
            right.append(torch.bincount(one[one == truth], minlength=images.num_classes))
        if told is not None:
            told(len(index))
    return torch.stack(found), torch.stack(right)


def choose(settings: ExplainSettings, images: Images, found: Tensor, right: Tensor) -> Choice:
    """The images and labels of a run, from what the network predicts (`count_right`)."""
    ask = settings.ask
    enough = (found >= ask.least) & (right >= ask.least)
    asked = asked_classes(images, ask)
    if asked is None:
        often = right.sum(0)
        asked = [c for c in often.argsort().tolist() if enough[:, c].any()]
    numbers = [image for image in ask.images or () if isinstance(image, int)]
    for number in numbers:
        if not 0 <= number < images.evaluated:
            expected = f"numbers in [0, {images.evaluated})"
            raise ValueError(complain("ask.images", expected, number, "Count the evaluation images from 0."))
    if ask.images is None:
        numbers = _most_right(right.where(enough, 0), asked, ask.pictures)
        if not numbers:
            names = ", ".join(images.classes[c] for c in asked)
            expected = f"labels right on {ask.least} pixels of an image"
            raise ValueError(complain("ask.labels", expected, f"none of {names}", "Train longer, or ask others."))
    usual = found.double().mean(0)
    drawn = {n: _standing_out(found[n], asked, usual, ask) for n in numbers}
    candidates = enough[:, asked].any(1).nonzero().flatten().tolist()
    measured = evenly(candidates, settings.measure.images) if settings.measure.images else numbers
    return Choice(drawn, measured, ask.files, asked)


def _most_right(right: Tensor, asked: Sequence[int], count: int) -> list[int]:
    """For each label in turn, again and again, the image where most of it is right, among those not yet chosen."""
    left, chosen = right.clone(), list[int]()
    while len(chosen) < count and bool((left[:, list(asked)] > 0).any()):
        for label in asked:
            best = int(left[:, label].argmax())
            if len(chosen) < count and left[best, label] > 0:
                chosen.append(best)
                left[best] = 0
    return chosen


def _standing_out(found: Tensor, asked: Sequence[int], usual: Tensor, ask: AskSettings) -> list[int]:
    """The labels asked of one image: predicted on enough pixels, those with the most for their class first."""
    here = [c for c in asked if found[c] >= ask.least]
    return sorted(here, key=lambda c: float(-found[c] / usual[c]))[: ask.most]


def evenly(values: Sequence[int], count: int) -> list[int]:
    """At most `count` of the values, evenly spread over them."""
    if count >= len(values):
        return list(values)
    return [values[int(i)] for i in np.linspace(0, len(values) - 1, count).round()]


class Scenes:
    """Makes the scenes of a run."""

    def __init__(self, settings: ExplainSettings, images: Images, network: nn.Module, device: torch.device) -> None:
        self.settings, self.images, self.network, self.device = settings, images, network, device

    def drawn(self, index: int, labels: Sequence[int]) -> Scene:
        """Evaluation image number `index`, asked about these labels, whatever the truth is."""
        whole = bool(self.settings.measure.images)  # else what is drawn is also what is measured
        scene = self.evaluation(index, [])
        questions = []
        for label in labels:
            known = [t.evidence for t in scene.trials if t.label == label and t.evidence is not None]
            evidence = torch.stack(known).any(0) if known else None
            questions.append(Question("label", label, scene.predicted == label, evidence))
        return replace(scene, questions=questions, trials=[] if whole else scene.trials)

    def evaluation(self, index: int, asked: Sequence[int]) -> Scene:
        """Evaluation image number `index`, asked about those of the labels that are right on enough pixels."""
        _, batch, labels, _ = next(iter(self.images.evaluation(batch_size=1, far=0.0, only=[index])))
        predicted = self._predict(batch)
        least = self.settings.ask.least
        regions = {c: predicted == c for c in asked}
        questions = [
            Question("label", c, region)
            for c, region in regions.items()
            if int(region.sum()) >= least and int((region & (labels[0] == c)).sum()) >= least
        ]
        trials = []
        if self.images.pairs:
            sample = self.images.evaluation_sample(index)
            measure = _trial_settings(self.settings.measure)
            found = find_trials(index, sample, predicted, self.images, measure)
            trials = [Question(t.kind, t.label, t.start, t.evidence) for t in found if t.kind in KINDS]
        shown = self.images.displayed(batch[0])
        return Scene(f"image {index}", batch[0], shown, labels[0], predicted, questions, trials)

    def file(self, path: str, asked: Sequence[int]) -> Scene:
        """An image file, brought to the size of the data where that has one."""
        batch, name = read_picture(self.images, self.settings.subject(path))
        predicted = self._predict(batch)
        ask = self.settings.ask
        here = torch.bincount(predicted.flatten(), minlength=self.images.num_classes)
        labels = sorted((c for c in asked if here[c] >= ask.least), key=lambda c: -int(here[c]))[: ask.most]
        questions = [Question("label", c, predicted == c) for c in labels]
        shown = self.images.displayed(batch[0])
        return Scene(name, batch[0], shown, None, predicted, questions)

    @torch.no_grad()
    def _predict(self, batch: Tensor) -> Tensor:
        return predict(self.network, batch.to(self.device), batch.shape[-2:])[0].cpu()


def _trial_settings(measure: DataSetSettings) -> MeasureSettings:
    return MeasureSettings(far=measure.far, view=measure.view)
