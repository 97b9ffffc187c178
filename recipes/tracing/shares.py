"""How much of the fixations' mass lies on the object, per class and shift, beside IoU and chance (shares.csv)."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.stats import rankdata
from torch import Tensor

from perpixel.evaluation import (
    IMAGES,
    BootstrapInterval,
    Floats,
    Statistic,
    class_iou,
    confusion_matrices,
    difference,
    quotient,
    ratio,
    ratio_of_sums,
)
from perpixel.report import interval_chart
from recipes.kit.images import EvaluationBatch
from recipes.kit.run_folder import save_figure
from recipes.kit.summary import Section
from recipes.kit.tables import (
    Row,
    add_verdicts,
    format_cell,
    format_number,
    interval_columns,
    markdown_table,
    markdown_text,
    save_csv,
)
from recipes.tracing.network import TracedNetwork
from recipes.tracing.run import FixationRun, Report
from recipes.tracing.settings import SHIFTS, FixationMeasureSettings

VOID = 255
# what rows of findings.csv are about
MEAN, LESS_FULL = "mean percent on the object", "the same, minus that of shift full"
RANK, STILL = "rank correlation over classes: IoU", "mean percent that starts on the object"


def report_shares(run: FixationRun, network: TracedNetwork) -> Report:
    """Measure and tell: shares.csv, findings.csv, shares.png, shifts.png."""
    images, batches = run.images, run.batches("shares", run.indices)
    measure = partial(measure_shares, network, batches, images.num_classes, images.ignore_index)
    shares = Shares(run.measured("shares", measure), run.settings.measure)
    measured = run.settings.measure
    rows, findings = share_rows(shares, images.classes, measured), share_findings(shares)
    save_csv(run.folder / "shares.csv", rows)
    save_csv(run.folder / "findings.csv", findings)
    for name, figure in share_charts(rows, f"{run.subject}, {shares.images} images").items():
        save_figure(run.folder / f"{name}.png", figure)
    drawn = {"shares.png": "share of the mass on the object by class, beside chance, IoU and where its pixels start"}
    sections = [
        Section("Does the mass lie on the object?", object_lines(rows, findings), pictures=drawn),
        Section(
            "The three shifts",
            shift_lines(findings, shares.lost),
            pictures={"shifts.png": "share of the mass on the object by class, under the three shifts"},
        ),
    ]
    files = {
        "shares.csv": "a row per shift and class: mass on the object, beside chance, IoU and where its pixels start",
        "findings.csv": "means and rank correlations over the classes, with intervals",
    }
    return Report(sections, {"rows": rows, "findings": findings}, share_verdict(rows), files)


def measure_shares(
    network: TracedNetwork, batches: Iterable[EvaluationBatch], classes: int, ignore_index: int
) -> dict[str, Tensor]:
    """What the tables need of every image and class; all pixels predicted c are traced, void ones not.

    confusion: int64 (N, C, C); object: float64 (N, C), pixels of c in the truth over all pixels. Float64 by shift: mass
    (N, 3, C), that reached the image; on, the part of it on the object. Per batch: lost (B, 3, 2), mass that reached
    none, and that went through a global pooling; started (B,).
    """
    found: list[dict[str, Tensor]] = []
    for _, images, labels, _ in batches:
        predicted = network.predict(images).cpu()
        start = torch.where(labels == ignore_index, VOID, predicted)
        mass, on, lost = list[Tensor](), list[Tensor](), []
        for shift in SHIFTS:
            fix = network.fixations(images, start, shift=shift)
            image, label, _, y, x = fix.points.cpu().unbind(1)
            held, empty = fix.mass.cpu(), torch.zeros(len(images) * classes, dtype=torch.float64)
            for sums, values in ((mass, held), (on, held * (labels[image, y, x] == label))):
                sums.append(empty.index_add(0, image * classes + label, values).view(-1, classes))
            lost.append([fix.dropped, sum(fix.jumps.values())])
        of_batch = {"confusion": confusion_matrices(predicted, labels, classes, ignore_index=ignore_index)}
        of_batch["object"] = torch.stack([(labels == c).double().mean((1, 2)) for c in range(classes)], 1)
        of_batch |= {"mass": torch.stack(mass, 1), "on": torch.stack(on, 1)}
        of_batch |= {"lost": torch.tensor([lost], dtype=torch.float64), "started": (start != VOID).sum()[None]}
        found.append(of_batch)
    return {name: torch.cat([of_batch[name] for of_batch in found]) for name in found[0]}


class Shares:
    """The statistics of `measure_shares`.

    share: by shift, mass on the object over all mass of the class; chance: the share if every point fell anywhere in
    its image, |R| / HW, weighted by mass; lift: share / chance. start: share of the pixels labelled c that lie on c
    (precision), which is the share if no point moved. lost: by shift, the shares of the mass that were dropped, and
    that went through a global pooling.
    """

    def __init__(self, measured: Mapping[str, Tensor], settings: FixationMeasureSettings) -> None:
        self.settings, self.confusion = settings, measured["confusion"].double().numpy()
        self.images, self.classes = measured["object"].shape
        parts, self.mass = measured["object"].numpy(), dict(zip(SHIFTS, measured["mass"].numpy().swapaxes(0, 1)))
        on = dict(zip(SHIFTS, measured["on"].numpy().swapaxes(0, 1)))
        self.share = {s: ratio_of_sums(on[s], self.mass[s]) for s in SHIFTS}
        self.chance = {s: ratio_of_sums(self.mass[s] * parts, self.mass[s]) for s in SHIFTS}
        self.lift = {s: quotient(self.share[s], self.chance[s]) for s in SHIFTS}
        self.start = ratio_of_sums(self.confusion.diagonal(axis1=1, axis2=2), self.confusion.sum(1))
        lost = measured["lost"].sum(0) / max(float(measured["started"].sum()), 1.0)
        self.lost: dict[str, list[float]] = dict(zip(SHIFTS, lost.tolist()))

    def iou(self, weights: Floats) -> Floats:
        """(R, C) in [0, 1]."""
        matrices = torch.from_numpy(weights @ self.confusion.reshape(self.images, -1))
        return class_iou(matrices.view(-1, self.classes, self.classes)).numpy()

    def interval(self, statistic: Statistic, null: float = 0.0) -> BootstrapInterval:
        """Of a statistic (R,) of the images."""
        return self.settings.interval(statistic, self.images, null)


def spearman(one: Floats, other: Floats) -> Floats:
    """Rank correlation of every row of (R, C), ties at their mean rank; NaN where a value is missing or all tie."""
    ranks = [rankdata(values, axis=1) - (values.shape[1] + 1) / 2 for values in (one, other)]
    scale = np.sqrt((ranks[0] ** 2).sum(1) * (ranks[1] ** 2).sum(1))
    return ratio((ranks[0] * ranks[1]).sum(1), np.where(np.isfinite(scale), scale, 0.0))


def share_rows(shares: Shares, names: Sequence[str], settings: FixationMeasureSettings) -> list[dict[str, Any]]:
    """shares.csv: a row per shift and class; times_chance = on_object_percent / chance_percent, with a verdict.

    low, high: ends of the intervals over images, NaN for a class predicted in fewer than IMAGES of them.
    """
    once, rows = np.ones((1, shares.images)), []
    iou, start = shares.iou(once)[0], shares.start(once)[0]
    for shift in SHIFTS:
        mass, chance = shares.mass[shift], shares.chance[shift](once)[0]
        for c, name in enumerate(names):
            images = int((mass[:, c] > 0).sum())
            share = shares.interval(_column(shares.share[shift], c))
            lift = shares.interval(_column(shares.lift[shift], c), null=1.0)
            if images < IMAGES:
                share, lift = (replace(found, low=np.nan, high=np.nan) for found in (share, lift))
            row = {"shift": shift, "class": name, "images": images, "pixels": float(mass[:, c].sum())}
            row |= {"iou_percent": 100 * float(iou[c]), "start_on_object_percent": 100 * float(start[c])}
            row |= interval_columns("on_object_percent", share, 100) | {"chance_percent": 100 * float(chance[c])}
            rows.append(row | interval_columns("times_chance", lift))
    add_verdicts(rows, "times_chance", level=settings.level, null=1.0, more="more than chance", less="less than chance")
    return rows


def _column(statistic: Statistic, column: int) -> Statistic:
    return lambda weights: statistic(weights)[:, column]


def share_findings(shares: Shares) -> list[dict[str, Any]]:
    """findings.csv: rank correlations with IoU over the classes, means over the classes, what the shifts cost.

    Over classes that are predicted in at least two images.
    """
    known = ((shares.mass["full"] > 0).sum(0) > 1).nonzero()[0]
    found: dict[tuple[str, str], Statistic] = {}

    def mean(values: Statistic, average: Callable[[Floats, int], Floats] = np.nanmean) -> Statistic:
        return lambda weights: 100 * average(values(weights)[:, known], 1)

    def correlation(values: Statistic) -> Statistic:
        return lambda weights: spearman(shares.iou(weights)[:, known], values(weights)[:, known])

    if len(known) > 2:
        found[f"{RANK}, start on the object", ""] = correlation(shares.start)
    for shift, share in shares.share.items():
        if len(known) > 2:
            found[f"{RANK}, mass on the object", shift] = correlation(share)
        found[MEAN, shift] = mean(share)
        found["mean chance percent", shift] = mean(shares.chance[shift], np.mean)
        if shift != "full":
            found[LESS_FULL, shift] = mean(difference(share, shares.share["full"]))
    found[STILL, ""] = mean(shares.start)
    rows = []
    for (what, under), statistic in found.items():
        of = shares.interval(statistic)
        row = {"what": what, "shift": under, "classes": len(known), "images": shares.images}
        rows.append(row | interval_columns("value", of))
    tested = [row for row in rows if str(row["what"]).startswith(RANK) or row["what"] == LESS_FULL]
    add_verdicts(tested, "value", level=shares.settings.level, more="above zero", less="below zero")
    return rows


def object_lines(rows: Sequence[Row], findings: Sequence[Row]) -> list[str]:
    """Table and sentences on shift full."""
    body = []
    for r in (row for row in rows if row["shift"] == "full"):
        iou, on, chance = (format_number(r[f"{n}_percent"], 1) for n in ("iou", "start_on_object", "chance"))
        share, lift = format_cell(r, "on_object_percent", 1), format_cell(r, "times_chance")
        body.append([r["class"], iou, on, share, chance, lift, r["times_chance_verdict"]])
    head = ("class", "IoU", "starts on object", "mass on object", "chance", "times chance", "verdict")
    lines = [
        *markdown_table(head, body, (0, 6)),
        "",
        "- Percent. Every pixel is traced from the class it is labelled; the object is that class in the truth. Chance "
        "is the object's share of the image.",
    ]
    found = {(f["what"], f["shift"]): f for f in findings}
    if start := found.get((f"{RANK}, start on the object", "")):
        rank = found[f"{RANK}, mass on the object", "full"]
        lines += [
            f"- Rank correlation of IoU and mass on the object over n = {rank['classes']} classes: "
            f"{_interval(rank, 2)}: {rank['value_verdict']}. That of IoU with the share of pixels that *start* on the "
            f"object, which involves no fixations, is {_interval(start, 2)}.",
            "- With so few classes a correlation says little: the interval is over images for these classes, not over "
            "classes. Classes that are labelled well start on their object, so part of any correlation is no news.",
        ]
    return lines


def share_verdict(rows: Sequence[Row]) -> str:
    """On how many classes more of the mass lies than chance, by name where few."""
    full = [row for row in rows if row["shift"] == "full" and row["times_chance_verdict"]]
    more, less = (
        [r["class"] for r in full if r["times_chance_verdict"] == f"{word} than chance"] for word in ("more", "less")
    )
    below = f"; less for {markdown_text(', '.join(less))}" if less else ""
    return f"More of the mass than chance lies on the object for {len(more)} of {len(full)} classes{below}."


def shift_lines(findings: Sequence[Row], lost: Mapping[str, Sequence[float]]) -> list[str]:
    """Table and sentences on the three shifts."""
    found = {(f["what"], f["shift"]): f for f in findings}
    head = ("shift", "mean share over classes", "minus full", "rank correlation with IoU", "lost", "through a pooling")
    body, lines = [], list[str]()
    for shift in SHIFTS:
        ranked, gain = found.get((f"{RANK}, mass on the object", shift)), found.get((LESS_FULL, shift))
        parts = [_interval(found[MEAN, shift]), _interval(gain) if gain else ""]
        parts += [_interval(ranked, 2) if ranked else "–", *(f"{100 * part:.1f}" for part in lost[shift])]
        body.append([shift, *parts])
        if gain:
            lines.append(f"- Shift {shift}, mass on the object less that of full: {_interval(gain)} points: ")
            lines[-1] += f"{gain['value_verdict'] or 'undefined'}."
    still = _interval(found[STILL, ""])
    lines.append(f"- If no point moved at all, the mean share would be {still}: the mean precision.")
    return [*markdown_table(head, body), "", *lines]


def _interval(row: Row, digits: int = 1) -> str:
    return format_cell(row, "value", digits)


def share_charts(rows: Sequence[Row], title: str) -> dict[str, Figure]:
    """shares (shift full, beside IoU and chance) and shifts (the three shifts)."""
    by_shift = {s: [r for r in rows if r["shift"] == s] for s in SHIFTS}
    full, names = by_shift["full"], [r["class"] for r in by_shift["full"]]
    interval = {
        s: [tuple(r[f"on_object_percent{end}"] for end in ("", "_low", "_high")) for r in by_shift[s]] for s in SHIFTS
    }
    chance = [r["chance_percent"] for r in full]
    marks = {"chance (the object's share of the image)": chance, "IoU": [r["iou_percent"] for r in full]}
    marks["pixels that start on the object"] = [r["start_on_object_percent"] for r in full]
    unit = "share of the fixations' mass on the object (%)"
    shifts, mass = {f"shift {s}": interval[s] for s in SHIFTS}, {"mass on the object": interval["full"]}
    return {
        "shares": interval_chart(names, mass, marks=marks, xlabel=unit, title=title),
        "shifts": interval_chart(names, shifts, marks={"chance": chance}, xlabel=unit, title=title),
    }
