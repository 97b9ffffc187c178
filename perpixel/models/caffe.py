"""Weights that Caffe trained: the names of its VGG, FCN and DeepLab networks, and the images it saw."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from perpixel.checks import complain

MEAN = (122.679, 116.669, 104.007)  # of red, green and blue, subtracted by FCN and DeepLab; VGG's own is within 1.3

_CAFFE = re.compile(r"conv\d_\d|fc\d\w*|score_\w+|upscore\w*")
_BRANCH = re.compile(r"((?:.*\.)?fc[78](?:_\w+)?)_([1-4])\.(weight|bias)")


def caffe_names(model: nn.Module, given: Iterable[str]) -> dict[str, str]:
    """For those entries `given` that have Caffe's names, the names in `model`, as far as it has such layers.

    conv1_1 to conv5_4 are the convolutions between the poolings; fc8..., score_fr, the classifier that the model
    declares; fc6_1 to fc6_4 branches of fc6; others (fc6, score_pool4, ...) the one layer of that name, wherever it is.
    """
    layers: dict[str, list[str]] = {}
    block, place = 1, 0
    for name, module in model.named_modules():
        layers.setdefault(name.rpartition(".")[2], []).append(name)
        if isinstance(module, nn.MaxPool2d):
            block, place = block + 1, 0
        elif isinstance(module, nn.Conv2d) and block <= 5:
            place += 1
            layers.setdefault(f"conv{block}_{place}", []).append(name)
    declared = getattr(model, "classifier_layer", None)
    found = {}
    for entry in given:
        layer, _, kind = entry.rpartition(".")
        if not _CAFFE.fullmatch(layer):
            continue
        fitting = layers.get(layer, [])
        if not fitting and isinstance(declared, str) and (layer == "score_fr" or layer.startswith("fc8")):
            fitting = [declared]
        elif not fitting and layer == "upscore":
            fitting = layers.get("upscore32", [])
        elif not fitting and layer.startswith("fc6_"):
            fitting = [f"{name}.branches.{int(layer[4:]) - 1}" for name in layers.get("fc6", []) if layer[4:].isdigit()]
        if len(fitting) == 1:
            found[entry] = f"{fitting[0]}.{kind}"
    return found


def join_branches(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The four branches of DeepLab-v2 on VGG as one: fc7 in four groups, and one fc8 of all their channels.

    The sum of the branches' scores is that of one convolution of their features side by side, its bias their sum.
    """
    parts: dict[tuple[str, str], dict[str, str]] = {}
    for name in given:
        if branch := _BRANCH.fullmatch(name):
            parts.setdefault((branch[1], branch[3]), {})[branch[2]] = name
    whole = {layer: [given[of[number]] for number in sorted(of)] for layer, of in parts.items() if len(of) == 4}
    rest = {name: value for name, value in given.items() if name not in {n for k in whole for n in parts[k].values()}}
    for (layer, kind), values in whole.items():
        if layer.endswith("fc7"):
            rest[f"{layer}.{kind}"] = torch.cat(values)
        else:
            rest[f"{layer}.{kind}"] = torch.cat(values, 1) if kind == "weight" else torch.stack(values).sum(0)
    return rest


def take_rgb(own: Mapping[str, Tensor], values: Mapping[str, Tensor], normalisation: Any) -> dict[str, Tensor]:
    """Weight and bias of the first convolution among `values`, for RGB images (x - mean) / std with x in [0, 1].

    Caffe's image is 255 · (std · image + mean) - MEAN, its channels in reverse: the factor goes into the weight,
    the rest into the bias.
    """
    mean, std = _colours(normalisation)
    name = next((k for k, v in own.items() if v.ndim == 4 and v.shape[1] == 3 and k in values), None)
    bias = f"{(name or '').removesuffix('weight')}bias"
    if name is None or bias not in values:
        remedy = "Pass False, and give the model images as Caffe's."
        raise ValueError(complain("caffe_pixels", "a first convolution with a bias in the checkpoint", "none", remedy))
    weight = values[name].double().flip(1)
    shift = (weight.sum((2, 3)) * (255 * mean - torch.tensor(MEAN, dtype=torch.float64))).sum(1)
    scaled = weight * (255 * std)[:, None, None]
    return {name: scaled.to(values[name]), bias: (values[bias].double() + shift).to(values[bias])}


def _colours(normalisation: Any) -> tuple[Tensor, Tensor]:
    try:
        mean, std = (torch.tensor(one, dtype=torch.float64).reshape(3) for one in normalisation)
        if bool((std > 0).all()):
            return mean, std
    except (TypeError, ValueError, RuntimeError):
        pass
    remedy = "Pass (IMAGENET_MEAN, IMAGENET_STD) of perpixel.data."
    raise ValueError(complain("caffe_pixels", "(mean, std), three numbers each, std above 0", normalisation, remedy))
