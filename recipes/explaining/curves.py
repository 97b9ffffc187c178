"""Deletion and insertion along the maps of the drawn images, as rows."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from perpixel.attribution import faithfulness
from recipes.explaining.maps import Meter, Row
from recipes.explaining.questions import Question, Scene
from recipes.explaining.settings import ExplainSettings

NEAREST, RESET = "nearest first", "reset network"


def measure_curves(
    network: nn.Module,
    meter: Meter,
    scene: Scene,
    question: Question,
    method: str,
    values: Tensor,
    settings: ExplainSettings,
) -> tuple[list[Row], list[Row]]:
    """Rows of faithfulness.csv and of curves.csv for one map (H, W); none where the region leaves nothing to remove."""
    if bool(question.region.all()):
        return [], []
    curves, ask = settings.curves, settings.ask

    def again(other: nn.Module, images: Tensor) -> Tensor:
        return meter.map(other, scene, question, method, meter.influence(other, scene))[0][None].to(images.device)

    found = faithfulness(
        network,
        scene.image[None].to(meter.device),
        values[None].to(meter.device),
        question.label,
        region=question.region[None].to(meter.device),
        score=ask.score,
        steps=curves.steps,
        patch=meter.patch(scene),
        baselines=settings.maps.baselines,
        seeds=curves.seeds,
        explainer=again if curves.stages else None,
        stages=curves.stages,
        compare_baselines=(),
    )
    common = {"image": scene.name, "label": meter.names[question.label], "method": method}
    nan = torch.tensor([float("nan")])
    alike = nan if found.randomised is None else found.randomised.correlation[-1]
    areas, points = list[Row](), list[Row]()
    for curve in (found.deletion, found.insertion):
        for score in curve.scores:
            row = {**common, "curve": curve.kind, "score": score, "area": float(curve.area(score)[0])}
            row |= {"area_random": float(curve.area(score, "random").mean()), "gain": float(curve.gain(score)[0])}
            row |= {"relative_gain": float(curve.relative_gain(score)[0]), "beaten": float(curve.beaten(score)[0])}
            for name, order in (("gain_nearest", NEAREST), ("gain_reset", RESET)):
                row[name] = float(curve.gain(score, order)[0]) if order in curve.controls else float("nan")
            areas.append(row | {"correlation_reset": float(alike[0])})
            mean, low, high = curve.band(score)
            columns: list[Sequence[float]] = [c[0].tolist() for c in (curve.fraction, curve.scores[score])]
            columns += [c[0].tolist() for c in (mean, low, high)]
            columns.append(
                curve.controls[NEAREST][score][0].tolist() if NEAREST in curve.controls else mean[0].tolist()
            )
            for values_here in zip(*columns):
                names = ("fraction", "value", "random", "random_low", "random_high", "nearest")
                points.append({**common, "curve": curve.kind, "score": score, **dict(zip(names, values_here))})
    return areas, points
