"""The signed maps: what lies outside the region, how far, and on known evidence (shares.csv, means.csv, pictures)."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from perpixel.attribution import context_share, density_ratio, evidence_share, pointing, radial_profile
from perpixel.report import MapPanel, fixation_backdrop, interval_chart, signed_panels
from recipes.explaining.images import EVIDENCE
from recipes.explaining.maps import RANDOM, TRAINED, Explanation, SignedMap
from recipes.explaining.measurements.measurement import Figure, Measurement, Results, Rows, Section, Tables
from recipes.explaining.settings import INFLUENCE, DataSetSettings
from recipes.explaining.statistics import (
    ALL,
    Means,
    against_random,
    count,
    interval_text,
    labels_in,
    of_network,
    pooled_name,
    with_interval,
)
from recipes.kit.statistics import difference
from recipes.kit.tables import Row

EVIDENCE_COLOR = "#0a7d3c"
# quantity of shares.csv -> what it would be by chance, measured on the same maps
CHANCE = {
    "context_share": "context_area",
    "r50": "r50_area",
    "evidence": "evidence_chance",
    "pointing": "pointing_chance",
}


class SignedMaps(Measurement):
    """Context share, reach and evidence share of every map."""

    name = "shares"

    def measure(self, explanation: Explanation) -> Rows:
        border = self.settings.maps.border
        border = self.explainer.patch(explanation.image) if border is None else border
        return [
            {
                **self.columns(explanation, found.region),
                "method": found.method,
                **context_columns(found, border),
                **evidence_columns(found),
                "delta": found.delta,
            }
            for found in explanation.maps
        ]

    def figures(self, explanations: Sequence[Explanation], rows: Mapping[str, Rows]) -> Iterator[Figure]:
        image, score = explanations[0].image, self.settings.ask.score
        row_of = {(r["network"], r["method"], r["label"]): r for r in rows[self.name] if r["kind"] == "label"}
        patch, panels = self.explainer.patch(image), []
        outlines = fixation_backdrop(None, image.predicted, self.images.colors, style="outlines")
        backdrop = self.backdrop(image)
        for region in image.regions:
            label = self.images.classes[region.label]
            marks = [] if region.evidence is None else [(region.evidence, EVIDENCE_COLOR)]
            for explanation in explanations[:2]:
                name, trained = explanation.network_name, explanation.network_name == TRAINED
                heading, grid = f"{label}: {'region' if trained else 'predicted borders'}", (patch, patch)
                behind = backdrop if trained else outlines
                panels.append(MapPanel(heading, None, behind, region.mask, marks, grid if trained else None))
                for found in (m for m in explanation.maps if m.region is region):
                    row = row_of[name, found.method, label]
                    by_patch = found.method == INFLUENCE and self.settings.maps.stride is None
                    panels.append(
                        MapPanel(
                            f"{found.method}, {pooled_name(name)}",
                            found.values / region.mask.sum(),
                            region=region.mask,
                            marks=marks,
                            patch=grid if by_patch else None,
                            meaning=f"{score}, per pixel of the region",
                            note=f"context {row['context_share']:.0f} % ({row['context_area']:.0f} % of the area)",
                        )
                    )
        if not panels:
            return
        known = "; green: what decides" if any(r.evidence is not None for r in image.regions) else ""
        figure = signed_panels(
            panels,
            columns=1 + len(self.settings.maps.methods),
            title=f"{image.name}: what speaks for (orange) and against (blue) the label",
            note=f"black line: the region asked about{known}. Every map has a scale of its own.",
        )
        yield f"panels-{image.file_name}", figure, f"{image.name}: signed maps, trained and random weights"

    def tables(self, results: Results) -> Tables:
        means = mean_rows(results.measured[self.name], results.images, self.settings.measure)
        what = "a row per map: its shares, reach, sums, and what lies on known evidence; percent and pixels"
        of_means = "means of shares.csv over the measured images, with chance, controls and intervals"
        return {"shares": (results.all_rows(self.name), what), "means": (means, of_means)}

    def section(self, results: Results) -> Section:
        rows = [r for r in results.tables["means"] if r["kind"] == "label" and r["label"] == ALL]
        random = of_network(rows, RANDOM, "method", "quantity")
        lines = []
        for row in (r for r in rows if r["network"] == TRAINED):
            other = random[row["method"], row["quantity"]]
            if row["quantity"] == "context_share":
                lines.append(
                    f"- {row['method']}: {interval_text(row, 'value', ' %')} of the absolute values lie outside the "
                    f"region (evenly spread: {row['chance']:.1f} %; random weights: "
                    f"{interval_text(other, 'value', ' %')}); difference to random weights "
                    f"{interval_text(row, 'minus_random', sign=True)} points: "
                    f"{against_random(row, 'more than', 'less than')}."
                )
            else:
                lines.append(
                    f"  Half of what lies outside is within {interval_text(row, 'value')} pixels of it (evenly spread: "
                    f"{row['chance']:.1f}; random weights: {interval_text(other, 'value')})."
                )
        note = (
            "The context share alone cannot tell a trained from a random network; it only means something as a "
            "difference to it. The border of the region is left out (the maps of "
            f"{INFLUENCE} are as coarse as its patches)."
        )
        return Section("How much lies outside the region", lines, note)


def context_columns(found: SignedMap, border: float) -> dict[str, Any]:
    """What lies outside the region, and how far half of it reaches, beside a map of equal values; percent, pixels."""
    maps, region = found.values[None], found.region.mask[None]
    even, profile = torch.ones_like(maps), radial_profile(maps, region, 2)
    return {
        "pixels": int(region.sum()),
        "context_share": 100 * float(context_share(maps, region, exclude_border=border)),
        "context_area": 100 * float(context_share(even, region, exclude_border=border)),
        "density_ratio": float(density_ratio(maps, region, exclude_border=border)),
        "r50": float(profile.r50),
        "r50_area": float(profile.r50_area),
        "positive": float(maps.clamp(min=0).sum()),
        "negative": float(maps.clamp(max=0).sum()),
    }


def evidence_columns(found: SignedMap) -> dict[str, float]:
    """What lies on the known evidence of the region, beside chance, in percent; NaN where none is known."""
    names = ("evidence", "evidence_chance", "pointing", "pointing_chance")
    if found.region.evidence is None:
        return dict.fromkeys(names, float("nan"))
    evidence = found.region.evidence[None]
    on, hit = evidence_share(found.values[None], evidence, part="positive"), pointing(found.values[None], evidence)
    return {name: 100 * float(value) for name, value in zip(names, (on.share, on.chance, hit.hit, hit.chance))}


def mean_rows(rows: Sequence[Row], images: Sequence[str], settings: DataSetSettings) -> Rows:
    """means.csv: a row per kind, label, method, quantity and (pooled) network, with interval, chance, and control.

    minus_chance: value less what chance gives; trained rows also have minus_random: less the networks with random
    weights, on the same regions. Ends of intervals are over images.
    """
    means, result, once = Means(rows, images), Rows(), np.ones((1, len(images)))
    kinds, methods = (dict.fromkeys(r[name] for r in rows) for name in ("kind", "method"))
    labels = {kind: labels_in(rows) if kind == "label" else [ALL] for kind in kinds}
    for kind, label, method in ((k, n, m) for k in kinds for n in labels[k] for m in methods):
        wanted = {"kind": kind, "method": method} | ({} if label == ALL else {"label": label})
        regions, seen = means.seen(wanted)
        for quantity in ("context_share", "r50") if kind == "label" else ("evidence", "pointing"):
            for network in (TRAINED, RANDOM):
                own, chance = (means.of(of, {**wanted, "network": network}) for of in (quantity, CHANCE[quantity]))
                row = {"kind": kind, "label": label, "method": method, "quantity": quantity, "network": network}
                row |= {"questions": regions, "images": seen}
                compared = {"value": own, "minus_chance": difference(own, chance)}
                if network == TRAINED:
                    random = means.of(quantity, {**wanted, "network": RANDOM})
                    compared["minus_random"] = difference(own, random)
                for name, statistic in compared.items():
                    row |= with_interval(name, statistic, means.images, seen, settings)
                    if name == "value":
                        row["chance"] = float(chance(once)[0])
                result.append(row)
    return result


class EvidenceShares(Measurement):
    """Mean share of the positive values on known evidence; measured with the maps (`SignedMaps`)."""

    name = "evidence"

    def section(self, results: Results) -> Section:
        means, lines = results.tables["means"], list[str]()
        own, random = (of_network(means, name, "kind", "method", "quantity") for name in (TRAINED, RANDOM))
        for kind, what in EVIDENCE.items():
            rows = [row for (of, _, quantity), row in own.items() if of == kind and quantity == "evidence"]
            if rows:
                seen = f"{count(rows[0]['questions'], 'region')}, {count(rows[0]['images'], 'image')}"
                lines.append(f"- *{kind}* (evidence: {what}; {seen}):")
            for row in rows:
                keys = [(kind, row["method"], quantity) for quantity in ("evidence", "pointing")]
                on, hit = (
                    f"{interval_text(own[key], 'value', ' %')}{what} (chance {own[key]['chance']:.1f} %, random "
                    f"weights {interval_text(random[key], 'value', ' %')}"
                    for key, what in zip(keys, (" of the positive values on the evidence", ""))
                )
                above = against_random(row, "above", "below")
                lines.append(f"  - {row['method']}: {on}: {above}); the highest value lies there in {hit}).")
        return Section("Do the maps find what decides?", lines)

    def charts(self, results: Results) -> Iterator[Figure]:
        rows = [r for r in results.tables["means"] if r["quantity"] == "evidence"]
        own, random = (of_network(rows, name, "kind", "method") for name in (TRAINED, RANDOM))
        pairs = sorted(own, key=lambda pair: list(EVIDENCE).index(pair[0]))
        if pairs:
            ends = ("value", "value_low", "value_high")
            found = {TRAINED: own, RANDOM: random}
            series = {name: [tuple(of[pair][e] for e in ends) for pair in pairs] for name, of in found.items()}
            figure = interval_chart(
                [f"{kind}: {method}" for kind, method in pairs],
                series,
                controls=(RANDOM,),
                marks={"chance: the evidence's share of the image": [random[pair]["chance"] for pair in pairs]},
                xlabel="share of the positive values on the evidence (%)",
                title=f"{self.subject}: do the maps find what decides?",
            )
            yield "evidence", figure, "share of the positive values on the known evidence, beside controls"
