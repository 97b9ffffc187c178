"""Any segmentation model's output -> dense logits; one channel -> two classes; labels checked against them.

Binary networks give one channel z (N, 1, H, W). Everywhere it stands for two classes, 0 = background with the logit
-z/2 and 1 = foreground with z/2: their softmax is the sigmoid of z, their cross-entropy the binary cross-entropy of z,
the foreground's margin is z, and the background is the foreground with the sign turned.
"""

import warnings
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perpixel.checks import check_integer, check_labels_in_range, check_same_device, check_tensor, complain, describe
from perpixel.reduction import labels_on_grid

_SIZES: "WeakKeyDictionary[nn.Module, dict[torch.Size, tuple[int, int]]]" = WeakKeyDictionary()
_SIZES_OF_A_MODEL = 256  # remembered at most
_SHAPE = "(N, C, H, W)"
_WHITE = 255
_MULTI_LABEL = (
    "Turn one-hot or soft labels into .argmax(1). Give masks that overlap (multi-label) one channel at a time, each as "
    "a binary network of its own: logits[:, c:c+1] and labels[:, c]."
)
_QUERIES = (
    "Put them together: torch.einsum('nqc,nqhw->nchw', output.class_queries_logits.softmax(-1)[..., :-1], "
    "output.masks_queries_logits.sigmoid()), in a function call(model, images) that is passed as call=, or, to train, "
    "in the forward of a module around the model."
)
_FORMS = f"logits {_SHAPE}: a tensor, a mapping with 'out' or 'logits', an object with .logits, or a tuple or list"


def dense_logits(output: object) -> Tensor:
    """The logits (N, C, H, W) inside a model's output.

    `output` is the tensor itself; a mapping with "out" or "logits" (torchvision, transformers); an object with
    `.logits`; or a tuple or list whose first 4-D tensor is meant. TypeError or ValueError for anything else.
    """
    refuse_queries(output)
    found: object = None
    if isinstance(output, Tensor):
        found = output
    elif isinstance(output, Mapping):
        found = next((output[key] for key in ("out", "logits") if output.get(key) is not None), None)
    elif isinstance(getattr(output, "logits", None), Tensor):
        found = output.logits  # type: ignore[attr-defined]
    elif isinstance(output, (tuple, list)):
        found = next((item for item in output if isinstance(item, Tensor) and item.ndim == 4), None)
    if found is None:
        raise TypeError(complain("output", _FORMS, _contents(output), "Pass the logits themselves."))
    return check_tensor("output", found, ndim=4, shape=_SHAPE, floating=True)


def refuse_queries(output: object) -> None:
    """TypeError for masks of queries with classes of their own (as of MaskFormer), which are no map per class."""
    if hasattr(output, "masks_queries_logits") or (isinstance(output, Mapping) and "masks_queries_logits" in output):
        came = f"masks of queries and the classes of these ({type(output).__name__})"
        raise TypeError(complain("output", f"a map per class {_SHAPE}", came, _QUERIES))


def maps_in(output: object, *, floating: bool = True) -> list[Tensor]:
    """Every 4-D tensor in a model's output, nested or not; only floating-point ones unless told otherwise."""
    if isinstance(output, Tensor):
        return [output] if output.ndim == 4 and (output.is_floating_point() or not floating) else []
    if isinstance(output, Mapping):
        output = tuple(output.values())
    if isinstance(output, (tuple, list)):
        return [found for item in output for found in maps_in(item, floating=floating)]
    return maps_in(output.logits, floating=floating) if hasattr(output, "logits") else []


def further_logits(output: object, logits: Tensor) -> dict[str | int, Tensor]:
    """What else in a model's output has the form of its `logits`: maps (N, C, h, w) of as many images and classes.

    By key, field or place, in nested containers joined by dots ("deep.0"). Hidden states and attentions are none.
    """
    found: dict[str | int, Tensor] = {}
    for key, part in _parts(output).items():
        if isinstance(key, str) and key.endswith(("hidden_states", "attentions")):
            continue
        if not isinstance(part, Tensor):
            found |= {f"{key}.{inner}": each for inner, each in further_logits(part, logits).items()}
        elif part is not logits and part.ndim == 4 and part.is_floating_point() and part.shape[:2] == logits.shape[:2]:
            found[key] = part
    return found


def logits_at(logits: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Logits (N, C, h, w) -> (N, C, H, W), bilinear with align_corners=False; the very tensor if the size is right."""
    if logits.shape[-2:] == tuple(size):
        return logits
    return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)


def class_logits(logits: Tensor) -> Tensor:
    """Logits (N, C, ...) of two or more classes: the very tensor, or for one channel z (-z/2, z/2), (N, 2, ...)."""
    if logits.shape[1] != 1:
        return logits
    half = logits / 2
    return torch.cat([-half, half], 1)


def predicted_labels(logits: Tensor) -> Tensor:
    """Logits (N, C, ...) -> int64 (N, ...): the arg-max; of one channel 1 where it is positive, else 0.

    One that is all in [0, 1] and somewhere above a half, as probabilities are, causes a warning.
    """
    if logits.shape[1] > 1:
        return logits.argmax(1)
    if logits.numel() and bool(((logits >= 0) & (logits <= 1)).all() & (logits > 0.5).any()):
        warnings.warn(
            "model: its one channel lies in [0, 1] everywhere, as probabilities do, so that all is foreground. Binary "
            "networks are expected to give logits: if a sigmoid is at the end, take it off (smp: activation=None).",
            stacklevel=3,
        )
    return (logits[:, 0] > 0).long()


def whole_mask(argument: str, mask: Any) -> Any:
    """A mask of two classes as integers (N, H, W): (N, 1, H, W), bool and whole floats as well; else the very object.

    ValueError for floats that are no whole numbers. Waits for the device.
    """
    mask = _without_channel(mask)
    if not isinstance(mask, Tensor) or not mask.is_floating_point():
        return mask
    bad = mask != mask.trunc()
    if bool(bad.any()):
        remedy = "Threshold soft masks, mask > 0.5; of logits take the sign, logits > 0."
        raise ValueError(complain(argument, "whole numbers", f"{round(float(mask[bad][0]), 4)}", remedy))
    return mask.long()


def check_labels(
    labels: object, logits: Tensor, ignore_index: int, *, values: bool, size: tuple[int, int] | None = None
) -> Tensor:
    """Labels as int64 (N, H, W) if they fit `logits` (N, C, ...), else TypeError or ValueError.

    Integers (N, H, W); where there are two classes, C = 1 or 2, masks of 0 and 1 of any dtype, (N, 1, H, W) as well.
    Brought to `size` by nearest neighbour, where given, before their values are looked at.
    `values` asks that every label is a class or `ignore_index`; on a GPU that waits for the device. Without it, what is
    neither becomes `ignore_index`.
    """
    binary = logits.shape[1] <= 2
    labels = _without_channel(labels) if binary else labels
    if isinstance(labels, Tensor) and labels.ndim == 4:
        remedy = "Use labels.squeeze(1)." if labels.shape[1] == 1 else _MULTI_LABEL
        raise ValueError(complain("labels", "class numbers (N, H, W)", labels, remedy))
    floating = binary and isinstance(labels, Tensor) and labels.is_floating_point()
    labels = check_tensor("labels", labels, ndim=3, shape="(N, H, W)", floating=floating)
    check_same_device(labels=labels, logits=logits)
    if labels.shape[0] != logits.shape[0]:
        came = f"{labels.shape[0]} label maps for {logits.shape[0]} images"
        raise ValueError(complain("labels", "one label map per image", came, "Pass the labels of this very batch."))
    labels = labels if size is None or labels.numel() == 0 else labels_on_grid(labels, size)
    classes, whole = max(2, logits.shape[1]), labels.long()
    if values:
        check_labels_in_range(labels if floating else whole, classes, check_integer("ignore_index", ignore_index))
        if logits.shape[1] == 1:
            _warn_of_grey_masks(whole, ignore_index)
        return whole
    fits = (whole >= 0) & (whole < classes)
    return torch.where(fits & (whole == labels) if floating else fits, whole, ignore_index)


def output_size(model: nn.Module, images: Tensor, logits: Tensor) -> tuple[int, int]:
    """Height and width of the model's output for images of this size, which may not be that of `logits` (N, C, h, w).

    Found with one image, and again whenever the logits are not of the size found last.
    """
    known = _SIZES.setdefault(model, {})
    size = known.get(images.shape[1:])
    if size is None or size != tuple(logits.shape[2:]):
        found = dense_logits(model(images[:1]))
        size = (found.shape[2], found.shape[3])
        if len(known) >= _SIZES_OF_A_MODEL:
            known.clear()
        known[images.shape[1:]] = size
    return size


def _warn_of_grey_masks(labels: Tensor, ignore_index: int) -> None:
    """Masks that were stored as 0 and 255 have no foreground where 255 is void."""
    if ignore_index == _WHITE and bool((labels == _WHITE).any()) and not bool((labels == 1).any()):
        warnings.warn(
            "labels: no pixel is 1, but some are ignore_index=255, which count nowhere. If the masks were stored as 0 "
            "and 255, pass masks > 0.",
            stacklevel=4,
        )


def _without_channel(labels: Any) -> Any:
    """(N, 1, H, W) -> (N, H, W), bool -> uint8; the very object if it is neither."""
    if isinstance(labels, Tensor):
        labels = labels[:, 0] if labels.ndim == 4 and labels.shape[1] == 1 else labels
        labels = labels.byte() if labels.dtype == torch.bool else labels
    return labels


def _parts(output: object) -> Mapping[str | int, object]:
    if hasattr(output, "_asdict"):  # a named tuple
        output = output._asdict()
    if isinstance(output, (tuple, list)):
        return dict(enumerate(output))
    if isinstance(output, Mapping):
        return output
    fields: dict[str | int, object] = {}
    if isinstance(getattr(output, "logits", None), Tensor):
        fields.update(getattr(output, "__dict__", {}))
    return fields


def _contents(output: object) -> str:
    if isinstance(output, Mapping):
        return f"a {type(output).__name__} with keys {list(output)}"
    if isinstance(output, (tuple, list)):
        return f"a {type(output).__name__} of {', '.join(describe(item) for item in output) or 'nothing'}"
    return describe(output)
