"""Argument guards: every refusal names the argument, what was expected, what came, and the remedy."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def describe(value: object) -> str:
    """A short text of what came: shape, dtype and device of a tensor, type and value of anything else."""
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {tuple(value.shape)} on {value.device}"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 80 else text[:77] + '...'}"


def complain(argument: str, expected: str, came: object, remedy: str) -> str:
    """The house's error message; `came` is a text, or a value to describe."""
    came = came if isinstance(came, str) else describe(came)
    text = f"{argument}: expected {expected}, got {came}. {remedy}"
    return text.encode(errors="backslashreplace").decode()  # a file name may be more than a terminal can show


def check_option(argument: str, value: Any, options: Iterable[str]) -> Any:
    """`value` if it is one of `options`, else ValueError."""
    options = tuple(options)
    if not isinstance(value, str) or value not in options:
        listed = ", ".join(map(repr, options))
        raise ValueError(complain(argument, f"one of {listed}", describe(value), "Choose one of these."))
    return value


def check_number(
    argument: str,
    value: Any,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    open_low: bool = False,
    open_high: bool = False,
) -> float:
    """`value` as a finite float between `low` and `high`, else TypeError or ValueError."""
    left, right = "(" if open_low else "[", ")" if open_high else "]"
    expected = f"a finite number in {left}{low:g}, {high:g}{right}"
    is_scalar = isinstance(value, (int, float)) or (hasattr(value, "__float__") and getattr(value, "ndim", 1) == 0)
    if isinstance(value, bool) or not is_scalar:
        raise TypeError(complain(argument, expected, describe(value), "Pass a Python number."))
    number = float(value)
    inside = (number > low if open_low else number >= low) and (number < high if open_high else number <= high)
    if not (math.isfinite(number) and inside):
        raise ValueError(complain(argument, expected, value, "Pass a number inside that range."))
    return number


def check_integer(argument: str, value: Any, *, low: int | None = None, high: int | None = None) -> int:
    """`value` as an int between `low` and `high` (both inclusive), else TypeError or ValueError."""
    bounds = f"an integer{'' if low is None else f' >= {low}'}{'' if high is None else f' <= {high}'}"
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(complain(argument, bounds, describe(value), "Pass a Python integer."))
    number = int(value.__index__())
    if (low is not None and number < low) or (high is not None and number > high):
        raise ValueError(complain(argument, bounds, value, "Pass an integer inside that range."))
    return number


def check_flag(argument: str, value: Any) -> bool:
    """`value` if it is True or False, else TypeError."""
    if not isinstance(value, bool):
        raise TypeError(complain(argument, "True or False", describe(value), "Pass a bool."))
    return value


def check_tensor(argument: str, value: Any, *, ndim: int, shape: str, floating: bool) -> Tensor:
    """`value` if it is a tensor of `ndim` dimensions, floating or integer as asked; `shape` is for the message."""
    kind = "floating-point" if floating else "integer"
    if not isinstance(value, Tensor):
        raise TypeError(complain(argument, f"a {kind} tensor of shape {shape}", value, "Pass a torch.Tensor."))
    if value.ndim != ndim:
        raise ValueError(complain(argument, f"shape {shape}", value, f"Bring it to {ndim} dimensions."))
    is_integer = not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)
    if floating and not value.is_floating_point():
        raise TypeError(complain(argument, "a floating-point dtype", value, "Convert it with .float()."))
    if not floating and not is_integer:
        raise TypeError(complain(argument, "an integer dtype", value, "Convert it with .long()."))
    return value


def check_same_device(**tensors: Tensor) -> None:
    """ValueError if the named tensors lie on more than one device."""
    devices = {name: tensor.device for name, tensor in tensors.items()}
    if len(set(devices.values())) > 1:
        places = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise ValueError(complain(", ".join(devices), "one common device", places, "Move them with .to(device)."))


def check_labels_in_range(labels: Tensor, classes: int, ignore_index: int) -> None:
    """ValueError with value and place if a label is neither in [0, classes) nor void, or no whole number.

    Waits for the device.
    """
    bad = ((labels < 0) | (labels >= classes)) & (labels != ignore_index)
    if labels.is_floating_point():
        bad |= labels != labels.trunc()
    if bool(bad.any()):
        place = tuple(bad.nonzero()[0].tolist())
        expected = f"values in [0, {classes}) or ignore_index={ignore_index}"
        came = f"{round(labels[place].item(), 4)} at position {place} ({int(bad.sum())} such pixels)"
        remedy = "Map the label to a class, or mark it with ignore_index."
        if labels.is_floating_point():
            remedy = "Binary masks hold 0 and 1: pass labels > 0.5 (soft masks), or mark void with ignore_index."
        raise ValueError(complain("labels", expected, came, remedy))


def check_finite(argument: str, value: Tensor, valid: Tensor) -> None:
    """ValueError with place if value (N, K, h, w) has NaN or infinity where `valid` (N, h, w). Waits for the device."""
    bad = ~torch.isfinite(value.detach()).all(1) & valid
    if bool(bad.any()):
        place = tuple(bad.nonzero()[0].tolist())
        came = f"NaN or infinity at (image, row, column) {place} and {int(bad.sum()) - 1} further pixels"
        remedy = "Look for an overflow or a bad input upstream, or mark the pixels as void."
        raise ValueError(complain(argument, "finite values at the counted pixels", came, remedy))
