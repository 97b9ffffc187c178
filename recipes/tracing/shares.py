"""How much of the fixations' mass lies on the object, per class and shift, beside IoU and chance."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata

from perpixel.evaluation import BootstrapInterval, bootstrap_images, class_iou, confusion_matrices
from recipes.kit.images import EvaluationBatch
from recipes.tracing.settings import SHIFTS, MeasureSettings
from recipes.tracing.subject import Subject

Floats = NDArray[np.float64]
Row = dict[str, Any]
Measured = dict[str, Any]
VOID = 255


def measure_shares(
    subject: Subject, batches: Iterable[EvaluationBatch], classes: int, ignore_index: int, told: Any = None
) -> Measured:
    """What the tables need of every image and class, float64 (N, C): all pixels predicted c are traced, void ones not.

    object: pixels of c in the truth over all pixels; confusion: (N, C, C); by shift: mass, that reached the image; on:
    the part of it on the object. dropped and jumped: mass that reached none, and that went through a global pooling.
    """
    found: dict[str, list[Any]] = {name: [] for name in ("confusion", "object", "index")}
    by_shift: dict[str, dict[str, Any]] = {s: {"mass": [], "on": [], "dropped": 0.0, "jumped": 0.0} for s in SHIFTS}
    started = 0.0
    for index, images, labels, _ in batches:
        predicted = subject.predict(images).cpu()
        found["index"].append(index)
        found["confusion"].append(confusion_matrices(predicted, labels, classes, ignore_index=ignore_index))
        found["object"].append(torch.stack([(labels == c).double().mean((1, 2)) for c in range(classes)], 1))
        start = torch.where(labels == ignore_index, VOID, predicted)
        started += float((start != VOID).sum())
        for shift, kept in by_shift.items():
            fix = subject.fixations(images, start, shift=shift)
            image, label, _, y, x = fix.points.cpu().unbind(1)
            mass, place = fix.mass.cpu(), image * classes + label
            on = mass * (labels[image, y, x] == label)
            for name, values in (("mass", mass), ("on", on)):
                total = values.new_zeros(len(images) * classes).index_add_(0, place, values)
                kept[name].append(total.view(-1, classes))
            kept["dropped"] += fix.dropped
            kept["jumped"] += sum(fix.jumps.values())
        if told is not None:
            told(len(index))
    shifts = {
        shift: {**kept, "mass": torch.cat(kept["mass"]), "on": torch.cat(kept["on"])}
        for shift, kept in by_shift.items()
    }
    return {**{name: torch.cat(parts) for name, parts in found.items()}, "shifts": shifts, "started": started}


class Shares:
    """The statistics of `measure_shares`, as functions of weights (R, N): how often each image counts."""

    def __init__(self, measured: Measured, settings: MeasureSettings) -> None:
        self.settings = settings
        self.confusion = measured["confusion"].double().numpy()
        self.object = measured["object"].numpy()
        self.mass = {shift: kept["mass"].numpy() for shift, kept in measured["shifts"].items()}
        self.on = {shift: kept["on"].numpy() for shift, kept in measured["shifts"].items()}
        self.images, self.classes = self.object.shape

    def iou(self, weights: Floats) -> Floats:
        """(R, C) in [0, 1]."""
        matrices = torch.from_numpy(weights @ self.confusion.reshape(self.images, -1))
        return class_iou(matrices.view(-1, self.classes, self.classes)).numpy()

    def start(self, weights: Floats) -> Floats:
        """(R, C): share of the pixels labelled c that lie on c (precision): the share if no point moved."""
        hits = self.confusion.diagonal(axis1=1, axis2=2)
        return _ratio(weights @ hits, weights @ self.confusion.sum(1))

    def share(self, weights: Floats, shift: str) -> Floats:
        """(R, C): mass on the object over all mass of the class."""
        return _ratio(weights @ self.on[shift], weights @ self.mass[shift])

    def chance(self, weights: Floats, shift: str) -> Floats:
        """(R, C): the share if every point fell anywhere in its image, |R| / HW, weighted by mass."""
        return _ratio(weights @ (self.mass[shift] * self.object), weights @ self.mass[shift])

    def interval(self, statistic: Any) -> BootstrapInterval:
        """Of a statistic of the images."""
        settings = self.settings
        return bootstrap_images(statistic, self.images, level=settings.level, resamples=settings.resamples)

    def correlation(self, values: Any, classes: Sequence[int]) -> BootstrapInterval:
        """Spearman's, over `classes`, between IoU and `values(weights)` (R, C)."""
        pick = list(classes)
        return self.interval(lambda w: spearman(self.iou(w)[:, pick], values(w)[:, pick]))


def _ratio(part: Floats, whole: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(whole > 0, part / whole, np.nan)


def spearman(one: Floats, other: Floats) -> Floats:
    """Rank correlation of every row of (R, C), ties at their mean rank; NaN where a value is missing or all tie."""
    ranks = [rankdata(values, axis=1) - (values.shape[1] + 1) / 2 for values in (one, other)]
    scale = np.sqrt((ranks[0] ** 2).sum(1) * (ranks[1] ** 2).sum(1))
    return _ratio((ranks[0] * ranks[1]).sum(1), np.where(np.isfinite(scale), scale, 0.0))


def share_rows(shares: Shares, names: Sequence[str]) -> list[Row]:
    """shares.csv: a row per shift and class; percent, lift = share / chance.

    low, high: ends of the intervals over images, NaN for a class predicted in fewer than two of them.
    """
    once = np.ones((1, shares.images))
    iou, start = shares.iou(once)[0], shares.start(once)[0]
    rows = []
    for shift in SHIFTS:
        chance = shares.chance(once, shift)[0]
        for c, name in enumerate(names):
            images = int((shares.mass[shift][:, c] > 0).sum())
            share = shares.interval(lambda w, c=c, shift=shift: shares.share(w, shift)[:, c])
            lift = shares.interval(lambda w, c=c, s=shift: _ratio(shares.share(w, s)[:, c], shares.chance(w, s)[:, c]))
            if images < 2:  # another draw of images has it or not, and tells nothing of the share
                nan = float("nan")
                share, lift = (replace(found, low=nan, high=nan) for found in (share, lift))
            rows.append(
                {
                    "shift": shift,
                    "class": name,
                    "images": images,
                    "pixels": float(shares.mass[shift][:, c].sum()),
                    "iou": 100 * float(iou[c]),
                    "started_on_object": 100 * float(start[c]),
                    "share": 100 * share.value,
                    "share_low": 100 * share.low,
                    "share_high": 100 * share.high,
                    "chance": 100 * float(chance[c]),
                    "lift": lift.value,
                    "lift_low": lift.low,
                    "lift_high": lift.high,
                }
            )
    return rows


def share_findings(shares: Shares) -> list[Row]:
    """findings.csv: rank correlations with IoU over the classes, means over the classes, what the shifts cost.

    Over classes that are predicted in at least two images.
    """
    known = [c for c in range(shares.classes) if (shares.mass["full"][:, c] > 0).sum() > 1]
    rows = []

    def add(what: str, shift: str, interval: BootstrapInterval) -> None:
        row = {"what": what, "shift": shift, "classes": len(known), "images": shares.images}
        rows.append(row | {"value": interval.value, "low": interval.low, "high": interval.high})

    if len(known) > 2:
        add("spearman: IoU, start on the object", "", shares.correlation(shares.start, known))
    for shift in SHIFTS:
        if len(known) > 2:
            add("spearman: IoU, share", shift, shares.correlation(lambda w, s=shift: shares.share(w, s), known))
        add("mean share", shift, shares.interval(lambda w, s=shift: 100 * np.nanmean(shares.share(w, s)[:, known], 1)))
        add("mean chance", shift, shares.interval(lambda w, s=shift: 100 * shares.chance(w, s)[:, known].mean(1)))
        if shift != "full":
            add("mean share: minus full", shift, shares.interval(lambda w, s=shift: 100 * _gain(shares, w, s, known)))
    add("mean start on the object", "", shares.interval(lambda w: 100 * np.nanmean(shares.start(w)[:, known], 1)))
    return rows


def _gain(shares: Shares, weights: Floats, shift: str, known: list[int]) -> Floats:
    return np.nanmean((shares.share(weights, shift) - shares.share(weights, "full"))[:, known], 1)
