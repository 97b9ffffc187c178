"""Guards of settings, beside those of perpixel.checks."""

from datetime import date
from typing import Any

from perpixel.checks import check_integer, complain


def is_plain(value: Any, depth: int = 2) -> bool:
    """A number, text, date, null, or a list of them, at most `depth` deep: nothing that could name what to call."""
    if isinstance(value, list | tuple):
        return depth > 0 and all(is_plain(one, depth - 1) for one in value)
    return value is None or isinstance(value, bool | int | float | str | date)


def check_options(setting: str, options: dict[str, Any]) -> None:
    """Plain values only."""
    for name, value in options.items():
        if not is_plain(value):
            expected = "a number, a text, or a list of them"
            raise TypeError(
                complain(f"{setting}.{name}", expected, value, "Classes and functions are given in Python.")
            )


def check_seeds(setting: str, seeds: list[int]) -> None:
    """One or more different integers, none negative."""
    if not seeds or len(set(seeds)) < len(seeds):
        remedy = f"Example: --{setting} [0,1,2]."
        raise ValueError(complain(setting, "one or more different integers", seeds, remedy))
    for seed in seeds:
        check_integer(setting, seed, low=0)
