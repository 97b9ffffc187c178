"""Find a network's classifier layer."""

import difflib
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn

from perpixel.attach.alignment import computed_from, is_resized
from perpixel.borrow import unwrap
from perpixel.checks import complain


class LayerRecord(NamedTuple):
    """The positional inputs and the output of a layer in one forward pass."""

    inputs: tuple[object, ...]
    output: object


def named_layer(model: nn.Module, name: object) -> nn.Module:
    """The layer of `model` called `name`, else TypeError or ValueError with the closest names."""
    if not isinstance(name, str):
        raise TypeError(complain("head", "the dotted name of a layer", name, "See model.named_modules()."))
    layers = {**dict(model.named_modules()), **dict(unwrap(model).named_modules())}
    del layers[""]
    if name not in layers:
        close = difflib.get_close_matches(name, layers, n=5, cutoff=0.4) or list(layers)[-5:]
        raise ValueError(complain("head", "the dotted name of a layer", repr(name), f"Close or last names: {close}."))
    return layers[name]


def candidate_heads(model: nn.Module) -> dict[str, nn.Module]:
    """By name, every layer that could be the classifier: it owns a `weight` of two or more dimensions (no norms)."""
    return {name: layer for name, layer in unwrap(model).named_modules() if name and _mixes_channels(layer)}


def pick_head(layers: Mapping[str, nn.Module], records: Mapping[str, LayerRecord], logits: Tensor) -> str:
    """The one of `layers` whose recorded output is `logits` (N, C, H, W) once resized.

    Where the graph is recorded, the logits must also have been computed from that output (an auxiliary head that
    happens to say the same is none). No such layer, or several: ValueError that lists the candidates.
    """
    outputs = {name: record.output for name, record in records.items()}
    maps = {name: out for name, out in outputs.items() if isinstance(out, Tensor) and out.ndim == 4}
    fitting = {name: out for name, out in maps.items() if out.shape[:2] == logits.shape[:2]}
    same = [name for name, out in fitting.items() if out is logits] or [
        name
        for name, out in fitting.items()
        if computed_from(out, logits) is not False and is_resized(out[:1], logits[:1])
    ]
    if len(same) == 1:
        return same[0]
    listed = {name: fitting[name] for name in same} or fitting or dict(list(maps.items())[-8:])
    lines = [f"\n  {name!r}: {type(layers[name]).__name__} -> {tuple(out.shape)}" for name, out in listed.items()]
    remedy = "Name the classifier layer: attach(model, ..., head='<name>'). Candidates:"
    expected = f"one layer whose output, resized, is the logits {tuple(logits.shape)}"
    raise ValueError(complain("head", expected, str(len(same) or "none"), remedy + ("".join(lines) or " none ran.")))


def _mixes_channels(layer: nn.Module) -> bool:
    weight = getattr(layer, "weight", None)
    lazy = isinstance(weight, nn.parameter.UninitializedParameter)
    return isinstance(weight, Tensor) and (lazy or weight.ndim >= 2)
