"""Weights to start from: torchvision's by name, or a file of any maker, read only if whole; loaded entry by entry."""

import contextlib
import hashlib
import io
import re
import zipfile
from collections.abc import Iterator, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from perpixel.checks import complain
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
    """What `torch.save` wrote, on the CPU, or DamagedCheckpoint.

    A file of `sealed_archive` is verified whole. Of other zip files every record must be one that torch fills, with the
    right checksum; torch's older format has none.
    """
    data = path.read_bytes()
    try:
        is_sealed = is_whole(data)
        if not is_sealed and data.startswith(b"PK\x03\x04"):  # as torch tells a zip file
            _check_records(data)
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        tag = content.get("format") if isinstance(content, Mapping) else None
        if not is_sealed and re.fullmatch(r"perpixel \d+", str(tag)) and tag not in _UNSEALED:
            raise DamagedCheckpoint(f"of format {tag!r} without its digest: damaged, or saved again by other means")
    except Exception as error:  # whatever zipfile, pickle or torch make of damaged bytes
        kind = "" if isinstance(error, DamagedCheckpoint) else f"{type(error).__name__}: "
        reason = str(error).split("\n")[0].split(". ")[0]
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


def _check_records(data: bytes) -> None:
    """DamagedCheckpoint for a record that is damaged, or that torch would pass over and leave its tensor unfilled."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for record in archive.infolist():
            stored = record.compress_type == zipfile.ZIP_STORED
            if record.is_dir() or record.external_attr & 0x10 or (stored and record.compress_size != record.file_size):
                raise DamagedCheckpoint(f"the directory entry of {record.filename} is wrong")
        damaged = archive.testzip()
    if damaged is not None:
        raise DamagedCheckpoint(f"the checksum of {damaged} is wrong")


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
        with fetching("model.weights", weights.url):
            return dict(weights.get_state_dict(progress=False, check_hash=True)), f"torchvision's {weights}"
    if settings.checkpoint:
        return read_weights(Path(settings.checkpoint)), settings.checkpoint
    return None


@contextlib.contextmanager
def fetching(setting: str, url: str) -> Iterator[None]:
    """Around what lets torch fetch the file at `url` and read it.

    ConnectionError, with what to do by hand, where it cannot be fetched. DamagedCheckpoint where a file fetched earlier
    is not what its name says: torch looks only while it fetches.
    """
    path = Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])
    _check_fetched(setting, path)
    try:
        yield
    except (OSError, RuntimeError, HTTPException) as error:  # no network; another content than its name says
        if path.is_file():
            raise
        reason = str(getattr(error, "reason", error))
        remedy = f"Fetch {url} by other means and put it into {path.parent}."
        raise ConnectionError(complain(setting, f"the file {path.name} to be fetched", reason, remedy)) from error


def _check_fetched(setting: str, path: Path) -> None:
    named = re.search(r"-([0-9a-f]{8,})\.", path.name)
    if named and path.is_file() and not hashlib.sha256(path.read_bytes()).hexdigest().startswith(named[1]):
        expected, came = f"a file whose SHA-256 begins with {named[1]}", f"another content in {path}"
        raise DamagedCheckpoint(complain(setting, expected, came, "Remove it: it will be fetched again."))


def read_weights(path: Path) -> Weights:
    """State dict of a safetensors or torch.save file; a training checkpoint's "model" or "state_dict" is taken out."""
    if not path.is_file():
        raise FileNotFoundError(complain("model.checkpoint", "a file", f"{path}, not there", "Check the path."))
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        content = read_archive(path)
    except OSError:
        raise
    except Exception as error:  # whatever safetensors makes of other bytes
        came = str(error) if isinstance(error, DamagedCheckpoint) else f"{path} ({type(error).__name__}: {error})"
        expected = "a safetensors file or a state dict of torch.save that loads with weights_only=True"
        remedy = "Take a sound copy. Save model.state_dict() alone, not the module."
        raise DamagedCheckpoint(complain("model.checkpoint", expected, came.split("\n")[0], remedy)) from error
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
    network: nn.Module, weights: Weights, source: str, *, replace_head: bool | None, num_classes: int
) -> list[str]:
    """Load `weights`; returns the classifier entries that stay at random because their number of classes differs.

    replace_head: whether they may; None where nothing would train them.
    """
    own = network.state_dict()
    for prefix in ("_orig_mod.", "module.", "model.", "network."):
        if weights and all(k.startswith(prefix) for k in weights) and not any(k.startswith(prefix) for k in own):
            weights = {k.removeprefix(prefix): v for k, v in weights.items()}
    has_aux = any(k.startswith("aux_classifier.") for k in own)
    weights = {k: v for k, v in weights.items() if has_aux or not k.startswith("aux_classifier.")}
    differ = [k for k in own if k in weights and own[k].shape != weights[k].shape]
    of_integers = [k for k in own if k in weights and own[k].is_floating_point() > weights[k].is_floating_point()]
    not_numbers = [k for k in own if k in weights and weights[k].is_floating_point() and bool(weights[k].isnan().any())]
    replaced = [k for k in differ if own[k].shape[1:] == weights[k].shape[1:] and own[k].shape[:1] == (num_classes,)]
    missing = [k for k in own if k not in weights and not k.startswith("aux_classifier.")]
    unexpected = [k for k in weights if k not in own]
    if replaced and not replace_head:
        came = f"{replaced[0]} of shape {tuple(weights[replaced[0]].shape)} in {source}"
        remedy = "Pass --model.replace_head true to train a new classifier."
        if replace_head is None:
            remedy = "Give data of the classes that it was trained on: --data.name, --data.root."
        expected = f"{num_classes} classes, as the data has" if num_classes > 1 else "one output, as data.binary asks"
        raise ValueError(complain("model.checkpoint", expected, came, remedy))
    others = [k for k in differ if k not in replaced]
    faults = [
        f"{len(names)} {what} ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})"
        for what, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", others),
            ("of integers, where the network has fractions", of_integers),
            ("with NaN", not_numbers),
        )
        if names
    ]
    if faults:
        remedy = "Check model.name and model.options: the file belongs to another network."
        came = f"{source} with " + "; ".join(faults)
        raise ValueError(complain("model.checkpoint", "the network's entries", came, remedy))
    network.load_state_dict({**own, **{k: v for k, v in weights.items() if k not in replaced}})
    return replaced
