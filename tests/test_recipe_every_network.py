"""Every network of perpixel.models in every recipe, at the smallest size: it trains, is traced and is explained."""

from pathlib import Path
from typing import Any

import pytest
from recipe_jobs import arguments, draw_nothing, table
from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet

from perpixel.models import NETWORKS
from recipes.evaluating.job import EvaluateJob
from recipes.explaining.job import ExplainJob
from recipes.finetuning.job import FinetuneJob
from recipes.kit.job import run_recipe
from recipes.tracing.job import FixationJob

CLASSES = "[background, viper, cobra, caterpillar, centipede, eel, hammerhead, tortoise, turtle, poppy, cornflower]"
VGG = "{width: 0.0625, fc_channels: 8}"
OPTIONS = dict.fromkeys(NETWORKS, VGG) | {
    "small_fcn": "{width: 8}",
    "fcn32s_googlenet": "{}",
    "deeplab_v2_resnet101": "{}",
    "single_skip": "{backbone: squeezenet1_1, layer: features.4}",
    "deconvolution_stack": "{width: 0.0625, layers: [conv1_2, conv5_3]}",
}
TRAINING = {
    "data.train_images": "2",
    "data.eval_images": "2",
    "data.size": "[32,48]",
    "pretrain.epochs": "0",
    "pretrain.batch_size": "2",
    "train.batch_size": "2",
    "train.epochs": "1",
    "train.layers": "last-3",
    "loss.weight": "0.1",
    "evaluation.resamples": "100",
    "evaluation.pictures": "0",
    "evaluation.far": "4",
}
MEASURE = {"measure.resamples": "100", "measure.far": "4", "measure.view": "null", "measure.random_seeds": "[0]"}
TRACING = {**MEASURE, "measure.images": "2", "measure.unit_images": "1", "measure.units": "2", "do": "[shares]"}
EXPLAINING = {
    **MEASURE,
    "measure.images": "2",
    "measure.bins": "2",
    "maps.methods": "[Influence]",
    "maps.patch": "16",
    "curves.steps": "2",
    "curves.seeds": "2",
    "ask.images": "[0]",
    "ask.labels": CLASSES,
    "ask.least": "1",
    "ask.most": "1",
    "explorer": "false",
}
EVALUATING = {"evaluation.resamples": "100", "evaluation.pictures": "0"}


class Narrow(Bottleneck):
    """A block with as many channels outside as inside."""

    expansion = 1


def narrow_resnet(backbone: str, weights: Any, **options: Any) -> nn.Module:
    """In place of ResNet-101: a block for each of its layers, a quarter of its channels."""
    assert (backbone, weights) == ("resnet101", None)
    return ResNet(Narrow, [1, 1, 1, 1], **options)


@pytest.mark.parametrize("network", NETWORKS)
def test_recipes_run_every_network(network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_nothing(monkeypatch)
    monkeypatch.setattr("matplotlib.figure.Figure.draw_without_rendering", lambda _: None)
    monkeypatch.setattr("perpixel.models.deeplab.classification_network", narrow_resnet)
    model = {"model.name": network, "model.options": OPTIONS[network]}
    trained = tmp_path / "trained"
    assert run_recipe(FinetuneJob, arguments({"folder": str(trained)}, model, TRAINING)) == 0
    for job, settings in ((FixationJob, TRACING), (ExplainJob, EXPLAINING), (EvaluateJob, EVALUATING)):
        folder = tmp_path / job.recipe
        assert run_recipe(job, arguments({"folder": str(folder), "run": str(trained)}, settings)) == 0
        assert table(folder / ("classes.csv" if job is EvaluateJob else "shares.csv"))
