"""On data that knows what decides each label: does the mass of the fixations lie there, and by more than chance?"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from perpixel.data import evidence_distance
from perpixel.evaluation import BootstrapInterval, bootstrap_images
from recipes.kit.images import Images
from recipes.tracing.settings import MeasureSettings
from recipes.tracing.subject import Subject

Floats = NDArray[np.float64]
Row = dict[str, Any]
# kind -> what is traced, and what its evidence is
KINDS = {
    "far body": "body pixels of confusable creatures far from the head, asked for their true class; evidence: the head",
    "far body, swapped": "the same pixels asked for the relative, for which the head does not speak",
    "far body, right": "those of the far body pixels that the network labels right",
    "far body, mistaken": "those that it takes for the relative, still asked for their true class",
    "local": "blossoms; evidence: the blossom itself, and nothing outside it",
    "context": "tortoises and turtles; evidence: the ground around them, and nothing on them",
    "whole mask": "all pixels of all objects; evidence: the whole mask, whosever it is",
}
SWAPPED = "far body, swapped"
BY_NETWORK = ("far body, right", "far body, mistaken")  # kinds that depend on what the network labels


@dataclass(frozen=True)
class Trial:
    """Pixels `start` (H, W) of an image, traced as `label`; is their mass on `evidence`, is it on `own` object?"""

    kind: str
    image: int
    label: int
    start: Tensor
    evidence: Tensor
    own: Tensor


def find_trials(index: int, sample: Any, predicted: Tensor, images: Images, settings: MeasureSettings) -> list[Trial]:
    """The trials of one image of the synthetic data; `predicted` (H, W) are the network's labels."""
    kinds = {c: pair.kind for pair in images.pairs for c in (pair.first, pair.second)}
    rival = {a: b for pair in images.pairs for a, b in ((pair.first, pair.second), (pair.second, pair.first))}
    distance = evidence_distance(sample.instances, sample.evidence)
    far = (distance >= settings.far) & (distance <= (settings.view or float("inf"))) & distance.isfinite()
    trials = []
    for number in sample.instances.unique().tolist():
        own = sample.instances == number
        label = int(sample.labels[own][0])
        if kinds.get(label) == "local":
            trials.append(Trial("local", index, label, own, own & sample.evidence, own))
        elif kinds.get(label) == "context":
            trials.append(Trial("context", index, label, own, sample.evidence & (sample.instances == 0), own))
        elif kinds.get(label) == "confusable":
            head, start, other = own & sample.evidence, own & far, rival[label]
            trials.append(Trial("far body", index, label, start, head, own))
            trials.append(Trial("far body, right", index, label, start & (predicted == label), head, own))
            trials.append(Trial("far body, mistaken", index, label, start & (predicted == other), head, own))
            trials.append(Trial("far body, swapped", index, other, start, head, own))
    for label in sample.labels[sample.instances > 0].unique().tolist():
        if label in kinds:
            mine = (sample.labels == label) & (sample.instances > 0)
            trials.append(Trial("whole mask", index, label, mine, sample.evidence, mine))
    return [trial for trial in trials if bool(trial.start.any()) and bool(trial.evidence.any())]


def pack(trials: Iterable[Trial]) -> list[list[Trial]]:
    """Rows of trials of one image with different labels and no common pixel: one trace follows a row of them."""
    rows: list[list[Trial]] = []
    for trial in trials:
        for row in rows:
            fits = row[0].image == trial.image and all(
                t.label != trial.label and not bool((t.start & trial.start).any()) for t in row
            )
            if fits:
                row.append(trial)
                break
        else:
            rows.append([trial])
    return rows


def trace_trials(subject: Subject, images: Mapping[int, Tensor], trials: Sequence[Trial], batch: int) -> list[Floats]:
    """For every trial: pixels traced, mass that reached the image, on the evidence, on the own object; in order."""
    found: dict[int, Floats] = {}
    rows = pack(trials)
    for part in (rows[i : i + batch] for i in range(0, len(rows), batch)):
        # Always `batch` rows, the last ones empty if need be: a network may be traced anew for every size of a batch.
        start = torch.full((batch, *trials[0].start.shape), -1, dtype=torch.int64)
        for n, row in enumerate(part):
            for trial in row:
                start[n][trial.start] = trial.label
        shown = [images[row[0].image] for row in (*part, *[part[-1]] * (batch - len(part)))]
        fix = subject.fixations(torch.stack(shown), start)
        image, label, _, y, x = fix.points.cpu().unbind(1)
        mass = fix.mass.cpu()
        for n, row in enumerate(part):
            for trial in row:
                mine = (image == n) & (label == trial.label)
                held, at = mass[mine], (y[mine], x[mine])
                on, own = ((held * mask[at]).sum() for mask in (trial.evidence, trial.own))
                found[id(trial)] = np.array([float(trial.start.sum()), float(held.sum()), float(on), float(own)])
    return [found[id(trial)] for trial in trials]


def measure_evidence(
    networks: Mapping[str, Subject],
    questions: Mapping[str, Mapping[int, int]],
    images: Images,
    indices: Sequence[int],
    settings: MeasureSettings,
    told: Callable[[int], None] | None = None,
    trained: Subject | None = None,
) -> dict[str, Tensor]:
    """Sums per image (N, 5) by "network|question|kind": pixels, mass, on evidence, on own object, mass × chance.

    chance: the evidence's share of the image. trained: the network whose labels tell right from mistaken (None: the
    first). Names that start alike up to "#" are pooled.
    """
    trained = trained or next(iter(networks.values()))
    asked = {(n, q): s.asking(rivals) for n, s in networks.items() for q, rivals in questions.items()}
    sums: dict[str, Tensor] = {}
    for place, group in enumerate([indices[i : i + 16] for i in range(0, len(indices), 16)]):
        shown = {i: x[0] for i, (_, x, _, _) in zip(group, images.evaluation(batch_size=1, far=0.0, only=group))}
        trials: list[Trial] = []
        for i in group:
            predicted = trained.predict(shown[i][None])[0].cpu()
            trials += find_trials(i, images.evaluation_sample(i), predicted, images, settings)
        for (name, question), subject in asked.items():
            some = [t for t in trials if networks[name] is trained or t.kind not in BY_NETWORK]
            for trial, row in zip(some, trace_trials(subject, shown, some, settings.batch_size) if some else ()):
                key = f"{name.split('#')[0]}|{question}|{trial.kind}"
                total = sums.setdefault(key, torch.zeros(len(indices), 5, dtype=torch.float64))
                chance = float(trial.evidence.double().mean())
                total[place * 16 + group.index(trial.image)] += torch.tensor([*row, row[1] * chance])
        if told is not None:
            told(len(group))
    return sums


def _interval(settings: MeasureSettings, statistic: Any, images: int) -> BootstrapInterval:
    return bootstrap_images(statistic, images, level=settings.level, resamples=settings.resamples)


def _over(sums: Floats, part: int, whole: int) -> Callable[[Floats], Floats]:
    def statistic(weights: Floats) -> Floats:
        return _ratio(weights @ sums[:, part], weights @ sums[:, whole])

    return statistic


def evidence_rows(sums: Mapping[str, Tensor], settings: MeasureSettings) -> list[Row]:
    """evidence.csv: a row per network, question and kind: share of mass on the evidence, chance, lift = share / chance.

    factor: the trained network's share over that of this row's network, same question and kind. change: this share over
    that of the class question, same network and kind: 1 where the question makes no difference. swap: this share over
    that of the same pixels asked for the relative, same network and question: 1 where the head is only vivid.
    own: the share on the object.
    Ends of intervals are over images; the pixels of an image stay together.
    """
    tables = {key: value.numpy() for key, value in sums.items()}
    trained = next(iter(tables)).split("|")[0]
    rows = []
    for key, table in tables.items():
        name, question, kind = key.split("|")
        images = len(table)
        share, own = (_interval(settings, _over(table, part, 1), images) for part in (2, 3))
        lift = _interval(settings, _over(table, 2, 4), images)
        row = {"network": name, "question": question, "kind": kind, "images": int((table[:, 0] > 0).sum())}
        row |= {"pixels": float(table[:, 0].sum()), "share": 100 * share.value}
        row |= {"share_low": 100 * share.low, "share_high": 100 * share.high}
        row |= {"chance": 100 * float(table[:, 4].sum() / table[:, 1].sum()) if table[:, 1].sum() else float("nan")}
        row |= {"lift": lift.value, "lift_low": lift.low, "lift_high": lift.high, "own": 100 * own.value}
        compared = {"factor": f"{trained}|{question}|{kind}", "change": f"{name}|class|{kind}"}
        compared["swap"] = f"{name}|{question}|{SWAPPED}" if kind == "far body" else key
        for what, other in compared.items():
            found = BootstrapInterval(float("nan"), float("nan"), float("nan"), settings.level)
            if other != key and other in tables:
                pair = (tables[other], table) if what == "factor" else (table, tables[other])
                found = _interval(settings, _factor(*pair), images)
            row |= {what: found.value, f"{what}_low": found.low, f"{what}_high": found.high}
        rows.append(row)
    return rows


def _factor(one: Floats, other: Floats) -> Callable[[Floats], Floats]:
    def statistic(weights: Floats) -> Floats:
        return _ratio(_over(one, 2, 1)(weights), _over(other, 2, 1)(weights))

    return statistic


def _ratio(part: Floats, whole: Floats) -> Floats:
    """NaN where the whole is nothing."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(whole > 0, part / whole, np.nan)
