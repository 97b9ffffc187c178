"""Deletion and insertion along the maps of the drawn images (faithfulness.csv, curves.csv)."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from perpixel.attribution import Curve, Faithfulness, faithfulness
from perpixel.report import CurvePanel, removal_chart
from recipes.explaining.images import ALL_OF_LABEL
from recipes.explaining.maps import TRAINED, Explanation, SignedMap
from recipes.explaining.measurements.measurement import Figure, Measurement, Results, Rows, Tables
from recipes.kit.summary import Section
from recipes.kit.tables import Row, markdown_table

NEAREST, RESET = "nearest first", "reset network"
COLUMNS = ("fraction", "value", "random", "random_low", "random_high", "nearest")


class RemovalCurves(Measurement):
    """What remains of a region's score as its context is removed, or put back, in the order of the map."""

    name = "curves"
    drawn_only = True

    def measure(self, explanation: Explanation) -> Rows:
        if not self.settings.curves.draw or explanation.network_name != TRAINED:
            return []
        rows = Rows()
        for found in explanation.maps:
            self.explainer.stop_if_asked()
            if found.region.kind == ALL_OF_LABEL and not bool(found.region.mask.all()):
                label = self.images.classes[found.region.label]
                common = {"image": explanation.image.name, "label": label, "method": found.method}
                rows += curve_rows(self._faithfulness(explanation, found), common)
        return rows

    def _faithfulness(self, explanation: Explanation, found: SignedMap) -> Faithfulness:
        image, region, device = explanation.image, found.region, self.explainer.device
        curves = self.settings.curves

        def map_of(other: nn.Module, images: Tensor) -> Tensor:
            return self.explainer.map(other, image, region, found.method).values[None].to(images.device)

        return faithfulness(
            explanation.network,
            self.explainer.batch(image),
            found.values[None].to(device),
            region.label,
            region=region.mask[None].to(device),
            score=self.settings.ask.score,
            steps=curves.steps,
            patch=self.explainer.patch(image),
            baselines=self.settings.maps.baselines,
            seeds=curves.seeds,
            explainer=map_of if curves.stages else None,
            stages=curves.stages,
            compare_baselines=(),
        )

    def figures(self, explanations: Sequence[Explanation], rows: Mapping[str, Rows]) -> Iterator[Figure]:
        image, methods = explanations[0].image, self.settings.maps.methods
        score = self.settings.ask.score
        found = {(r["label"], r["curve"], r["method"]): r for r in rows[self.name] if r["score"] == score}
        panels = [
            curve_panel(found[label, curve, method])
            for label in dict.fromkeys(label for label, _, _ in found)
            for curve in ("deletion", "insertion")
            for method in methods
        ]
        if panels:
            removed = f"removed (baseline '{self.settings.maps.baselines}') or put back"
            title = f"{image.name}: the object stays, patches of context are {removed}"
            figure = removal_chart(panels, columns=len(methods), title=title)
            yield f"curves-{image.file_name}", figure, f"{image.name}: deletion and insertion, with random orders"

    def tables(self, results: Results) -> Tables:
        rows = results.drawn[self.name]
        areas = [{name: value for name, value in row.items() if name != "points"} for row in rows]
        what = "a row per drawn map, curve and score: areas, gains over random and nearest-first orders"
        points = [point for row in rows for point in row["points"]]
        return {
            "faithfulness": (areas, what),
            "curves": (points, "the points of these curves, with the band of the random orders"),
        }

    def section(self, results: Results) -> Section:
        every = results.tables["faithfulness"]
        rows = [r for r in every if r["score"] == "margin"] or every
        body = []
        for method in dict.fromkeys(r["method"] for r in rows):
            for kind in ("deletion", "insertion"):
                mine = [r for r in rows if (r["method"], r["curve"]) == (method, kind)]
                better, nearest = (
                    f"{sum(r[name] > 0 for r in mine)} of {len(mine)}"
                    for name in ("gain_over_random", "gain_over_nearest_first")
                )
                beaten = f"{100 * sum(r['random_orders_beaten'] for r in mine) / len(mine):.0f}"
                alike = [r["correlation_with_reset_network"] for r in mine]
                alike = [value for value in alike if value == value]
                reset = f"{sum(alike) / len(alike):+.2f}" if alike else "–"
                body.append([f"{method}, {kind}", better, beaten, nearest, reset])
        head = ("map and curve", "better than random order", "random orders beaten (%)", "better than nearest first")
        lines = markdown_table((*head, "like the map of a reset network"), body) if body else []
        note = (
            "The object stays; patches of context are removed (deletion) or put back (insertion) in the order of the "
            f"map, and the margin of the region is read. Controls: {self.settings.curves.seeds} random orders, nearest "
            "first, and the network with all layers reset: a rank correlation near 1 with its map would mean that the "
            "map does not show what was learnt. Of the drawn images only, so nothing is claimed."
        )
        return Section("Do the maps point at what matters?", lines, note)


def curve_rows(found: Faithfulness, common: Mapping[str, Any]) -> Rows:
    """A row per curve and score: area, that of random orders, gains; "points": the rows of the curve."""
    alike = float("nan") if found.randomised is None else float(found.randomised.correlation[-1][0])
    rows = Rows()
    for curve in (found.deletion, found.insertion):
        for score in curve.scores:
            named = {**common, "curve": curve.kind, "score": score}
            row = {**named, "area": float(curve.area(score)[0])}
            row |= {
                "area_random_orders": float(curve.area(score, "random").mean()),
                "gain_over_random": float(curve.gain(score)[0]),
            }
            row |= {
                "relative_gain_over_random": float(curve.relative_gain(score)[0]),
                "random_orders_beaten": float(curve.beaten(score)[0]),
            }
            for name, order in (("gain_over_nearest_first", NEAREST), ("gain_over_reset_network", RESET)):
                row[name] = float(curve.gain(score, order)[0]) if order in curve.controls else float("nan")
            rows.append(row | {"correlation_with_reset_network": alike, "points": _points(curve, score, named)})
    return rows


def _points(curve: Curve, score: str, named: Mapping[str, Any]) -> Rows:
    mean, low, high = curve.band(score)
    nearest = curve.controls[NEAREST][score] if NEAREST in curve.controls else mean
    columns = [c[0].tolist() for c in (curve.fraction, curve.scores[score], mean, low, high, nearest)]
    return [{**named, **dict(zip(COLUMNS, values))} for values in zip(*columns)]


def curve_panel(row: Row) -> CurvePanel:
    """One curve with its controls."""
    column = {name: torch.tensor([point[name] for point in row["points"]]) for name in COLUMNS}
    gain = float(torch.trapezoid(column["value"] - column["random"], column["fraction"]))
    deletion = row["curve"] == "deletion"
    return CurvePanel(
        title=row["method"],
        fraction=column["fraction"],
        value=column["value"],
        mean=column["random"],
        low=column["random_low"],
        high=column["random_high"],
        others={"nearest patches first": column["nearest"]},
        gain=-gain if deletion else gain,
        xlabel=f"share of the context {'removed' if deletion else 'put back'}, highest first",
        ylabel=f"{row['label']}: mean {row['score']}",
    )
