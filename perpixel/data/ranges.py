"""Checks of options that are two numbers."""

from collections.abc import Callable, Sequence
from typing import Any

from perpixel.checks import complain


def check_pair(argument: str, value: Any, check: Callable[..., Any], **limits: Any) -> tuple[Any, Any]:
    """Two numbers, each as `check(argument, number, **limits)` gives it; else TypeError or ValueError."""
    if not isinstance(value, Sequence) or len(value) != 2:
        raise TypeError(complain(argument, "two numbers", value, "Pass a tuple such as (2, 4)."))
    return check(argument, value[0], **limits), check(argument, value[1], **limits)


def check_range(argument: str, value: Any, check: Callable[..., Any], **limits: Any) -> tuple[Any, Any]:
    """The same, the first not above the second."""
    low, high = check_pair(argument, value, check, **limits)
    if low > high:
        raise ValueError(complain(argument, "(low, high) with low <= high", value, "Swap the two."))
    return low, high
