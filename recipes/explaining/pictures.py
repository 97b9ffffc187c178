"""The pictures of an explanation run: panels, matrix, profiles, curves, evidence; and the pages to ask any pixel."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from perpixel import SalientParts
from perpixel.attribution import Influence
from perpixel.report import (
    CurvePanel,
    MapPanel,
    class_matrix_chart,
    context_explorer,
    fixation_backdrop,
    interval_chart,
    picture_bytes,
    profile_chart,
    removal_chart,
    signed_panels,
)
from recipes.explaining.maps import TRAINED, Found, Meter, Row
from recipes.explaining.numbers import RANDOM, Matrix, pool
from recipes.explaining.questions import EVIDENCE, Scene, slug
from recipes.explaining.settings import INFLUENCE, ExplainSettings
from recipes.kit.images import Images
from recipes.training.checkpoints import write_atomically

EVIDENCE_COLOR = "#1f6fd0"
CURVE_COLUMNS = ("fraction", "value", "random", "random_low", "random_high", "nearest")


class Gallery:
    """Draws into the folder of a run; `written` names the files, and what they show."""

    def __init__(self, folder: Path, settings: ExplainSettings, images: Images, meter: Meter) -> None:
        self.folder, self.settings, self.images, self.meter = folder, settings, images, meter
        self.written: dict[str, str] = {}

    def _save(self, figure: Any, name: str, what: str) -> None:
        write_atomically(self.folder / name, picture_bytes(figure))
        self.written[name] = what

    def backdrop(self, scene: Scene) -> Any:
        """What stands behind regions and patches, float (H, W, 3)."""
        return fixation_backdrop(scene.shown, scene.predicted, self.images.colors, style=self.settings.backdrop)

    def panels(self, scene: Scene, found: Found) -> None:
        """panels-IMAGE.png: per label the region and the signed maps, of the explained network and a random one."""
        patch, methods = self.meter.patch(scene), self.settings.maps.methods
        networks = [TRAINED, next(name for name in self.meter.networks if name != TRAINED)]
        backdrops = [self.backdrop(scene), self._outlines(scene)]
        panels = []
        for question in scene.questions:
            name = self.images.classes[question.label]
            marks = [] if question.evidence is None else [(question.evidence, EVIDENCE_COLOR)]
            for network, picture in zip(networks, backdrops):
                heading = f"{name}: {'region' if network == TRAINED else 'predicted borders'}"
                grid = (patch, patch) if network == TRAINED else None
                panels.append(MapPanel(heading, None, picture, question.region, marks, grid))
                for method in methods:
                    values = found.maps[network, method, question.kind, question.label]
                    row = next(r for r in found.shares if _is(r, network, method, question.kind, name))
                    grid = (patch, patch) if method == INFLUENCE and self.settings.maps.stride is None else None
                    panels.append(
                        MapPanel(
                            f"{method}, {pool(network)}",
                            values / question.region.sum(),
                            region=question.region,
                            marks=marks,
                            patch=grid,
                            meaning=f"{self.settings.ask.score}, per pixel of the region",
                            note=f"context {row['context_share']:.0f} % ({row['context_area']:.0f} % of the area)",
                        )
                    )
        if not panels:
            return
        known = "; blue: what decides" if any(q.evidence is not None for q in scene.questions) else ""
        figure = signed_panels(
            panels,
            columns=1 + len(methods),
            title=f"{scene.name}: what speaks for (orange) and against (purple) the label",
            note=f"black line: the region asked about{known}. Every map has a scale of its own.",
        )
        self._save(figure, f"panels-{scene.slug}.png", f"{scene.name}: signed maps, trained and random weights")

    def _outlines(self, scene: Scene) -> Any:
        return fixation_backdrop(None, scene.predicted, self.images.colors, style="outlines")

    def matrix(self, matrices: Mapping[str, Matrix]) -> None:
        """matrix.png, and the same of the networks with random weights."""
        whose = "true" if self.settings.measure.truth else "predicted"
        for network, name in ((TRAINED, "matrix.png"), (RANDOM, "matrix_random.png")):
            matrix = matrices[network]
            if not bool((matrix.pixels > 0).any()):
                continue
            values, control = matrix.values
            count = len(matrix.sums)
            figure = class_matrix_chart(
                values,
                matrix.pixels,
                classes=self.images.classes,
                control=control,
                meaning="mean loss of the row's logit",
                title=f"Which class leans on which? {self._subject()}, {network}, {count} images ({whose} classes)",
                note="grey: never seen together, or nothing left visible",
            )
            self._save(figure, name, f"the class-context matrix of the network, {network}, beside its control")

    def profiles(self, rows: Sequence[Row]) -> None:
        """profiles-METHOD.png: how far from the region the maps reach, trained beside random weights."""
        for method in dict.fromkeys(r["method"] for r in rows):
            mine = [r for r in rows if r["method"] == method]
            series = {n: [r for r in mine if r["network"] == n] for n in (TRAINED, RANDOM)}
            trained = series[TRAINED]
            if not all(series.values()):
                continue
            figure = profile_chart(
                torch.tensor([trained[0]["from"], *(r["to"] for r in trained)], dtype=torch.float64),
                {n: torch.tensor([r["share"] for r in found]) / 100 for n, found in series.items()},
                torch.tensor([r["area"] for r in trained]) / 100,
                title=f"{method}, {self._subject()}: mean of {trained[0]['questions']} regions",
                ylabel="share of what lies outside the region",
            )
            self._save(figure, f"profiles-{slug(method)}.png", f"{method}: how far from the region its values lie")

    def curves(self, rows: Sequence[Row]) -> None:
        """curves-IMAGE.png: deletion and insertion of the drawn regions, by the score that the maps explain."""
        score = self.settings.ask.score
        for image in dict.fromkeys(r["image"] for r in rows):
            mine = [r for r in rows if r["image"] == image and r["score"] == score]
            panels = [
                _curve_panel(
                    [r for r in mine if (r["label"], r["curve"], r["method"]) == (label, curve, method)], score
                )
                for label in dict.fromkeys(r["label"] for r in mine)
                for curve in ("deletion", "insertion")
                for method in self.settings.maps.methods
            ]
            figure = removal_chart(
                panels,
                columns=len(self.settings.maps.methods),
                title=f"{image}: the object stays, patches of context are removed (baseline "
                f"'{self.settings.maps.baselines}') or put back",
            )
            self._save(figure, f"curves-{slug(image)}.png", f"{image}: deletion and insertion, with random orders")

    def salient(self, scene: Scene, objects: SalientParts) -> None:
        """salient-IMAGE.png: the drawn objects with and without their discriminative region."""
        picture = torch.from_numpy(self.backdrop(scene)).permute(2, 0, 1).float()[None]
        title = f"{scene.name}: objects with and without the tenth of them that has the most activation"
        figure = objects.figure(classes=self.images.classes, colors=self.images.colors, pictures=picture, title=title)
        name = f"salient-{scene.slug}.png"
        self._save(figure, name, f"{scene.name}: objects without their discriminative region")

    def _subject(self) -> str:
        return f"{self.settings.model.name} on {self.settings.data.name}"

    def evidence(self, means: Sequence[Row]) -> None:
        """evidence.png: what lies on the known evidence, trained beside random weights and chance."""
        rows = [r for r in means if r["kind"] in EVIDENCE and r["quantity"] == "evidence"]
        pairs = [(kind, method) for kind in EVIDENCE for method in dict.fromkeys(r["method"] for r in rows)]
        pairs = [pair for pair in pairs if any((r["kind"], r["method"]) == pair for r in rows)]
        series: dict[str, list[tuple[float, float, float]]] = {TRAINED: [], RANDOM: []}
        chance = []
        for pair in pairs:
            for network, values in series.items():
                row = next(r for r in rows if (r["kind"], r["method"]) == pair and r["network"] == network)
                values.append((row["value"], row["value_low"], row["value_high"]))
            chance.append(row["chance"])
        if pairs:
            figure = interval_chart(
                [f"{kind}: {method}" for kind, method in pairs],
                series,
                marks={"chance: the evidence's share of the image": chance},
                xlabel="share of the positive values on the evidence (%)",
                title=f"{self._subject()}: do the maps find what decides?",
            )
            self._save(figure, "evidence.png", "share of the positive values on the known evidence, beside controls")


def _is(row: Row, network: str, method: str, kind: str, label: str) -> bool:
    return (row["network"], row["method"], row["kind"], row["label"]) == (network, method, kind, label)


def _curve_panel(rows: Sequence[Row], score: str) -> CurvePanel:
    column = {key: torch.tensor([r[key] for r in rows]) for key in CURVE_COLUMNS}
    first = rows[0]
    gain = float(torch.trapezoid(column["value"] - column["random"], column["fraction"]))
    deletion = first["curve"] == "deletion"
    return CurvePanel(
        title=first["method"],
        fraction=column["fraction"],
        value=column["value"],
        mean=column["random"],
        low=column["random_low"],
        high=column["random_high"],
        others={"nearest patches first": column["nearest"]},
        gain=-gain if deletion else gain,
        xlabel=f"share of the context {'removed' if deletion else 'put back'}, highest first",
        ylabel=f"{first['label']}: mean {score}",
    )


def write_explorer(
    folder: Path, scene: Scene, effects: Influence, settings: ExplainSettings, images: Images, about: str
) -> str:
    """explorer-IMAGE.html, in which any pixel, region or class can be asked; its name."""
    name = f"explorer-{scene.slug}.html"
    shown = scene.shown.clamp(0, 1)
    if settings.backdrop != "photograph":
        painted = fixation_backdrop(None, scene.predicted, images.colors, style=settings.backdrop)
        shown = torch.from_numpy(painted).permute(2, 0, 1).float()
    temporary = folder / f".{name}.drawing"
    hidden = f"baseline '{settings.maps.baselines}'"
    try:
        context_explorer(
            temporary,
            shown,
            effects.logits[0].cpu(),
            effects.values[0].cpu(),
            effects.boxes.cpu(),
            classes=list(images.classes),
            labels=scene.truth,
            palette=images.colors,
            upsampling=effects.passes.upsampling,
            title=f"{scene.name}: which patches decide?",
            note=f"{settings.model.name}, weights from {about}; patches hidden one by one ({hidden}).",
            start=_place(scene),
            ignore_index=images.ignore_index,
        )
        write_atomically(folder / name, temporary.read_bytes())
    finally:
        temporary.unlink(missing_ok=True)
    return name


def _place(scene: Scene) -> tuple[int, int] | None:
    """Row and column of a pixel in the first region asked about; None without one."""
    inside = scene.questions[0].region.nonzero() if scene.questions else torch.zeros(0, 2)
    if not len(inside):
        return None
    nearest = (inside - inside.double().mean(0)).square().sum(1).argmin()
    y, x = inside[nearest].tolist()
    return y, x
