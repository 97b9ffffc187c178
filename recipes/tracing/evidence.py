"""Data that knows what decides each label: does the mass lie there, and more than by chance? (evidence.csv)"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from perpixel.evaluation import BootstrapInterval, ratio
from perpixel.report import PointPanel, fixation_backdrop, interval_chart, point_sheet
from recipes.kit.evidence import KINDS, EvidenceRegion, find_evidence_regions
from recipes.kit.images import Images
from recipes.kit.networks import random_network
from recipes.kit.run_folder import save_figure
from recipes.kit.statistics import Floats, quotient, ratio_of_sums, verdict
from recipes.kit.tables import Row, format_cell, format_number, interval_columns, markdown_table, save_csv
from recipes.tracing.network import TracedNetwork, known_rivals
from recipes.tracing.pictures import point_panel
from recipes.tracing.run import FixationRun, Report
from recipes.tracing.settings import FixationMeasureSettings

SWAPPED = "far body, swapped"
# column of evidence.csv -> a sentence on it, what a value above 1 means, what one that may be 1
NO_DIFFERENCE = "no difference shown"
COMPARISONS = {
    "factor": (
        "Far body, {question} question: the trained network's share on the head is {times} times that with {network} "
        "weights, which itself is {random_lift} times chance",
        "more than random",
        "undecided",
    ),
    "change": (
        "From the class to the rival question, {network}, {kind}: mass on the evidence times {times}",
        "the question matters",
        NO_DIFFERENCE,
    ),
    "swap": (
        "Far body, {question} question, {network}: asked for their own class, the pixels put {times} times as much "
        "mass on the head as asked for the relative",
        "the head is evidence",
        NO_DIFFERENCE,
    ),
}
BY_NETWORK = ("far body, right", "far body, mistaken")  # kinds that depend on what the network labels


def report_evidence(run: FixationRun, network: TracedNetwork) -> Report:
    """Measure and tell: evidence.csv, evidence.png, evidence_example.png."""
    settings, images, device = run.settings, run.images, run.fabric.device
    some = images.evaluation(batch_size=settings.measure.batch_size, far=0.0, only=run.indices[:32])
    batches = [batch for _, batch, _, _ in some]
    networks = {"trained": network}
    for seed in settings.measure.random_seeds:
        random = random_network(settings.model, images.num_classes, seed, batches).to(device)
        networks[f"random#{seed}"] = TracedNetwork(random, settings.trace, device)
    rivals, sums = known_rivals(images, settings.trace), {}
    for name, one in networks.items():  # a stage each, so that a stopped run loses little
        title = f"evidence-{name.replace('#', '')}"
        each = partial(run.each, title, total=len(run.indices), size=len)
        measure = partial(measure_evidence, one, rivals, images, run.indices, settings.measure)
        sums[name] = run.measured(title, partial(measure, trained=network, each=each))
    rows = evidence_rows(pool_networks(sums), settings.measure)
    save_csv(run.folder / "evidence.csv", rows)
    save_figure(run.folder / "evidence.png", evidence_chart(rows, f"{run.subject}: mass on what decides the label"))
    if (example := evidence_example(networks, rivals, images, run.indices, settings.measure)) is not None:
        save_figure(run.folder / "evidence_example.png", example)
    lines = evidence_lines(rows, settings.measure)
    return Report([*lines, "![evidence.png](evidence.png)", "![example](evidence_example.png)"], {"rows": rows})


def pack(regions: Iterable[EvidenceRegion]) -> list[list[EvidenceRegion]]:
    """Rows of regions of one image with different labels and no common pixel: one trace follows a row of them."""
    rows: list[list[EvidenceRegion]] = []
    for region in regions:
        for row in rows:
            apart = all(t.label != region.label and not bool((t.start & region.start).any()) for t in row)
            if row[0].image == region.image and apart:
                row.append(region)
                break
        else:
            rows.append([region])
    return rows


def trace_regions(
    network: TracedNetwork, images: Mapping[int, Tensor], regions: Sequence[EvidenceRegion], batch: int
) -> list[Floats]:
    """For every region: pixels traced, mass that reached the image, on the evidence, on the own object; in order."""
    found: dict[int, Floats] = {}
    rows = pack(regions)
    for part in (rows[i : i + batch] for i in range(0, len(rows), batch)):
        # Always `batch` rows, the last ones empty if need be: a network may be traced anew for every size of a batch.
        start = torch.full((batch, *regions[0].start.shape), -1, dtype=torch.int64)
        for n, row in enumerate(part):
            for region in row:
                start[n][region.start] = region.label
        shown = [images[row[0].image] for row in (*part, *[part[-1]] * (batch - len(part)))]
        fix = network.fixations(torch.stack(shown), start)
        image, label, _, y, x = fix.points.cpu().unbind(1)
        mass = fix.mass.cpu()
        for n, row in enumerate(part):
            for region in row:
                mine = (image == n) & (label == region.label)
                held, at = mass[mine], (y[mine], x[mine])
                on, own = ((held * mask[at]).sum() for mask in (region.evidence, region.own))
                found[id(region)] = np.array([float(region.start.sum()), float(held.sum()), float(on), float(own)])
    return [found[id(region)] for region in regions]


def measure_evidence(
    network: TracedNetwork,
    rivals: Mapping[int, int],
    images: Images,
    indices: Sequence[int],
    settings: FixationMeasureSettings,
    *,
    trained: TracedNetwork | None = None,
    each: Callable[[list[list[int]]], Iterable[list[int]]] = iter,
) -> dict[str, Tensor]:
    """Sums per image (N, 5) by "question|kind": pixels, mass, on evidence, on own object, mass × chance.

    question: "class", or "rival", against `rivals`. chance: the evidence's share of the image. trained: the network
    whose labels tell right from mistaken, where it is another; kinds that need them are then left out.
    each: gives the groups of images one by one.
    """
    labels = trained or network
    questions = {"class": network.against({}), "rival": network.against(rivals)}
    sums: dict[str, Tensor] = {}
    for group in each([list(indices[i : i + 16]) for i in range(0, len(indices), 16)]):
        shown = {i: x[0] for i, (_, x, _, _) in zip(group, images.evaluation(batch_size=1, far=0.0, only=group))}
        regions: list[EvidenceRegion] = []
        for i in group:
            regions += find_evidence_regions(images, i, labels.predict(shown[i][None])[0].cpu(), settings)
        regions = [region for region in regions if labels is network or region.kind not in BY_NETWORK]
        for question, asked in questions.items():
            for region, row in zip(regions, trace_regions(asked, shown, regions, settings.batch_size)):
                total = sums.setdefault(f"{question}|{region.kind}", torch.zeros(len(indices), 5, dtype=torch.float64))
                chance = float(region.evidence.double().mean())
                total[indices.index(region.image)] += torch.tensor([*row, row[1] * chance])
    return sums


def pool_networks(sums: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Sums by "network|question|kind"; networks whose names are the same up to "#" are pooled."""
    pooled: dict[str, Tensor] = {}
    for name, found in sums.items():
        for key, values in found.items():
            key = f"{name.split('#')[0]}|{key}"
            pooled[key] = pooled[key] + values if key in pooled else values
    return pooled


def evidence_rows(sums: Mapping[str, Tensor], settings: FixationMeasureSettings) -> list[dict[str, Any]]:
    """evidence.csv: a row per network, question and kind: share of mass on the evidence, chance, lift = share / chance.

    factor: the trained network's share over that of this row's network, same question and kind. change: this share over
    that of the class question, same network and kind: 1 where the question makes no difference. swap: this share over
    that of the same pixels asked for the relative, same network and question: 1 where the head is only vivid.
    own: the share on the object.
    Ends of intervals are over images; the pixels of an image stay together.
    """
    tables = {key: value.numpy() for key, value in sums.items()}
    shares = {key: ratio_of_sums(table[:, 2], table[:, 1]) for key, table in tables.items()}
    trained, rows = next(iter(tables)).split("|")[0], []
    for key, table in tables.items():
        name, question, kind = key.split("|")
        interval = partial(settings.interval, images=len(table))
        pixels, mass, on, own, by_chance = table.T
        row = {"network": name, "question": question, "kind": kind, "images": int((pixels > 0).sum())}
        row |= {"pixels": float(pixels.sum()), **interval_columns("share", interval(shares[key]), 100)}
        row |= {"chance": 100 * float(ratio(by_chance.sum(), mass.sum()))}
        row |= interval_columns("lift", interval(ratio_of_sums(on, by_chance)))
        row |= {"own": 100 * float(ratio_of_sums(own, mass)(np.ones((1, len(table))))[0])}
        compared = {"factor": f"{trained}|{question}|{kind}", "change": f"{name}|class|{kind}"}
        compared["swap"] = f"{name}|{question}|{SWAPPED}" if kind == "far body" else key
        for what, other in compared.items():
            found = BootstrapInterval(np.nan, np.nan, np.nan, settings.level)
            if other != key and other in tables:
                pair = (shares[other], shares[key])
                found = interval(quotient(*(pair if what == "factor" else reversed(pair))))
            row |= interval_columns(what, found)
        rows.append(row)
    return rows


def evidence_lines(rows: Sequence[Row], settings: FixationMeasureSettings) -> list[str]:
    """Experiment 4."""
    networks = list(dict.fromkeys(r["network"] for r in rows))
    head = ["pixels", "question", "network", "mass on evidence", "chance", "lift"]
    head += ["trained / this", "rival / class", "own / relative"]
    body = [
        [r["kind"], r["question"], r["network"], format_cell(r, "share", 1), format_number(r["chance"], 1)]
        + [format_cell(r, name) for name in ("lift", "factor", "change", "swap")]
        for r in sorted(rows, key=lambda r: (list(KINDS).index(r["kind"]), r["question"], networks.index(r["network"])))
    ]
    limit = "" if settings.view is None else f" and at most {settings.view:g}"
    return [
        "## 4. Does the mass lie on what decides the label?",
        "",
        *markdown_table(head, body),
        "",
        *(f"- {kind}: {what}." for kind, what in KINDS.items()),
        f"- Far: at least {settings.far:g}{limit} pixels from the evidence. Question *class*: what made the score of "
        "the label high? *rival*: what put it above the score of the pair's other class?",
        *(f"- {sentence}" for sentence in _sentences(rows, networks)),
        "- Chance by area is a weak yardstick: heads are vivid, and random weights land on them too. Own class against "
        "relative, and one question against the other, are compared within one network and on the same pixels: "
        "vividness cannot make these factors.",
    ]


def _sentences(rows: Sequence[Row], networks: Sequence[str]) -> list[str]:
    found = {(r["network"], r["question"], r["kind"]): r for r in rows}
    trained, both = networks[0], ("class", "rival")
    compared = [("factor", (name, question, "far body")) for question in both for name in networks[1:]]
    compared += [("change", (name, "rival", "far body")) for name in networks] + [
        ("change", (trained, "rival", "local"))
    ]
    compared += [("swap", (name, question, "far body")) for question in both for name in networks]
    lines = []
    for column, key in compared:
        if row := found.get(key):
            text, more, neither = COMPARISONS[column]
            says = (
                "undecided"
                if np.isnan(row[f"{column}_low"])
                else verdict(row, column, more, "less", at=1, neither=neither)
            )
            times = {"times": format_cell(row, column), "random_lift": format_cell(row, "lift", 1)}
            lines.append(f"{text.format(**row, **times)}: {says}.")
    right, wrong = (found.get((trained, "rival", kind)) for kind in BY_NETWORK)
    if right and wrong:
        lines.append(
            "Rival question, true class: where the trained network labels a far pixel right, "
            f"{format_cell(right, 'share', 1)} % of the mass is on the head; where it takes the creature for its "
            f"relative, {format_cell(wrong, 'share', 1)} %."
        )
    return lines


def evidence_chart(rows: Sequence[Row], title: str) -> Figure:
    """Lift of the mass on the evidence by kind and question, trained beside random weights."""
    found = {(r["network"], r["kind"], r["question"]): (r["lift"], r["lift_low"], r["lift_high"]) for r in rows}
    known = {key[1:] for key in found}
    kinds = [(kind, question) for kind in KINDS for question in ("class", "rival") if (kind, question) in known]
    gap, lowest = (float("nan"),) * 3, 0.05  # a share of nothing has no place on a logarithmic axis
    series = {
        name: [tuple(max(v, lowest) for v in found.get((name, *kind), gap)) for kind in kinds]
        for name in dict.fromkeys(r["network"] for r in rows)
    }
    asked = {"class": "why its class?", "rival": "why not its rival?"}
    names = [f"{kind}: {asked[question]}" for kind, question in kinds]
    unit = "share of the fixations on what decides, times chance"
    return interval_chart(names, series, controls=("random",), xlabel=unit, title=title, log=True, line=1.0)


def evidence_example(
    networks: Mapping[str, TracedNetwork],
    rivals: Mapping[int, int],
    images: Images,
    indices: Sequence[int],
    settings: FixationMeasureSettings,
) -> Figure | None:
    """Far-body pixels of two creatures, under both questions, trained and with random weights; None without any."""
    (_, network), (random, control) = list(networks.items())[:2]
    shown, regions = {}, list[EvidenceRegion]()
    for i, (_, image, _, _) in zip(indices, images.evaluation(batch_size=1, far=0.0, only=indices[:24])):
        shown[i] = image
        found = find_evidence_regions(images, i, network.predict(image)[0].cpu(), settings)
        regions += [region for region in found if region.kind == "far body, right"]
    panels, empty = [], torch.zeros(0)
    for region in sorted(regions, key=lambda region: -int(region.start.sum()))[:2]:
        image = shown[region.image]
        backdrop = fixation_backdrop(images.displayed(image[0]), region.start.long(), images.colors)
        name, rival = images.classes[region.label], images.classes[rivals[region.label]]
        lines = [(region.start, "#ffffff"), (region.evidence, "#000000")]
        panels.append(PointPanel("white: pixels asked; black: head", backdrop, empty, empty, empty, empty, None, lines))
        for asked, question, title in (
            (network, {}, f"why {name}?"),
            (network, rivals, f"why {name}, not {rival}?"),
            (control, rivals, f"{random.split('#')[0]} weights: not {rival}?"),
        ):
            fix = asked.against(question).fixations(image, torch.where(region.start, region.label, -1)[None])
            panels.append(point_panel(title, backdrop, fix, [region.label], outlines=lines))
    if not panels:
        return None
    vivid = torch.tensor([[235, 20, 130]], dtype=torch.uint8).expand(images.num_classes, 3)
    note = "the larger a dot, the more of the pixels asked rest on it; creatures with the most such pixels"
    return point_sheet(panels, classes=images.classes, colors=vivid, note=note, legend=False)
