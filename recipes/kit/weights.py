"""Weights to start from: torchvision's by name, or a file of any maker, read only if whole; loaded entry by entry."""

import hashlib
import io
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from perpixel.checks import complain
from perpixel.data import IMAGENET_MEAN, IMAGENET_STD
from perpixel.models import CheckpointMismatch, fetching, find_state_dict, load_checkpoint, read_checkpoint
from recipes.kit.run_folder import DamagedCheckpoint
from recipes.kit.settings import ModelSettings

Weights = dict[str, Tensor]
_SEAL, _HEX = b"perpixel sha256 ", 64  # then the digest of all that stands before it
_UNSEALED = ("perpixel 3", "perpixel 2", "perpixel 1")  # formats written before there was a seal


def sealed_archive(content: Any) -> bytes:
    """`torch.save`, the SHA-256 of the whole as the comment of the zip archive: `torch.load` reads it as ever."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    buffer.seek(-2, io.SEEK_END)  # an archive without comment ends with the comment's length
    buffer.write((len(_SEAL) + _HEX).to_bytes(2, "little") + _SEAL)
    with buffer.getbuffer() as data:
        digest = hashlib.sha256(data).hexdigest()
    buffer.write(digest.encode())
    return buffer.getvalue()


def read_archive(path: Path) -> Any:
    """What a file of `torch.save` or safetensors holds, on the CPU, or DamagedCheckpoint; a seal is verified first."""
    data = path.read_bytes()
    try:
        is_sealed = is_whole(data)
        content = read_checkpoint(data)
        tag = content.get("format") if isinstance(content, Mapping) else None
        if not is_sealed and re.fullmatch(r"perpixel \d+", str(tag)) and tag not in _UNSEALED:
            raise DamagedCheckpoint(f"of format {tag!r} without its digest: damaged, or saved again by other means")
    except (ValueError, DamagedCheckpoint) as error:
        cause = error.__cause__ or error  # whatever torch or safetensors made of damaged bytes
        kind = "" if isinstance(cause, DamagedCheckpoint) else f"{type(cause).__name__}: "
        reason = str(cause).split("\n")[0].split(". ")[0]
        raise DamagedCheckpoint(f"{path}: not readable ({kind}{reason})") from error
    return content


def is_whole(data: bytes) -> bool:
    """True where the seal of `sealed_archive` is right, False without one; DamagedCheckpoint where it is wrong."""
    seal = memoryview(data)[-len(_SEAL) - _HEX :]
    if seal[: len(_SEAL)] != _SEAL:
        return False
    if hashlib.sha256(memoryview(data)[:-_HEX]).hexdigest().encode() != seal[len(_SEAL) :]:
        raise DamagedCheckpoint("its digest is that of another content")
    return True


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
        with fetching(weights, "model.weights"):
            return dict(weights.get_state_dict(progress=False, check_hash=True)), f"torchvision's {weights}"
    if settings.checkpoint:
        return read_weights(Path(settings.checkpoint)), settings.checkpoint
    return None


def read_weights(path: Path) -> Weights:
    """The state dict in a file of safetensors or torch.save, also inside a training checkpoint."""
    if not path.is_file():
        raise FileNotFoundError(complain("model.checkpoint", "a file", f"{path}, not there", "Check the path."))
    try:
        return unwrap_weights(read_archive(path), str(path))
    except DamagedCheckpoint as error:
        expected = "a safetensors file or a state dict of torch.save that loads with weights_only=True"
        remedy = "Take a sound copy. Save model.state_dict() alone, not the module."
        raise DamagedCheckpoint(complain("model.checkpoint", expected, str(error), remedy)) from error


def unwrap_weights(content: Any, source: str) -> Weights:
    """`find_state_dict`, averaged weights named as the network's; ValueError names the setting and the source."""
    try:
        found = find_state_dict(content)
        averaged = all(name.startswith("module.") for name in found)
        return {name.removeprefix("module."): value for name, value in found.items()} if averaged else found
    except ValueError as error:
        raise ValueError(f"model.checkpoint: {source}: {error}") from error


def load_weights(
    network: nn.Module,
    weights: Weights,
    source: str,
    *,
    replace_head: bool | None,
    num_classes: int,
    caffe_pixels: bool | None = None,
) -> list[str]:
    """Load `weights`; returns the classifier entries that stay at random because their number of classes differs.

    replace_head: whether they may; None where nothing would train them. Of an auxiliary classifier that only the
    network has, or only the weights, nothing is said.
    """
    has_aux, given_aux = (any("aux_classifier." in k for k in names) for names in (network.state_dict(), weights))
    pixels = (IMAGENET_MEAN, IMAGENET_STD) if caffe_pixels else caffe_pixels
    load = partial(load_checkpoint, network, weights, rename=None if has_aux else _without_aux, caffe_pixels=pixels)
    kept = ["aux_classifier"] if has_aux and not given_aux else []
    replaced: list[str] = []
    while True:
        try:
            load(keep=[*kept, *replaced])
            return replaced
        except CheckpointMismatch as error:
            clashes = error.report.clashes
            replaced = [k for k, (own, other) in clashes.items() if own[1:] == other[1:] and own[:1] == (num_classes,)]
            if not replaced:
                remedy = "Check model.name and model.options: the file belongs to another network."
                came = f"{source} with {error.report}"
                raise ValueError(complain("model.checkpoint", "the network's entries", came, remedy)) from error
            if not replace_head:
                came = f"{replaced[0]} of shape {clashes[replaced[0]][1]} in {source}"
                remedy = "Pass --model.replace_head true to train a new classifier."
                if replace_head is None:
                    remedy = "Give data of the classes that it was trained on: --data.name, --data.root."
                expected = f"{num_classes} classes, as the data has"
                expected = expected if num_classes > 1 else "one output, as data.binary asks"
                raise ValueError(complain("model.checkpoint", expected, came, remedy)) from error
        except ValueError as error:
            if caffe_pixels is not None or not str(error).startswith("caffe_pixels: "):
                raise ValueError(f"model.checkpoint: {source}: {error}") from error
            remedy = "true: it was trained on BGR images of 0 to 255, as Caffe does; false: on images as here."
            came = f"{caffe_pixels}, and Caffe's names of layers in {source}"
            raise ValueError(complain("model.caffe_pixels", "true or false", came, remedy)) from error


def _without_aux(name: str) -> str | None:
    return None if name.startswith("aux_classifier.") else name
