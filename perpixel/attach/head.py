"""Find a network's classifier layer; what it was given and gave, as maps."""

import difflib
import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from perpixel.attach.alignment import computed_from, is_resized
from perpixel.borrow import unwrap
from perpixel.checks import complain, describe

DECLARATION = "classifier_layer"  # an attribute with which a model names the layer itself
CELLS = "classifier_cells"  # and says where the cells of its grid lie: stride and offset in pixels of its output
_DECLARED = {"torchvision.models.segmentation.lraspp.LRASPP": "classifier.high_classifier"}  # which cannot say it
_NAME_ANOTHER = "Name the classifier layer itself: attach(model, ..., head='<name>')."


class LayerRecord(NamedTuple):
    """The positional inputs and the output of a layer in one forward pass."""

    inputs: tuple[object, ...]
    output: object


def named_layer(model: nn.Module, name: object, argument: str = "head") -> nn.Module:
    """The layer of `model` called `name`, else TypeError or ValueError with the closest names."""
    if not isinstance(name, str):
        raise TypeError(complain(argument, "the dotted name of a layer", name, "See model.named_modules()."))
    layers = {**dict(model.named_modules()), **dict(unwrap(model).named_modules())}
    del layers[""]
    if name not in layers:
        close = difflib.get_close_matches(name, layers, n=5, cutoff=0.4) or list(layers)[-5:]
        raise ValueError(complain(argument, "the dotted name of a layer", repr(name), f"Close or last names: {close}."))
    return layers[name]


def declared_head(model: nn.Module) -> str | None:
    """The layer that the model itself names as its classifier, in `classifier_layer`; ValueError if it has no such."""
    network = unwrap(model)
    declared = getattr(network, DECLARATION, None)
    if isinstance(declared, str):
        named_layer(network, declared, f"{type(network).__name__}.{DECLARATION}")
        return declared
    layers = dict(network.named_modules())
    kinds = (f"{kind.__module__}.{kind.__qualname__}" for kind in type(network).__mro__)
    return next((_DECLARED[kind] for kind in kinds if _DECLARED.get(kind) in layers), None)


def declared_cells(model: nn.Module, head: str) -> tuple[float, float] | None:
    """Where the model itself says that the cells of `head`'s grid lie, in `classifier_cells`; ValueError if it cannot.

    Cell i, of rows and of columns alike, has its centre at pixel offset + stride · i of the output: (stride, offset).
    """
    cells = getattr(unwrap(model), CELLS, None)
    if cells is None or head != declared_head(model):
        return None
    numbers = isinstance(cells, (tuple, list)) and all(isinstance(cell, (int, float)) for cell in cells)
    if not numbers or len(cells) != 2 or not cells[0] > 0 or not math.isfinite(sum(cells)):
        expected = "(stride, offset), two numbers, the stride positive"
        raise ValueError(complain(f"{type(unwrap(model)).__name__}.{CELLS}", expected, cells, "Declare these or none."))
    return float(cells[0]), float(cells[1])


def candidate_heads(model: nn.Module) -> dict[str, nn.Module]:
    """By name, every layer that could be the classifier: it owns a `weight` of two or more dimensions (no norms)."""
    return {name: layer for name, layer in unwrap(model).named_modules() if name and _mixes_channels(layer)}


def pick_head(layers: Mapping[str, nn.Module], records: Mapping[str, LayerRecord], logits: Tensor) -> str:
    """The one of `layers` whose recorded output is `logits` (N, C, H, W) once resized.

    Where the graph is recorded, the logits must also have been computed from that output (an auxiliary head that
    happens to say the same is none). No such layer, or several: ValueError that lists the candidates.
    """
    outputs = {name: out for name, (_, out) in records.items() if isinstance(out, Tensor) and out.ndim in (3, 4)}
    grids = {name: _as_grid(layers[name], out, logits) for name, out in outputs.items()}
    fitting = {name: grid for name, grid in grids.items() if grid is not None}
    same = [name for name, grid in fitting.items() if grid is logits] or [
        name
        for name, grid in fitting.items()
        if computed_from(outputs[name], logits) is not False and is_resized(grid[:1], logits[:1])
    ]
    if len(same) == 1:
        return same[0]
    listed = {name: outputs[name] for name in same or fitting or list(outputs)[-8:]}
    lines = [f"\n  {name!r}: {type(layers[name]).__name__} -> {tuple(out.shape)}" for name, out in listed.items()]
    remedy = (
        "Name the classifier layer: attach(model, ..., head='<name>'); or, where there is none, give the features by a "
        "function of the output: attach(model, ..., features=lambda output: ...). Candidates:"
    )
    expected = f"one layer whose output, resized, is the logits {tuple(logits.shape)}"
    raise ValueError(complain("head", expected, str(len(same) or "none"), remedy + ("".join(lines) or " none ran.")))


def features_and_grid(name: str, layer: nn.Module, record: LayerRecord, logits: Tensor) -> tuple[Tensor, Tensor]:
    """What the classifier was given, (N, D, h, w), and gave, (N, C, h, w), for the model's `logits` (N, C, H, W).

    Of a layer on tokens, (N, h, w, D) or (N, h·w, D), brought to maps. ValueError for a layer that is no classifier.
    """
    features, output = _one("input", record.inputs), _one("output", (record.output,))
    if features.shape[0] != logits.shape[0]:
        came = f"{features.shape[0]} feature maps for {logits.shape[0]} images"
        raise RuntimeError(complain("head", "one feature map per image", came, "Run the model whole, on one device."))
    grid = _as_grid(layer, output, logits)
    if grid is None and logits.shape[1] in (output.shape[-1], output.shape[1]) and output.ndim == 3:
        came = f"{output.shape[1]} tokens from {name!r}"
        expected = f"tokens that fill a grid of the shape of the output, {tuple(logits.shape[-2:])}"
        raise ValueError(complain("head", expected, came, "Give features= a function of the output instead."))
    if grid is None:
        channels = output.shape[-1 if output.ndim == 3 else 1]
        expected = f"a layer with {logits.shape[1]} output channels"
        raise ValueError(complain("head", expected, f"{channels} from {name!r}", _NAME_ANOTHER))
    if grid is output:
        return _one("input", record.inputs, dims=(4,)), grid
    if features.shape[:-1] != output.shape[:-1]:
        came = f"{tuple(features.shape)} and {tuple(output.shape)}"
        raise ValueError(complain("head", "a layer that gives as many tokens as it is given", came, _NAME_ANOTHER))
    return _from_tokens(features, grid.shape[-2:]), grid


def channels_of(output: Tensor, shape: torch.Size) -> bool:
    """Whether a layer's output has N images and C channels, `shape`: as a map, or last, as tokens."""
    return output.shape[:2] == shape or (output.ndim in (3, 4) and (output.shape[0], output.shape[-1]) == shape)


def _as_grid(layer: nn.Module, output: Tensor, logits: Tensor) -> Tensor | None:
    """A layer's output as (N, C, h, w), the very tensor if it is a map; None where it has another form than logits."""
    if output.ndim == 4 and output.shape[:2] == logits.shape[:2] and not isinstance(layer, nn.Linear):
        return output
    if output.ndim < 3 or (output.shape[0], output.shape[-1]) != logits.shape[:2]:
        return None
    if output.ndim == 4:
        return _from_tokens(output, output.shape[1:3])
    height, width = logits.shape[-2:]
    rows = math.isqrt(output.shape[1] * height // max(width, 1))
    columns = output.shape[1] // max(rows, 1)
    fills = rows * columns == output.shape[1] and rows * width == columns * height
    return _from_tokens(output, (rows, columns)) if fills else None


def _from_tokens(tokens: Tensor, size: tuple[int, ...]) -> Tensor:
    """(N, h·w, D) or (N, h, w, D) -> (N, D, h, w)."""
    return (tokens.unflatten(1, size) if tokens.ndim == 3 else tokens).movedim(-1, 1)


def _one(what: str, values: tuple[object, ...], dims: tuple[int, ...] = (3, 4)) -> Tensor:
    tensors = [value for value in values if isinstance(value, Tensor)]
    if len(tensors) == 1 and tensors[0].ndim in dims and tensors[0].is_floating_point():
        return tensors[0]
    came = ", ".join(describe(value) for value in values) or "no positional argument"
    raise ValueError(complain("head", f"a layer whose {what} is one 4-D floating-point tensor", came, _NAME_ANOTHER))


def _mixes_channels(layer: nn.Module) -> bool:
    weight = getattr(layer, "weight", None)
    lazy = isinstance(weight, nn.parameter.UninitializedParameter)
    return isinstance(weight, Tensor) and (lazy or weight.ndim >= 2)
