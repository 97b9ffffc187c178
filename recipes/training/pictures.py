"""Predictions of trained networks, drawn."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from perpixel.evaluation import predict_labels
from perpixel.report import prediction_sheet
from recipes.kit.images import Images
from recipes.kit.run_folder import save_figure


@torch.no_grad()
def draw_predictions(
    path: Path, networks: Mapping[str, nn.Module], images: Images, examples: Sequence[tuple[int, str]], title: str
) -> None:
    """Image, truth, and prediction and error of every network, for examples of (index, reason)."""
    if not examples:
        return
    shown, truths = [], []
    predictions: dict[str, list[torch.Tensor]] = {name: [] for name in networks}
    for index, _ in examples:
        _, batch, labels, _ = next(iter(images.evaluation(batch_size=1, far=0.0, only=[index])))
        shown.append(images.displayed(batch[0]))
        truths.append(labels[0])
        for name, network in networks.items():
            predictions[name].append(predict_labels(network, batch, labels.shape[-2:])[0])
    figure = prediction_sheet(
        shown,
        truths,
        predictions,
        classes=images.classes,
        colors=images.colors,
        captions=[f"{reason}\n(image {index})" for index, reason in examples],
        ignore_index=images.ignore_index,
        title=title,
    )
    save_figure(path, figure)
