"""A progress bar around the steps of a loop, where one is asked for."""

from collections.abc import Iterable
from typing import TypeVar

Step = TypeVar("Step")


def progress(
    steps: Iterable[Step], show: bool, name: str, unit: str = "batch", total: int | None = None
) -> Iterable[Step]:
    """`steps` as they are, or with tqdm's bar on the standard error, headed by `name`."""
    if not show:
        return steps
    from tqdm import tqdm  # type: ignore[import-untyped]

    shown: Iterable[Step] = tqdm(steps, total=total, desc=name, unit=unit)
    return shown
