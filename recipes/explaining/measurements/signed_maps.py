"""The signed maps: what lies outside the region, how far, and on known evidence (shares.csv, means.csv, pictures)."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from perpixel.attribution import context_share, density_ratio, evidence_share, pointing, radial_profile
from perpixel.evaluation import IMAGES, difference
from perpixel.report import MapPanel, fixation_backdrop, interval_chart, signed_panels
from recipes.explaining.images import ALL_OF_LABEL, EVIDENCE
from recipes.explaining.maps import RANDOM, TRAINED, Explanation, SignedMap
from recipes.explaining.measurements.measurement import Figure, Measurement, Results, Rows, Tables
from recipes.explaining.settings import INFLUENCE, DataSetSettings
from recipes.explaining.statistics import (
    ALL,
    Means,
    interval_text,
    labels_in,
    of_network,
    pooled_name,
    with_interval,
)
from recipes.kit.summary import Section
from recipes.kit.tables import Row, add_verdicts, format_number, markdown_table

EVIDENCE_COLOR = "#0a7d3c"
OUTSIDE, REACH, ON, HIT = "outside_percent", "half_within_pixels", "on_evidence_percent", "highest_on_evidence_percent"
CHANCE = "_if_even"  # column of shares.csv: what an evenly spread map gives


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
                "left_unexplained": found.delta,
            }
            for found in explanation.maps
        ]

    def figures(self, explanations: Sequence[Explanation], rows: Mapping[str, Rows]) -> Iterator[Figure]:
        image, score = explanations[0].image, self.settings.ask.score
        row_of = {
            (r["network"], r["method"], r["label"]): r for r in rows[self.name] if r["pixels_asked"] == ALL_OF_LABEL
        }
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
                            note=f"{row[OUTSIDE]:.0f} % lie outside ({row[OUTSIDE + CHANCE]:.0f} % if even)",
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
        rows = [r for r in results.tables["means"] if r["pixels_asked"] == ALL_OF_LABEL and r["label"] == ALL]
        random, body = of_network(rows, RANDOM, "method", "quantity"), []
        names = {OUTSIDE: "outside the region (%)", REACH: "half of that within (pixels)"}
        for row in (r for r in rows if r["network"] == TRAINED):
            texts = [interval_text(of, "value", 1) for of in (row, random[row["method"], row["quantity"]])]
            difference_to = interval_text(row, "minus_random_weights", 1, sign=True)
            verdict = row["minus_random_weights_verdict"]
            chance = format_number(row["chance"], 1)
            body.append([f"{row['method']}: {names[row['quantity']]}", *texts, chance, difference_to, verdict])
        head = (
            "of the absolute values",
            "trained",
            "random weights",
            "if evenly spread",
            "trained − random",
            "verdict",
        )
        note = (
            "How much of a map lies outside the region cannot tell a trained from a random network by itself: it only "
            "means something as a difference to it. The border of the region is left out (the maps of "
            f"{INFLUENCE} are as coarse as its patches)."
        )
        return Section("The maps, and how much lies outside the region", markdown_table(head, body, (0, 5)), note)


def context_columns(found: SignedMap, border: float) -> dict[str, Any]:
    """What lies outside the region, and how far half of it reaches, beside a map of equal values; percent, pixels."""
    maps, region = found.values[None], found.region.mask[None]
    even, profile = torch.ones_like(maps), radial_profile(maps, region, 2)
    return {
        "region_pixels": int(region.sum()),
        OUTSIDE: 100 * float(context_share(maps, region, exclude_border=border)),
        OUTSIDE + CHANCE: 100 * float(context_share(even, region, exclude_border=border)),
        "density_outside_over_inside": float(density_ratio(maps, region, exclude_border=border)),
        REACH: float(profile.r50),
        REACH + CHANCE: float(profile.r50_area),
        "sum_for": float(maps.clamp(min=0).sum()),
        "sum_against": float(maps.clamp(max=0).sum()),
    }


def evidence_columns(found: SignedMap) -> dict[str, float]:
    """What lies on the known evidence of the region, beside chance, in percent; NaN where none is known."""
    names = (ON, ON + CHANCE, HIT, HIT + CHANCE)
    if found.region.evidence is None:
        return dict.fromkeys(names, float("nan"))
    evidence = found.region.evidence[None]
    on, hit = evidence_share(found.values[None], evidence, part="positive"), pointing(found.values[None], evidence)
    return {name: 100 * float(value) for name, value in zip(names, (on.share, on.chance, hit.hit, hit.chance))}


def mean_rows(rows: Sequence[Row], images: Sequence[str], settings: DataSetSettings) -> Rows:
    """means.csv: a row per pixels asked, label, method, quantity and (pooled) network: interval, chance, and control.

    minus_chance: value less what an evenly spread map gives; trained rows also have minus_random_weights: less the
    networks with random weights, on the same regions. Ends of intervals are over images; the verdicts on all trained
    rows are one table.
    """
    means, result, once = Means(rows, images), Rows(), np.ones((1, len(images)))
    kinds, methods = (dict.fromkeys(r[name] for r in rows) for name in ("pixels_asked", "method"))
    labels = {kind: labels_in(rows) if kind == ALL_OF_LABEL else [ALL] for kind in kinds}
    for kind, label, method in ((k, n, m) for k in kinds for n in labels[k] for m in methods):
        wanted = {"pixels_asked": kind, "method": method} | ({} if label == ALL else {"label": label})
        regions, seen = means.seen(wanted)
        for quantity in (OUTSIDE, REACH) if kind == ALL_OF_LABEL else (ON, HIT):
            for network in (TRAINED, RANDOM):
                own, chance = (means.of(of, {**wanted, "network": network}) for of in (quantity, quantity + CHANCE))
                row = {"pixels_asked": kind, "label": label, "method": method, "quantity": quantity}
                row |= {"network": network, "regions": regions, "images": seen}
                compared = {"value": own, "minus_chance": difference(own, chance)}
                if network == TRAINED:
                    random = means.of(quantity, {**wanted, "network": RANDOM})
                    compared["minus_random_weights"] = difference(own, random)
                for name, statistic in compared.items():
                    row |= with_interval(name, statistic, means.images, seen, settings)
                    if name == "value":
                        row["chance"] = float(chance(once)[0])
                result.append(row)
    trained = [row for row in result if row["network"] == TRAINED]
    more, less = "more than random", "less than random"
    add_verdicts(trained, "minus_random_weights", level=settings.level, more=more, less=less)
    return result


class EvidenceShares(Measurement):
    """Mean share of the positive values on known evidence; measured with the maps (`SignedMaps`)."""

    name = "evidence"

    def section(self, results: Results) -> Section:
        own, random = self._rows(results, TRAINED), self._rows(results, RANDOM)
        body = []
        for kind, what in EVIDENCE.items():
            for (of, method), row in own.items():
                if of == kind:
                    texts = [interval_text(r[of, method], "value", 1) for r in (own, random)]
                    chance, seen = format_number(row["chance"], 1), f"{row['regions']}, {row['images']}"
                    verdict = row["minus_random_weights_verdict"]
                    body.append([f"{kind}: {what}", method, *texts, chance, seen, verdict])
        head = (
            "asked, and what decides",
            "map",
            "on what decides (%)",
            "random weights",
            "chance",
            "regions, images",
        )
        note = (
            "This data knows what decides each label. Of what a map says in favour of the label, how much lies there? "
            "The verdict is on the difference to random weights, corrected for all rows of means.csv (which also has "
            "how often the highest value lies there)."
        )
        table = markdown_table((*head, "verdict"), body, (0, 1, 6))
        return Section("Do the maps find what decides?", table if body else [], note)

    def verdict(self, results: Results) -> str:
        own, random = (self._rows(results, name) for name in (TRAINED, RANDOM))
        own = {key: row for key, row in own.items() if key[1] == INFLUENCE}
        said = [
            f"{kind}: {row['value']:.0f} % (random weights {random[kind, method]['value']:.0f} %)"
            for (kind, method), row in own.items()
            if row["minus_random_weights_verdict"] == "more than random"
        ]
        if said or not own:
            begin = "What decides is known here, and the patches point there for certain more than with random weights"
            return f"{begin}: {'; '.join(said)}." if said else ""
        few = max(row["images"] for row in own.values()) < IMAGES
        return f"Whether the maps find what decides is {'not to be told from so few images' if few else 'undecided'}."

    def _rows(self, results: Results, network: str) -> dict[tuple[Any, ...], Row]:
        """Means of the share on the evidence, by pixels asked and method."""
        rows = [row for row in results.tables["means"] if row["quantity"] == ON]
        return of_network(rows, network, "pixels_asked", "method")

    def charts(self, results: Results) -> Iterator[Figure]:
        own, random = self._rows(results, TRAINED), self._rows(results, RANDOM)
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
