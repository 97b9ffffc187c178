"""Other people's checkpoints: read without running their code, matched name by name, loaded whole or not at all."""

import difflib
import io
import math
import os
import zipfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from perpixel.checks import check_flag, complain, describe
from perpixel.models.caffe import caffe_names, join_branches, take_rgb

StateDict = dict[str, Tensor]
Rename = Mapping[str, str | None] | Callable[[str], str | None]
_INSIDE = ("ema", "model", "state_dict", "model_state_dict")  # where trainers keep the state dict, the best first
_WRAPPERS = ("_orig_mod.", "module.")  # of torch.compile and DistributedDataParallel


@dataclass(frozen=True)
class CheckpointReport:
    """What of a checkpoint fits a model; names are the model's, but for those of `unexpected`.

    loaded: name in the model -> name in the checkpoint. missing: without a counterpart in the checkpoint. unexpected:
    without one in the model. kept: left as they were, as asked. clashes: name -> shape in the model, in the checkpoint.
    integers: whole numbers, where the model has fractions. nans: with NaN. As a text: what does not fit.
    """

    loaded: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    clashes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    integers: list[str] = field(default_factory=list)
    nans: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        shapes = [f"{name} {own} here, {other} there" for name, (own, other) in self.clashes.items()]
        found = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "of another shape": shapes,
            "of integers, where the network has fractions": self.integers,
            "with NaN": self.nans,
        }
        parts = [
            f"{len(names)} {what} ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})"
            for what, names in found.items()
            if names
        ]
        return "; ".join(parts) or "nothing that does not fit"


class CheckpointMismatch(ValueError):
    """A checkpoint of another network; `report` says in what. The model is as it was."""

    def __init__(self, message: str, report: CheckpointReport) -> None:
        super().__init__(message)
        self.report = report


def load_checkpoint(
    model: nn.Module,
    source: str | os.PathLike[str] | Mapping[str, Any],
    *,
    prefix: str | None = None,
    rename: Rename | None = None,
    keep: Collection[str] = (),
    caffe_pixels: tuple[Any, Any] | bool | None = None,
    strict: bool = True,
) -> CheckpointReport:
    """Load `source` into `model`, in place, or raise and leave all of it as it was.

    Names of wrappers in front of all entries ("module.", "model.", ...) are passed over. Caffe's names of VGG, FCN and
    DeepLab (conv1_1, fc6, score_fr, fc8_voc12, ...) are known. Weights of linear layers (O, C·h·w) fill convolutions
    (O, C, h, w) of as many elements: torch and Caffe flatten maps in this order. Values take the model's dtype.

    Args:
        model: The network itself, without wrapper.
        source: A file (see `read_checkpoint`), or a state dict, also inside a training checkpoint.
        prefix: Take only the entries that begin so, such as "student.", and leave that away. None: found.
        rename: Name in the checkpoint (without prefix) -> name in the model, of an entry or of a module for all that is
            in it; None leaves out. A mapping, or a function of an entry's name.
        keep: Entries or modules of the model that stay as they are, such as a classifier of other classes.
        caffe_pixels: For weights trained on Caffe's images (BGR, 0 to 255, mean colour subtracted). (mean, std) as in
            `perpixel.data.IMAGENET_MEAN`, `IMAGENET_STD`: the first convolution is changed so that it gives for RGB
            images in [0, 1], normalised so, what it gave for Caffe's; exact but at the padded border, where the model
            sees your mean colour, not Caffe's. False: unchanged, for who prepares images as Caffe. None: an error where
            the names are Caffe's, since they do not say it.
        strict: Also refuse missing and unexpected entries, which are only reported otherwise.

    Raises:
        CheckpointMismatch: a ValueError that names the first missing, unexpected, clashing entries, or NaN.
        ValueError: a source that is no state dict; a prefix, a name of `rename` or `keep` that is not there.
    """
    check_flag("strict", strict)
    given = find_state_dict(source if isinstance(source, Mapping) else read_checkpoint(source))
    own = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    full = {_bare(name): name for name in own}
    kept = _kept(full, keep)
    if "fc7.weight" in full and any("fc7_1.weight" in name for name in given):
        given = join_branches(given)
    names, is_caffe = _matched(model, full, given, prefix, rename)
    loaded = {full[name]: old for name, old in names.items() if name in full and full[name] not in kept}
    unexpected = [old for name, old in names.items() if name not in full]
    values = {name: _fitted(given[old], own[name].shape) for name, old in loaded.items()}
    report = _compare(own, values, CheckpointReport(loaded=loaded, unexpected=unexpected, kept=kept))
    wrong = [report.clashes, report.integers, report.nans, not values]
    if any([*wrong, report.missing, unexpected] if strict else wrong):
        expected, place = f"the entries of {type(model).__name__}", "a state dict"
        came = f"{place if isinstance(source, Mapping) else source} with {report}"
        remedy = "Nothing was loaded: see that the file is of this network; rename=, prefix= and keep= bring others in."
        raise CheckpointMismatch(complain("source", expected, came, remedy), report)
    if is_caffe and caffe_pixels is None:
        expected = "what the images will be, since Caffe's networks want BGR from 0 to 255 without the mean colour"
        remedy = "Pass (IMAGENET_MEAN, IMAGENET_STD) of perpixel.data for images normalised so, False for Caffe's."
        raise ValueError(complain("caffe_pixels", expected, "None", remedy))
    if caffe_pixels:
        values |= take_rgb(own, values, caffe_pixels)
    model.load_state_dict(values, strict=False)
    return report


def _compare(own: StateDict, values: StateDict, report: CheckpointReport) -> CheckpointReport:
    """The report, with what is missing and what does not fit."""
    return replace(
        report,
        missing=[k for k in own if k not in {*values, *report.kept} and not k.endswith("num_batches_tracked")],
        clashes={k: (tuple(own[k].shape), tuple(v.shape)) for k, v in values.items() if own[k].shape != v.shape},
        integers=[k for k, v in values.items() if own[k].is_floating_point() > v.is_floating_point()],
        nans=[k for k, v in values.items() if v.is_floating_point() and bool(v.isnan().any())],
    )


def read_checkpoint(source: str | os.PathLike[str] | bytes) -> Any:
    """What a file of safetensors or `torch.save` holds, on the CPU, never running code of its maker.

    Damage to a zip file of torch.save is found by its checksums. `source` may be the bytes themselves.

    Raises:
        FileNotFoundError: no file there.
        ValueError: another kind of file, a damaged one, or one that holds more than tensors and plain values.
    """
    place = "" if isinstance(source, bytes) else f"{os.fspath(source)} "
    if not isinstance(source, bytes) and not Path(source).is_file():
        raise FileNotFoundError(complain("source", "a file", f"{place}, not there", "Check the path."))
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    try:
        if data[8:9] == b"{":  # after the length of its header
            from safetensors.torch import load

            return load(data)
        if data.startswith(b"PK\x03\x04"):  # as torch tells a zip file
            _check_records(data)
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except ImportError:
        raise
    except Exception as error:  # whatever zipfile, pickle, torch or safetensors make of other bytes
        reason = str(error).split("\n")[0].split(". ")[0]
        expected = "a sound file of safetensors, or of torch.save that loads with weights_only=True"
        remedy = "Take a sound copy. Save model.state_dict() alone, not the module."
        raise ValueError(complain("source", expected, f"{place}({type(error).__name__}: {reason})", remedy)) from error


def find_state_dict(content: Any) -> StateDict:
    """The state dict in a training checkpoint, or `content` itself: of several, averaged weights ("ema") come first.

    ValueError without one, or with several of which none is under "ema", "model" or "state_dict".
    """
    while isinstance(content, Mapping):
        if content and all(isinstance(value, Tensor) for value in content.values()):
            return {str(name): value for name, value in content.items() if name != "n_averaged"}
        inside = [key for key, value in content.items() if isinstance(value, Mapping) and value and _holds(value)]
        chosen = [key for key in _INSIDE if key in inside] or (inside if len(inside) == 1 else [])
        if not chosen:
            break
        content = content[chosen[0]]
    came = f"a mapping with keys {[*content][:6]}" if isinstance(content, Mapping) else describe(content)
    remedy = 'Save model.state_dict(), or {"model": ...}, or pass the one of them that is meant.'
    raise ValueError(complain("source", "a state dict", came, remedy))


def _holds(content: Mapping[Any, Any]) -> bool:
    """Whether it is a state dict, or has one under a key where trainers keep it."""
    nested = [content[key] for key in _INSIDE if isinstance(content.get(key), Mapping)]
    return all(isinstance(value, Tensor) for value in content.values()) or any(map(_holds, nested))


def _check_records(data: bytes) -> None:
    """ValueError for a record that is damaged, or that torch would pass over and leave its tensor unfilled."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for record in archive.infolist():
            stored = record.compress_type == zipfile.ZIP_STORED
            if record.is_dir() or record.external_attr & 0x10 or (stored and record.compress_size != record.file_size):
                raise ValueError(f"the directory entry of {record.filename} is wrong")
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"the checksum of {damaged} is wrong")


def _matched(
    model: nn.Module, own: Collection[str], given: StateDict, prefix: str | None, rename: Rename | None
) -> tuple[dict[str, str], bool]:
    """Name in the model (or what would be its name) -> name in the checkpoint; whether those are Caffe's.

    Without `prefix` as many parts of names that all have in common are left away as let the most entries fit.
    """
    short = {name.removeprefix(prefix or ""): name for name in given if name.startswith(prefix or "")}
    if not short:
        expected, remedy = "what names of the checkpoint begin with", f"They begin so: {[*given][:4]}."
        raise ValueError(complain("prefix", expected, repr(prefix), remedy))
    found = []
    while True:
        names = {new: short[old] for new, old in _renamed(short, rename).items()}
        aliases = caffe_names(model, names)
        found.append((short, {aliases.get(new, new): old for new, old in names.items()}))
        heads = {name.partition(".")[0] for name in short}
        if prefix is not None or len(heads) > 1 or any("." not in name for name in short):
            break
        short = {name.partition(".")[2]: old for name, old in short.items()}
    short, names = max(found, key=lambda one: len(one[1].keys() & {*own}))
    for part in rename if isinstance(rename, Mapping) else ():
        if not any(_below(name, [part]) for name in short):
            close = difflib.get_close_matches(part, short, 4, 0.4) or [*short][:4]
            expected = "modules or entries of the checkpoint"
            raise ValueError(complain("rename", expected, repr(part), f"Close or first names: {close}."))
    return names, "conv1_1.weight" in {*short} - {*own}


def _renamed(names: Collection[str], rename: Rename | None) -> dict[str, str]:
    """New name -> old name."""
    if rename is None:
        return {name: name for name in names}
    if isinstance(rename, Mapping):
        rename = partial(_by_mapping, rename)
    found: dict[str, str] = {}
    for old in names:
        new = rename(old)
        if new in found:
            came = f"{found[new]!r} and {old!r}, both to {new!r}"
            raise ValueError(complain("rename", "new names that differ", came, "Leave one out, by None."))
        if new is not None:
            found[new] = old
    return found


def _by_mapping(rename: Mapping[str, str | None], name: str) -> str | None:
    """The new name, by the longest part of the name that is renamed."""
    head = name
    while head not in rename and head:
        head = head.rpartition(".")[0]
    new = rename.get(head, head)
    return None if new is None else new + name[len(head) :]


def _below(name: str, tops: Collection[str]) -> bool:
    """Whether an entry is one of `tops`, or in one of them."""
    return any(name == top or name.startswith(f"{top}.") for top in tops)


def _kept(own: Mapping[str, str], keep: Collection[str]) -> list[str]:
    for top in [keep] if isinstance(keep, str) else keep:
        if not any(_below(name, [top]) for name in own):
            close = difflib.get_close_matches(top, own, 4, 0.4) or [*own][-4:]
            expected = "modules or entries of the model"
            raise ValueError(complain("keep", expected, repr(top), f"Close or last names: {close}."))
    return [full for name, full in own.items() if _below(name, keep)]


def _fitted(value: Tensor, shape: torch.Size) -> Tensor:
    """Values whose layout is another but beyond doubt, in that of the model.

    A linear layer (O, C·h·w) as the convolution (O, C, h, w) that it is; K × K upsampling kernels that are zero but on
    the diagonal as K kernels (K, 1, k, k).
    """
    if value.ndim == 2 and len(shape) == 4 and value.shape[0] == shape[0] and value.shape[1] == math.prod(shape[1:]):
        return value.reshape(shape)
    if value.ndim == 4 and value.shape[0] == value.shape[1] > 1 == shape[1] and value.shape[2:] == shape[2:]:
        kernels = value.diagonal().movedim(-1, 0)
        if kernels.count_nonzero() == value.count_nonzero():
            return kernels[:, None]
    return value


def _bare(name: str) -> str:
    """Without the names of wrappers in front."""
    while name.startswith(_WRAPPERS):
        name = name.partition(".")[2]
    return name
