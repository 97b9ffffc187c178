"""Data that knows what decides each label: does the mass lie there, and more than by chance? (evidence.csv)"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from perpixel.evaluation import BootstrapInterval, Floats, quotient, ratio, ratio_of_sums
from perpixel.report import PointPanel, fixation_backdrop, interval_chart, point_sheet
from recipes.kit.evidence import (
    BLOSSOM,
    FAR,
    FAR_MISTAKEN,
    FAR_OTHER,
    FAR_RIGHT,
    KINDS,
    EvidenceRegion,
    find_evidence_regions,
)
from recipes.kit.images import Images
from recipes.kit.networks import random_network
from recipes.kit.run_folder import save_figure
from recipes.kit.summary import Section
from recipes.kit.tables import Row, add_verdicts, format_cell, format_number, interval_columns, markdown_table, save_csv
from recipes.tracing.network import TracedNetwork, known_rivals
from recipes.tracing.pictures import point_panel
from recipes.tracing.run import FixationRun, Report
from recipes.tracing.settings import FixationMeasureSettings

FACTOR, CHANGE, OWN = "trained_over_this_network", "rival_over_class_question", "own_over_other_species"
# column of evidence.csv -> a sentence on it
COMPARISONS = {
    FACTOR: "Body far from its head, {question} question: the trained network's share on the head is {times} times "
    "that with {network}, which itself is {random_lift} times chance",
    CHANGE: "From the class to the rival question, {network}, {kind}: mass on what decides times {times}",
    OWN: "Body far from its head, {question} question, {network}: asked for their own species, the pixels put {times} "
    "times as much mass on the head as asked for the other",
}
BY_NETWORK = (FAR_RIGHT, FAR_MISTAKEN)  # kinds that depend on what the network labels
TRAINED, RANDOM = "trained", "random weights"


def report_evidence(run: FixationRun, network: TracedNetwork) -> Report:
    """Measure and tell: evidence.csv, evidence.png, evidence_example.png."""
    settings, images, device = run.settings, run.images, run.fabric.device
    some = images.evaluation(batch_size=settings.measure.batch_size, far=0.0, only=run.indices[:32])
    batches = [batch for _, batch, _, _ in some]
    networks = {TRAINED: network}
    for seed in settings.measure.random_seeds:
        random = random_network(settings.model, images.channels, seed, batches).to(device)
        networks[f"{RANDOM}#{seed}"] = TracedNetwork(random, settings.trace, device)
    rivals, sums = known_rivals(images, settings.trace), {}
    for name, one in networks.items():  # a stage each, so that a stopped run loses little
        title = f"evidence-{name.replace('#', '-').replace(' ', '-')}"
        each = partial(run.each, title, total=len(run.indices), size=len)
        measure = partial(measure_evidence, one, rivals, images, run.indices, settings.measure)
        sums[name] = run.measured(title, partial(measure, trained=network, each=each))
    rows = evidence_rows(pool_networks(sums), settings.measure)
    save_csv(run.folder / "evidence.csv", rows)
    save_figure(run.folder / "evidence.png", evidence_chart(rows, f"{run.subject}: mass on what decides the label"))
    pictures = {"evidence.png": "mass on what decides the label, trained and with random weights, times chance"}
    if (example := evidence_example(networks, rivals, images, run.indices, settings.measure)) is not None:
        save_figure(run.folder / "evidence_example.png", example)
        pictures["evidence_example.png"] = (
            "body pixels far from the head (white), asked both questions; black: the head"
        )
    lines = evidence_lines(rows, settings.measure)
    section = Section("Does the mass lie on what decides the label?", lines, pictures=pictures)
    files = {"evidence.csv": "a row per network, question and pixels asked: mass on what decides, and comparisons"}
    return Report([section], {"rows": rows}, evidence_verdict(rows), files)


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
    """evidence.csv: a row per network, question and pixels asked: percent of the mass on what decides, and chance.

    times_chance: the one over the other. trained_over_this_network: the trained network's percent over this one's, same
    question and pixels. rival_over_class_question: over that of the class question, same network and pixels: 1 where
    the question makes no difference. own_over_other_species: over that of the same pixels asked for the other species:
    1 where the head is only vivid. Their verdicts are one table.
    Ends of intervals are over images; the pixels of an image stay together.
    """
    tables = {key: value.numpy() for key, value in sums.items()}
    shares = {key: ratio_of_sums(table[:, 2], table[:, 1]) for key, table in tables.items()}
    trained, rows = next(iter(tables)).split("|")[0], []
    for key, table in tables.items():
        name, question, kind = key.split("|")
        interval = partial(settings.interval, images=len(table))
        pixels, mass, on, own, by_chance = table.T
        row = {"network": name, "question": question, "pixels_asked": kind, "images": int((pixels > 0).sum())}
        row |= {"pixels": float(pixels.sum()), **interval_columns("on_evidence_percent", interval(shares[key]), 100)}
        row |= {"chance_percent": 100 * float(ratio(by_chance.sum(), mass.sum()))}
        row |= interval_columns("times_chance", interval(ratio_of_sums(on, by_chance)))
        row |= {"on_own_object_percent": 100 * float(ratio_of_sums(own, mass)(np.ones((1, len(table))))[0])}
        compared = {FACTOR: f"{trained}|{question}|{kind}", CHANGE: f"{name}|class|{kind}"}
        compared[OWN] = f"{name}|{question}|{FAR_OTHER}" if kind == FAR else key
        for what, other in compared.items():
            found = BootstrapInterval(np.nan, np.nan, np.nan, settings.level)
            if other != key and other in tables:
                pair = (shares[other], shares[key])
                found = interval(quotient(*(pair if what == FACTOR else reversed(pair))), null=1.0)
            row |= interval_columns(what, found)
        rows.append(row)
    add_verdicts(rows, *COMPARISONS, level=settings.level, null=1.0, more="above 1", less="below 1")
    return rows


def evidence_lines(rows: Sequence[Row], settings: FixationMeasureSettings) -> list[str]:
    """Table and sentences."""
    networks = list(dict.fromkeys(r["network"] for r in rows))
    head = ["pixels asked", "question", "network", "mass on what decides (%)", "chance (%)", "times chance"]
    head += ["trained / this network", "rival / class question", "own / other species"]
    order = list(KINDS)
    body = [
        [r["pixels_asked"], r["question"], r["network"], format_cell(r, "on_evidence_percent", 1)]
        + [format_number(r["chance_percent"], 1)]
        + [format_cell(r, name) for name in ("times_chance", *COMPARISONS)]
        for r in sorted(
            rows, key=lambda r: (order.index(r["pixels_asked"]), r["question"], networks.index(r["network"]))
        )
    ]
    limit = "" if settings.view is None else f" and at most {settings.view:g}"
    return [
        *markdown_table(head, body, (0, 1, 2)),
        "",
        *(f"- *{kind}*: {what}." for kind, what in KINDS.items()),
        f"- Far: at least {settings.far:g}{limit} pixels from what decides. Question *class*: what made the score of "
        "the label high? *rival*: what put it above the score of the pair's other class?",
        *(f"- {sentence}" for sentence in _sentences(rows, networks)),
        "- Chance by area is a weak yardstick: heads are vivid, and random weights land on them too. Own species "
        "against the other, and one question against the other, are compared within one network and on the same "
        "pixels: vividness cannot make these factors.",
    ]


def evidence_verdict(rows: Sequence[Row]) -> str:
    """Whether the head is evidence for the trained network: own species against the other, where this was asked."""
    found = {(r["network"], r["question"]): r for r in rows if r["pixels_asked"] == FAR}
    row = found.get((TRAINED, "rival"))
    if row is None or not row[f"{OWN}_verdict"]:
        return ""
    return (
        "Asked why its own species and not the other, body far from its head puts "
        f"{format_cell(row, OWN, 1)} times as much mass on the head as asked the reverse: {row[f'{OWN}_verdict']}."
    )


def _sentences(rows: Sequence[Row], networks: Sequence[str]) -> list[str]:
    found = {(r["network"], r["question"], r["pixels_asked"]): r for r in rows}
    trained, both = networks[0], ("class", "rival")
    compared = [(FACTOR, (name, question, FAR)) for question in both for name in networks[1:]]
    compared += [(CHANGE, (name, "rival", FAR)) for name in networks] + [(CHANGE, (trained, "rival", BLOSSOM))]
    compared += [(OWN, (name, question, FAR)) for question in both for name in networks]
    lines = []
    for column, key in compared:
        if row := found.get(key):
            times = {"times": format_cell(row, column), "random_lift": format_cell(row, "times_chance", 1)}
            text = COMPARISONS[column].format(**row, kind=row["pixels_asked"], **times)
            lines.append(f"{text}: {row[f'{column}_verdict'] or 'undefined'}.")
    right, wrong = (found.get((trained, "rival", kind)) for kind in BY_NETWORK)
    if right and wrong:
        lines.append(
            "Rival question, true species: where the trained network labels a far pixel right, "
            f"{format_cell(right, 'on_evidence_percent', 1)} % of the mass is on the head; where it takes the creature "
            f"for the other species, {format_cell(wrong, 'on_evidence_percent', 1)} %."
        )
    return lines


def evidence_chart(rows: Sequence[Row], title: str) -> Figure:
    """Lift of the mass on the evidence by kind and question, trained beside random weights."""
    ends = ("times_chance", "times_chance_low", "times_chance_high")
    found = {(r["network"], r["pixels_asked"], r["question"]): tuple(r[end] for end in ends) for r in rows}
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
    return interval_chart(names, series, controls=(RANDOM,), xlabel=unit, title=title, log=True, line=1.0)


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
        regions += [region for region in found if region.kind == FAR_RIGHT]
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
            (control, rivals, f"{random.split('#')[0]}: not {rival}?"),
        ):
            fix = asked.against(question).fixations(image, torch.where(region.start, region.label, -1)[None])
            panels.append(point_panel(title, backdrop, fix, [region.label], outlines=lines))
    if not panels:
        return None
    vivid = torch.tensor([[235, 20, 130]], dtype=torch.uint8).expand(images.num_classes, 3)
    note = "the larger a dot, the more of the pixels asked rest on it; creatures with the most such pixels"
    return point_sheet(panels, classes=images.classes, colors=vivid, note=note, legend=False)
