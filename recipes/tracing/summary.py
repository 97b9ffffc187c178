"""Tables as CSV, and summary.md: what was found, in sentences that follow from the numbers."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recipes.tracing.counts import WHOLES
from recipes.tracing.evidence import KINDS
from recipes.tracing.settings import SHIFTS, FixationSettings
from recipes.training.checkpoints import write_atomically

Row = Mapping[str, Any]


def save_csv(rows: Sequence[Row], path: Path) -> None:
    """All rows, numbers in full; NaN as an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [])
    writer.writeheader()
    for row in rows:
        writer.writerow({k: "" if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()})
    write_atomically(path, text.getvalue().encode())


def _number(value: float, digits: int = 1) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def _span(row: Row, name: str, digits: int = 1) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    ends = "" if math.isnan(low) else f" [{_number(low, digits)}, {_number(high, digits)}]"
    return _number(row[name], digits) + ends


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    rule = "|---" + "|---:" * (len(head) - 1) + "|"
    return [f"| {' | '.join(head)} |", rule, *(f"| {' | '.join(line)} |" for line in lines), ""]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "none"


def share_words(rows: Sequence[Row], findings: Sequence[Row], lost: Mapping[str, tuple[float, float]]) -> list[str]:
    """Experiments 1 and 2. lost: by shift, the shares of mass that were dropped, or went through a global pooling."""
    full = [row for row in rows if row["shift"] == "full"]
    lines = ["## 1. Mass on the object, beside IoU", ""]
    head = ("class", "IoU", "start on object", "mass on object", "chance", "lift")
    plain = ("iou", "started_on_object")
    body = [
        [r["class"], *(_number(r[n]) for n in plain), _span(r, "share"), _number(r["chance"]), _span(r, "lift", 2)]
        for r in full
    ]
    lines += _table(head, body)
    above = [r["class"] for r in full if r["lift_low"] > 1]
    below = [r["class"] for r in full if r["lift_high"] < 1]
    lines += [
        "- Percent. Every pixel is traced from the class it is labelled; the object is that class in the truth. Chance "
        "is the object's share of the image.",
        f"- More mass on the object than chance: {_listed(above)}; less: {_listed(below)}.",
    ]
    found = {(f["what"], f["shift"]): f for f in findings}
    start = found.get(("spearman: IoU, start on the object", ""))
    if start is not None:
        rank = found["spearman: IoU, share", "full"]
        lines.append(
            f"- Rank correlation of IoU and mass on the object over n = {rank['classes']} classes: "
            f"{_of(rank, 2)}: {_sign(rank)}. That of IoU with the share of pixels that *start* on the object, which "
            f"involves no fixations, is {_of(start, 2)}."
        )
        lines.append(
            "- With so few classes a correlation says little: the interval is over images for these classes, not over "
            "classes. Classes that are labelled well start on their object, so part of any correlation is no news."
        )
    lines += ["", "## 2. The three shifts", ""]
    head = ("shift", "mean share over classes", "minus full", "Spearman with IoU", "dropped", "through global pooling")
    body = []
    for shift in SHIFTS:
        ranked, gain = found.get(("spearman: IoU, share", shift)), found.get(("mean share: minus full", shift))
        parts = [_of(found["mean share", shift], 1), "" if gain is None else _of(gain, 1)]
        parts += ["–" if ranked is None else _of(ranked, 2), *(f"{100 * part:.1f}" for part in lost[shift])]
        body.append([shift, *parts])
    lines += _table(head, body)
    for shift in ("partial", "none"):
        gain = found["mean share: minus full", shift]
        told = {"positive": "more", "negative": "less", "undecided": "neither clearly more nor less"}[_sign(gain)]
        lines.append(f"- Shift {shift} leaves {told} mass on the object than full ({_of(gain, 1)} points).")
    still = found["mean start on the object", ""]
    lines.append(f"- If no point moved at all, the mean share would be {_of(still, 1)}: the mean precision.")
    return lines


def _of(row: Row, digits: int) -> str:
    return f"{_number(row['value'], digits)} [{_number(row['low'], digits)}, {_number(row['high'], digits)}]"


def _sign(row: Row) -> str:
    if math.isnan(row["low"]):
        return "undecided"
    return "positive" if row["low"] > 0 else "negative" if row["high"] < 0 else "undecided"


def count_words(rows: Sequence[Row]) -> list[str]:
    """Experiment 3."""
    lines = ["## 3. How many inputs hold the activation", ""]
    if not rows:
        return [*lines, "- No unit with a positive sum of contributions was found."]
    wholes = {"activation": "of the activation", "positive": "of the positive contributions"}
    body = []
    for of in WHOLES:
        for share in (10, 50, 90):
            some = [r for r in rows if (r["select"], r["of"], r["share"]) == ("element", of, share)]
            medians = sorted(r["median"] for r in some)
            largest = max(some, key=lambda r: r["median"])
            parts = [f"{share} % {wholes[of]}", _number(medians[len(medians) // 2]), f"{_number(largest['median'])}"]
            body.append([*parts, f"{largest['layer']} ({largest['inputs']} inputs)"])
    lines += _table(("single contributions that hold", "K, median of the layers", "largest layer", "which"), body)
    units, images = rows[0]["units"], rows[0]["images"]
    half = [r for r in rows if (r["select"], r["of"], r["share"]) == ("element", "activation", 50)]
    most = max(r["median_high"] - r["median_low"] for r in half) if images > 1 else float("nan")
    lines += [
        f"- K of a layer is the median over up to {units} units of {images} images whose inputs give a positive sum; "
        f"all quartiles are in counts.csv. The interval of a layer's median for 50 % is at most {most:g} wide.",
        "- *Of the activation* counts as `perpixel.fixations.Share` does: the sum over all inputs without the bias, in "
        "which negative contributions cancel positive ones. *Of the positive contributions* leaves the negative ones "
        "out. Which of the two is meant decides whether half an activation looks cheap.",
        "- The units are a random sample of those with a positive sum, not those that fixations pass.",
    ]
    return lines


def evidence_words(rows: Sequence[Row], far: float, view: float | None) -> list[str]:
    """The experiment on data with known evidence."""
    found = {(r["network"], r["question"], r["kind"]): r for r in rows}
    networks = list(dict.fromkeys(r["network"] for r in rows))
    trained, others = networks[0], networks[1:]
    lines = ["## 4. Does the mass lie on what decides the label?", ""]
    head = ["pixels", "question", "network", "mass on evidence", "chance", "lift"]
    head += ["trained / this", "rival / class", "own / relative"]
    order = list(KINDS)
    body = [
        [r["kind"], r["question"], r["network"], _span(r, "share"), _number(r["chance"])]
        + [_span(r, name, 2) for name in ("lift", "factor", "change", "swap")]
        for r in sorted(rows, key=lambda r: (order.index(r["kind"]), r["question"], networks.index(r["network"])))
    ]
    lines += _table(head, body)
    limit = "" if view is None else f" and at most {view:g}"
    lines += [f"- {kind}: {told}." for kind, told in KINDS.items()]
    lines += [f"- Far: at least {far:g}{limit} pixels from the evidence. Question *class*: what made the score of the "]
    lines[-1] += "label high? *rival*: what put it above the score of the pair's other class?"
    lines += [f"- {sentence}" for sentence in _evidence_findings(found, trained, others)]
    lines.append(
        "- Chance by area is a weak yardstick: heads are vivid, and random weights land on them too. Own class against "
        "relative, and one question against the other, are compared within one network and on the same pixels: "
        "vividness cannot make these factors."
    )
    return lines


def _evidence_findings(found: Mapping[tuple[str, str, str], Row], trained: str, others: Sequence[str]) -> list[str]:
    told = []
    for question in ("class", "rival"):
        for other in others:
            row = found.get((other, question, "far body"))
            if row is not None:
                told.append(
                    f"Far body, {question} question: the trained network's share on the head is "
                    f"{_span(row, 'factor', 2)} times that with {other} weights, which itself is "
                    f"{_span(row, 'lift', 1)} times chance: {_apart(row['factor_low'], row['factor_high'])}."
                )
    for name, kind in ((trained, "far body"), *((other, "far body") for other in others), (trained, "local")):
        row = found.get((name, "rival", kind))
        if row is not None:
            verdict = _apart(row["change_low"], row["change_high"], "the question matters", "no difference shown")
            told.append(
                f"From the class to the rival question, {name}, {kind}: mass on the evidence times "
                f"{_span(row, 'change', 2)}: {verdict}."
            )
    for question in ("class", "rival"):
        for name in (trained, *others):
            row = found.get((name, question, "far body"))
            if row is not None:
                verdict = _apart(row["swap_low"], row["swap_high"], "the head is evidence", "no difference shown")
                told.append(
                    f"Far body, {question} question, {name}: asked for their own class, the pixels put "
                    f"{_span(row, 'swap', 2)} times as much mass on the head as asked for the relative: {verdict}."
                )
    right, wrong = (found.get((trained, "rival", f"far body, {kind}")) for kind in ("right", "mistaken"))
    if right is not None and wrong is not None:
        told.append(
            "Rival question, true class: where the trained network labels a far pixel right, "
            f"{_span(right, 'share')} % of the mass is on the head; where it takes the creature for its relative, "
            f"{_span(wrong, 'share')} %."
        )
    return told


def _apart(low: float, high: float, yes: str = "more than random", no: str = "undecided") -> str:
    if math.isnan(low):
        return "undecided"
    return yes if low > 1 else "less" if high < 1 else no


def write_summary(folder: Path, settings: FixationSettings, opening: str, parts: Sequence[Sequence[str]]) -> str:
    """summary.md; returns it."""
    trace = settings.trace
    lines = [f"# Fixations of {settings.model.name} on {settings.data.name}", ""]
    lines += [
        f"{opening} Rules {trace.rules} ({trace.select}), k {trace.k}, shift {trace.shift} where not said otherwise, "
        f"question {trace.question}.",
        "",
    ]
    lines += [line for part in parts for line in [*part, ""]]
    lines += [
        "## What this cannot say",
        "",
        f"- Intervals ({100 * settings.measure.level:g} %) are over images, for this one network: another training may "
        "differ. Images that resemble each other, such as frames of a film, make them too narrow.",
        "- A fixation is the largest contribution at every step, not a proof of cause: what was passed over may matter "
        "as much, and hiding the point need not change the label.",
    ]
    text = "\n".join(lines) + "\n"
    write_atomically(folder / "summary.md", text.encode())
    return text
