"""Data that knows what decides each label: does the mass lie there, and more than by chance? (evidence.csv)"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from perpixel.evaluation import BootstrapInterval, ratio
from perpixel.report import PointPanel, fixation_backdrop, interval_chart, point_sheet
from recipes.kit.evidence import KINDS, Trial, find_trials
from recipes.kit.images import Images
from recipes.kit.networks import random_network
from recipes.kit.run_folder import save_figure
from recipes.kit.tables import Row, format_cell, format_number, markdown_table, save_csv
from recipes.tracing.network import TracedNetwork, known_rivals
from recipes.tracing.pictures import point_panel
from recipes.tracing.run import Advance, FixationRun, Report
from recipes.tracing.settings import FixationMeasureSettings

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]
SWAPPED = "far body, swapped"
BY_NETWORK = ("far body, right", "far body, mistaken")  # kinds that depend on what the network labels


def report_evidence(run: FixationRun, network: TracedNetwork) -> Report:
    """Measure and tell: evidence.csv, evidence.png, evidence_example.png."""
    settings, images, device = run.settings, run.images, run.fabric.device
    batches = [batch for _, batch, _, _ in run.batches(run.indices[:32])]
    networks = {"trained": network}
    for seed in settings.measure.random_seeds:
        random = random_network(settings.model, images.num_classes, seed, batches).to(device)
        networks[f"random#{seed}"] = TracedNetwork(random, settings.trace, device, "random weights")
    rivals = known_rivals(images, settings.trace)
    sums: dict[str, Tensor] = {}
    for name, one in networks.items():  # a stage each, so that a stopped run loses little

        def measure(advance: Advance, of: Mapping[str, TracedNetwork] = {name: one}) -> dict[str, Tensor]:
            return measure_evidence(of, rivals, images, run.indices, settings.measure, advance, trained=network)

        for key, found in run.measured(f"evidence-{name.replace('#', '')}", measure, len(run.indices)).items():
            sums[key] = sums[key] + found if key in sums else found
    rows = evidence_rows(sums, settings.measure)
    save_csv(run.folder / "evidence.csv", rows)
    chart = evidence_chart(rows, f"{run.subject}: mass on what decides the label")
    save_figure(run.folder / "evidence.png", chart)
    example = evidence_example(networks, rivals, images, run.indices, settings.measure)
    if example is not None:
        save_figure(run.folder / "evidence_example.png", example)
    lines = evidence_lines(rows, settings.measure)
    return Report([*lines, "![evidence.png](evidence.png)", "![example](evidence_example.png)"], {"rows": rows})


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


def trace_trials(
    network: TracedNetwork, images: Mapping[int, Tensor], trials: Sequence[Trial], batch: int
) -> list[Floats]:
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
        fix = network.fixations(torch.stack(shown), start)
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
    networks: Mapping[str, TracedNetwork],
    rivals: Mapping[int, int],
    images: Images,
    indices: Sequence[int],
    settings: FixationMeasureSettings,
    advance: Advance | None = None,
    *,
    trained: TracedNetwork | None = None,
) -> dict[str, Tensor]:
    """Sums per image (N, 5) by "network|question|kind": pixels, mass, on evidence, on own object, mass × chance.

    question: "class", or "rival", against `rivals`. chance: the evidence's share of the image. trained: the network
    whose labels tell right from mistaken (None: the first). Names that start alike up to "#" are pooled.
    """
    trained = trained or next(iter(networks.values()))
    asked = {(n, q): s.against(r) for n, s in networks.items() for q, r in (("class", {}), ("rival", rivals))}
    sums: dict[str, Tensor] = {}
    for first in range(0, len(indices), 16):
        group = list(indices[first : first + 16])
        shown = {i: x[0] for i, (_, x, _, _) in zip(group, images.evaluation(batch_size=1, far=0.0, only=group))}
        trials: list[Trial] = []
        for i in group:
            trials += find_trials(images, i, trained.predict(shown[i][None])[0].cpu(), settings)
        for (name, question), network in asked.items():
            some = [t for t in trials if networks[name] is trained or t.kind not in BY_NETWORK]
            for trial, row in zip(some, trace_trials(network, shown, some, settings.batch_size) if some else ()):
                key = f"{name.split('#')[0]}|{question}|{trial.kind}"
                total = sums.setdefault(key, torch.zeros(len(indices), 5, dtype=torch.float64))
                chance = float(trial.evidence.double().mean())
                total[first + group.index(trial.image)] += torch.tensor([*row, row[1] * chance])
        if advance is not None:
            advance(len(group))
    return sums


def evidence_rows(sums: Mapping[str, Tensor], settings: FixationMeasureSettings) -> list[dict[str, Any]]:
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
        images, (pixels, mass, _, _, by_chance) = len(table), (float(column.sum()) for column in table.T)
        share, own, lift = (settings.interval(_share(table, *parts), images) for parts in ((2, 1), (3, 1), (2, 4)))
        row = {"network": name, "question": question, "kind": kind, "images": int((table[:, 0] > 0).sum())}
        row |= {"pixels": pixels, "share": 100 * share.value}
        row |= {"share_low": 100 * share.low, "share_high": 100 * share.high}
        row |= {"chance": 100 * float(ratio(by_chance, mass))}
        row |= {"lift": lift.value, "lift_low": lift.low, "lift_high": lift.high, "own": 100 * own.value}
        compared = {"factor": f"{trained}|{question}|{kind}", "change": f"{name}|class|{kind}"}
        compared["swap"] = f"{name}|{question}|{SWAPPED}" if kind == "far body" else key
        for what, other in compared.items():
            found = BootstrapInterval(np.nan, np.nan, np.nan, settings.level)
            if other != key and other in tables:
                pair = (tables[other], table) if what == "factor" else (table, tables[other])
                found = settings.interval(_quotient(*pair), images)
            row |= {what: found.value, f"{what}_low": found.low, f"{what}_high": found.high}
        rows.append(row)
    return rows


def _share(sums: Floats, part: int, whole: int) -> Statistic:
    return lambda weights: ratio(weights @ sums[:, part], weights @ sums[:, whole])


def _quotient(one: Floats, other: Floats) -> Statistic:
    return lambda weights: ratio(_share(one, 2, 1)(weights), _share(other, 2, 1)(weights))


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
    trained, *others = networks
    lines = []
    for question in ("class", "rival"):
        for other in others:
            row = found.get((other, question, "far body"))
            if row is not None:
                lines.append(
                    f"Far body, {question} question: the trained network's share on the head is "
                    f"{format_cell(row, 'factor')} times that with {other} weights, which itself is "
                    f"{format_cell(row, 'lift', 1)} times chance: "
                    f"{_verdict(row, 'factor', 'more than random', 'undecided')}."
                )
    for name, kind in (*((name, "far body") for name in networks), (trained, "local")):
        row = found.get((name, "rival", kind))
        if row is not None:
            lines.append(
                f"From the class to the rival question, {name}, {kind}: mass on the evidence times "
                f"{format_cell(row, 'change')}: {_verdict(row, 'change', 'the question matters')}."
            )
    for question in ("class", "rival"):
        for name in networks:
            row = found.get((name, question, "far body"))
            if row is not None:
                lines.append(
                    f"Far body, {question} question, {name}: asked for their own class, the pixels put "
                    f"{format_cell(row, 'swap')} times as much mass on the head as asked for the relative: "
                    f"{_verdict(row, 'swap', 'the head is evidence')}."
                )
    right, wrong = (found.get((trained, "rival", f"far body, {kind}")) for kind in ("right", "mistaken"))
    if right is not None and wrong is not None:
        lines.append(
            "Rival question, true class: where the trained network labels a far pixel right, "
            f"{format_cell(right, 'share', 1)} % of the mass is on the head; where it takes the creature for its "
            f"relative, {format_cell(wrong, 'share', 1)} %."
        )
    return lines


def _verdict(row: Row, name: str, more: str, neither: str = "no difference shown") -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    if low != low:
        return "undecided"
    return more if low > 1 else "less" if high < 1 else neither


def evidence_chart(rows: Sequence[Row], title: str) -> Figure:
    """Lift of the mass on the evidence by kind and question, trained beside random weights."""
    found = {(r["network"], r["kind"], r["question"]): (r["lift"], r["lift_low"], r["lift_high"]) for r in rows}
    known = {(r["kind"], r["question"]) for r in rows}
    kinds = [(kind, question) for kind in KINDS for question in ("class", "rival") if (kind, question) in known]
    gap, lowest = (float("nan"),) * 3, 0.05  # a share of nothing has no place on a logarithmic axis
    series = {
        name: [tuple(max(v, lowest) for v in found.get((name, *kind), gap)) for kind in kinds]
        for name in dict.fromkeys(r["network"] for r in rows)
    }
    names = [f"{kind}: {question} question" for kind, question in kinds]
    unit = "mass on the evidence, times chance"
    return interval_chart(names, series, xlabel=unit, title=title, log=True, line=1.0)


def evidence_example(
    networks: Mapping[str, TracedNetwork],
    rivals: Mapping[int, int],
    images: Images,
    indices: Sequence[int],
    settings: FixationMeasureSettings,
) -> Figure | None:
    """Far-body pixels of two creatures, under both questions, trained and with random weights; None without any."""
    (_, network), (random, control) = list(networks.items())[:2]
    shown, trials = {}, list[Trial]()
    for i, (_, image, _, _) in zip(indices, images.evaluation(batch_size=1, far=0.0, only=indices[:24])):
        shown[i] = image
        found = find_trials(images, i, network.predict(image)[0].cpu(), settings)
        trials += [trial for trial in found if trial.kind == "far body, right"]
    panels, empty = [], torch.zeros(0)
    for trial in sorted(trials, key=lambda trial: -int(trial.start.sum()))[:2]:
        image = shown[trial.image]
        backdrop = fixation_backdrop(images.displayed(image[0]), trial.start.long(), images.colors)
        name, rival = images.classes[trial.label], images.classes[rivals[trial.label]]
        lines = [(trial.start, "#ffffff"), (trial.evidence, "#000000")]
        panels.append(PointPanel("white: pixels asked; black: head", backdrop, empty, empty, empty, empty, None, lines))
        for asked, question, title in (
            (network, {}, f"why {name}?"),
            (network, rivals, f"why {name}, not {rival}?"),
            (control, rivals, f"{random.split('#')[0]}: not {rival}?"),
        ):
            fix = asked.against(question).fixations(image, torch.where(trial.start, trial.label, -1)[None])
            panels.append(point_panel(title, backdrop, fix, [trial.label], outlines=lines))
    if not panels:
        return None
    vivid = torch.tensor([[235, 20, 130]], dtype=torch.uint8).expand(images.num_classes, 3)
    note = "the larger a dot, the more of the pixels asked rest on it; creatures with the most such pixels"
    return point_sheet(panels, classes=images.classes, colors=vivid, note=note, legend=False)
