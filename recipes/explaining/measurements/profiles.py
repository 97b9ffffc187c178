"""How far from the region do the maps reach? (profiles.csv, profile_means.csv)"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from perpixel.attribution import radial_profile
from perpixel.report import profile_chart
from recipes.explaining.images import ALL_OF_LABEL, file_name
from recipes.explaining.maps import RANDOM, TRAINED, Explanation
from recipes.explaining.measurements.measurement import Figure, Measurement, Results, Rows, Tables
from recipes.explaining.statistics import pooled_name
from recipes.kit.summary import Section


class RadialProfiles(Measurement):
    """The mass of every map outside its region by distance, beside the area there."""

    name = "profiles"
    edges: list[float] | None = None  # of the distances, in pixels: up to half the diagonal of the first image

    def measure(self, explanation: Explanation) -> Rows:
        if self.edges is None:
            reach = 0.5 * float(torch.tensor(explanation.image.predicted.shape).double().norm())
            self.edges = torch.linspace(0, reach, self.settings.measure.bins + 1, dtype=torch.float64).tolist()
        rows = Rows()
        for one in explanation.maps:
            found = radial_profile(one.values[None], one.region.mask[None], self.edges)
            common = {**self.columns(explanation, one.region), "method": one.method}
            shares, areas = found.share[0].tolist(), found.area[0].tolist()
            for low, high, share, area in zip(self.edges, self.edges[1:], shares, areas):
                distances = {"from_pixels": low, "to_pixels": high}
                rows.append({**common, **distances, "share_percent": 100 * share, "area_percent": 100 * area})
        return rows

    def tables(self, results: Results) -> Tables:
        groups: dict[tuple[Any, ...], Rows] = {}
        for row in results.measured[self.name]:
            if row["pixels_asked"] == ALL_OF_LABEL and row["share_percent"] == row["share_percent"]:
                key = (pooled_name(row["network"]), row["method"], row["from_pixels"], row["to_pixels"])
                groups.setdefault(key, []).append(row)
        shares = ("share_percent", "area_percent")
        columns, means = ("network", "method", "from_pixels", "to_pixels", *shares, "regions"), Rows()
        for key, group in groups.items():
            share, area = (float(np.mean([r[name] for r in group])) for name in shares)
            means.append(dict(zip(columns, (*key, share, area, len(group)))))
        what = "a row per map and distance: the share of what lies outside the region, beside that of the area"
        return {
            "profiles": (results.all_rows(self.name), what),
            "profile_means": (means, "means of profiles.csv over the measured images"),
        }

    def section(self, results: Results) -> Section:
        note = "Of what lies outside the region, how much at which distance? Grey: the share of the pixels there."
        return Section("How far do the maps reach?", [], note)

    def charts(self, results: Results) -> Iterator[Figure]:
        rows = results.tables["profile_means"]
        for method in dict.fromkeys(r["method"] for r in rows):
            series = {n: [r for r in rows if (r["method"], r["network"]) == (method, n)] for n in (TRAINED, RANDOM)}
            trained = series[TRAINED]
            if not all(series.values()):
                continue
            figure = profile_chart(
                torch.tensor([trained[0]["from_pixels"], *(r["to_pixels"] for r in trained)], dtype=torch.float64),
                {n: torch.tensor([r["share_percent"] for r in found]) / 100 for n, found in series.items()},
                torch.tensor([r["area_percent"] for r in trained]) / 100,
                controls=(RANDOM,),
                title=f"{method}, {self.subject}: mean of {trained[0]['regions']} regions",
                ylabel="share of what lies outside the region",
            )
            yield f"profiles-{file_name(method)}", figure, f"{method}: how far from the region its values lie"
