"""The drawn objects without their discriminative region: how much of the rest keeps its label, and its activation."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from perpixel import SalientParts, salient_parts
from recipes.explaining.maps import TRAINED, Row
from recipes.explaining.questions import Scene

JOINED = ("image", "label", "region", "rest", "segmentation", "without", "before", "after", "pictures", "hidden")


def measure_salient(
    networks: Mapping[str, nn.Module], scene: Scene, names: Sequence[str], device: torch.device
) -> tuple[list[Row], SalientParts | None]:
    """Rows of salient.csv, and the objects of the explained network to draw; objects are its regions, for all alike.

    A region is hidden by the image's mean colour: the cells with the most class activation, a tenth of the object.
    """
    image, labels = scene.image[None].to(device), scene.predicted[None].to(device)
    rows, drawn = list[Row](), None
    for name, network in networks.items():
        parts = [
            salient_parts(network, image, labels, label=question.label)
            for question in scene.questions
            if question.kind == "label" and bool(question.region.any())
        ]
        if not parts:
            continue
        for row in (row for part in parts for row in part.rows()):
            shares = {key: 100 * row[key] for key in ("kept", "iou_before", "iou_after")}
            rows.append({**row, **shares, "image": scene.name, "label": names[int(row["label"])], "network": name})
        if name == TRAINED:
            joined = {key: torch.cat([getattr(part, key) for part in parts]).cpu() for key in JOINED}
            drawn = replace(parts[0], labels=parts[0].labels.cpu(), **joined)  # type: ignore[arg-type]
    return rows, drawn
