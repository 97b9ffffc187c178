"""What a run leaves behind: tables (CSV), all numbers (JSON), charts, summary.md."""

import json
import math
from collections.abc import Sequence
from typing import Any

from recipes.explaining.maps import TRAINED, Found, Row
from recipes.explaining.numbers import RANDOM, Matrix, alone_rows, matrix_rows, mean_rows, profile_means
from recipes.explaining.pictures import Gallery
from recipes.explaining.questions import Scene
from recipes.explaining.summary import Tables, summary
from recipes.tracing.summary import save_csv
from recipes.training.checkpoints import write_atomically

WHAT = {
    "shares": "a row per map: its shares, reach, sums, and what lies on known evidence; percent and pixels",
    "profiles": "a row per map and distance: the share of what lies outside the region, beside that of the area",
    "alone": "a row per region: how much of it keeps the label with all else hidden",
    "means": "means of shares.csv over the measured images, with chance, controls and intervals",
    "profile_means": "means of profiles.csv over the measured images",
    "alone_means": "means of alone.csv over the measured images, with intervals",
    "matrix": "the class-context matrix, with controls and intervals; logits",
    "faithfulness": "a row per drawn map, curve and score: areas, gains over random and nearest-first orders",
    "curves": "the points of these curves, with the band of the random orders",
    "salient": "a row per drawn object: what the rest of it keeps and loses without its discriminative region",
}


def _plain(value: Any) -> Any:
    """JSON has no NaN: null."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def conclude(
    gallery: Gallery,
    about: str,
    asked: Sequence[int],
    measured: tuple[Sequence[Scene], Sequence[Found]],
    drawn: tuple[Sequence[Scene], Sequence[Found]],
    of_drawn: tuple[Sequence[Row], Sequence[Row], Sequence[Row]],
    told: Sequence[str],
) -> None:
    """Write everything that speaks of more than one image; of_drawn: rows of faithfulness, curves and salient.csv."""
    settings, names = gallery.settings, list(gallery.images.classes)
    measure, folder = settings.measure, gallery.folder
    scenes, found = measured
    order = [scene.name for scene in scenes]
    rows = {key: [r for f in found for r in getattr(f, key)] for key in ("shares", "profiles", "alone")}
    every = {key: list(value) for key, value in rows.items()}
    if drawn[1] is not found:
        for key, value in every.items():
            value.extend({**r, "set": "drawn"} for f in drawn[1] for r in getattr(f, key))
    for value in every.values():
        for row in value:
            row.setdefault("set", "measured")
    matrices = {network: Matrix(found, network) for network in (TRAINED, RANDOM)}
    tables: dict[str, Sequence[Row]] = {
        **every,
        "means": mean_rows(rows["shares"], order, measure),
        "profile_means": profile_means(rows["profiles"]),
        "alone_means": alone_rows(rows["alone"], order, measure),
        "matrix": matrix_rows(matrices, names, measure),
        **dict(zip(("faithfulness", "curves", "salient"), of_drawn)),
    }
    written: dict[str, str] = {}
    for name, table in tables.items():
        if table:
            save_csv(table, folder / f"{name}.csv")
            written[f"{name}.csv"] = WHAT[name]
    gallery.matrix(matrices)
    gallery.profiles(tables["profile_means"])
    gallery.curves(tables["curves"])
    gallery.evidence(tables["means"])
    labels = [names[c] for c in asked]
    text = Tables(
        about=about,
        measured=len(order),
        drawn=[scene.name for scene in drawn[0]],
        asked=labels,
        means=tables["means"],
        alone=tables["alone_means"],
        matrix=tables["matrix"],
        curves=tables["faithfulness"],
        salient=tables["salient"],
        warnings=told,
        random_seeds=measure.random_seeds,
        files={**gallery.written, **written, "numbers.json": "all tables in one"},
    )
    numbers = {"about": about, "asked": labels, "measured": order, "drawn": text.drawn, "warnings": list(told)}
    write_atomically(folder / "numbers.json", json.dumps(_plain({**numbers, **tables})).encode())
    write_atomically(folder / "summary.md", summary(settings, text).encode())
