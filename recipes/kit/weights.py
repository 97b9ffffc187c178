"""Weights to start from: torchvision's by name, or a file of any maker; loaded entry by entry."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from perpixel.checks import complain
from recipes.kit.run_folder import DamagedCheckpoint
from recipes.kit.settings import ModelSettings

Weights = dict[str, Tensor]


def starting_weights(settings: ModelSettings) -> tuple[Weights, str] | None:
    """What `model.weights` or `model.checkpoint` names, and its name for messages; None if neither does."""
    if settings.weights and settings.checkpoint:
        came = f"{settings.weights!r} and {settings.checkpoint!r}"
        raise ValueError(complain("model.weights, model.checkpoint", "one of them", came, "Leave one out."))
    if settings.weights:
        import torchvision

        try:
            known = torchvision.models.get_model_weights(settings.name).__members__
        except ValueError:
            known = {}
        if settings.weights not in known:
            listed = ", ".join(known) or "none: torchvision has no weights for this network"
            raise ValueError(complain("model.weights", f"one of {listed}", settings.weights, "Choose one of these."))
        weights = known[settings.weights]
        return dict(weights.get_state_dict(progress=False, check_hash=True)), f"torchvision's {weights}"
    if settings.checkpoint:
        return read_weights(Path(settings.checkpoint)), settings.checkpoint
    return None


def read_weights(path: Path) -> Weights:
    """State dict of a safetensors or torch.save file; a training checkpoint's "model" or "state_dict" is taken out."""
    if not path.is_file():
        raise FileNotFoundError(complain("model.checkpoint", "a file", f"{path}, not there", "Check the path."))
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever safetensors, pickle or torch make of other bytes
        came = f"{path} ({type(error).__name__}: {str(error).splitlines()[0]})"
        expected = "a safetensors file or a state dict of torch.save that loads with weights_only=True"
        raise DamagedCheckpoint(
            complain("model.checkpoint", expected, came, "Save model.state_dict() alone.")
        ) from error
    return unwrap_weights(content, str(path))


def unwrap_weights(content: Any, source: str) -> Weights:
    """The state dict inside a training checkpoint: averaged weights if there are some, else "model" or "state_dict"."""
    if isinstance(content, Mapping):
        if isinstance(content.get("ema"), Mapping) and content["ema"]:
            content = {k.removeprefix("module."): v for k, v in content["ema"].items() if k != "n_averaged"}
        for key in ("model", "state_dict", "model_state_dict"):
            if isinstance(content.get(key), Mapping):
                content = content[key]
                break
        if content and all(isinstance(v, Tensor) for v in content.values()):
            return dict(content)
    came = f"{type(content).__name__} in {source}"
    if isinstance(content, Mapping):
        came = f"a mapping with keys {list(content)[:6]} in {source}"
    raise ValueError(complain("model.checkpoint", "a state dict", came, 'Save model.state_dict(), or {"model": ...}.'))


def load_weights(
    network: nn.Module, weights: Weights, source: str, *, replace_head: bool, num_classes: int
) -> list[str]:
    """Load `weights`; returns the classifier entries that stay at random because their number of classes differs."""
    own = network.state_dict()
    for prefix in ("_orig_mod.", "module.", "model.", "network."):
        if weights and all(k.startswith(prefix) for k in weights) and not any(k.startswith(prefix) for k in own):
            weights = {k.removeprefix(prefix): v for k, v in weights.items()}
    has_aux = any(k.startswith("aux_classifier.") for k in own)
    weights = {k: v for k, v in weights.items() if has_aux or not k.startswith("aux_classifier.")}
    differ = [k for k in own if k in weights and own[k].shape != weights[k].shape]
    replaced = [k for k in differ if own[k].shape[1:] == weights[k].shape[1:] and own[k].shape[:1] == (num_classes,)]
    missing = [k for k in own if k not in weights and not k.startswith("aux_classifier.")]
    unexpected = [k for k in weights if k not in own]
    if replaced and not replace_head:
        came = f"{replaced[0]} of shape {tuple(weights[replaced[0]].shape)} in {source}"
        remedy = "Pass --model.replace_head true to train a new classifier."
        raise ValueError(complain("model.checkpoint", f"{num_classes} classes, as the data has", came, remedy))
    others = [k for k in differ if k not in replaced]
    faults = [
        f"{len(names)} {what} ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", others))
        if names
    ]
    if faults:
        remedy = "Check model.name and model.options: the file belongs to another network."
        came = f"{source} with " + "; ".join(faults)
        raise ValueError(complain("model.checkpoint", "the network's entries", came, remedy))
    network.load_state_dict({**own, **{k: v for k, v in weights.items() if k not in replaced}})
    return replaced
