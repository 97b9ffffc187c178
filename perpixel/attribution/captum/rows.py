"""Which example each row of a batch is made of, while captum calls a target with copies and mixes of its images."""

import inspect
from functools import lru_cache
from types import CodeType
from typing import Any

import torch
from torch import Tensor

from perpixel.checks import complain

_ENTRIES = ("attribute", "infidelity", "sensitivity_max")
_REMEDY = (
    "Pass additional_forward_args=target.arguments(images) to captum, which then expands labels and regions together "
    "with the images; or explain one image at a time."
)


class CallStack:
    """The captum calls that are under way, outermost first; `images` are what the outermost was given, or None.

    A forward function gets rows without being told which example each belongs to. captum tiles its examples (0 1 0 1)
    except where it draws several samples for each (0 0 1 1), or goes through them one by one. Which of these, its call
    stack says exactly: every `attribute` on it holds its own inputs.
    """

    def __init__(self) -> None:
        self.entries: list[tuple[Tensor, bool]] = []
        self.hidden = 0  # calls whose inputs cannot be seen
        frame = inspect.currentframe()
        while frame is not None:
            if frame.f_code.co_name in _ENTRIES and frame.f_globals.get("__name__", "").startswith("captum."):
                inputs = _first_tensor(frame.f_locals.get("inputs"))
                if inputs is None:
                    self.hidden += 1
                else:
                    self.entries.insert(0, (inputs, frame.f_code in _interleaving()))
            frame = frame.f_back

    @property
    def images(self) -> Tensor | None:
        if self.hidden:
            came = f"{self.hidden} calls of captum that do not show theirs: the order is not known"
            raise ValueError(complain("images", "the inputs of captum's call", came, _REMEDY))
        return self.entries[0][0] if self.entries else None

    def examples(self, count: int, rows: Tensor) -> Tensor:
        """The example, in [0, count), that each of the rows was made of; ValueError where that cannot be known."""
        known = torch.arange(count, device=rows.device)
        first = rows if self.images is None else self.images
        if len(first) != count:
            raise ValueError(_unknown(count, len(first)))
        for before, after in zip(self.entries, [*self.entries[1:], (rows, False)]):
            if len(after[0]) != len(known):
                known = _expanded(known, before[0], after[0], before[1])
        return known


def _expanded(known: Tensor, before: Tensor, after: Tensor, interleaved: bool) -> Tensor:
    """Examples of the rows of `after`, which one captum method made of `before`, whose examples are `known`."""
    times, rest = divmod(len(after), len(known))
    if rest == 0 and times > 0:
        return known.repeat_interleave(times) if interleaved else known.repeat(times)
    offset = after.data_ptr() - before.data_ptr()
    row = before.element_size() * before.stride(0)
    same_storage = after.untyped_storage().data_ptr() == before.untyped_storage().data_ptr()
    fits = 0 <= offset <= row * (len(known) - len(after)) and offset % row == 0
    if fits and same_storage and after.stride() == before.stride():
        return known[offset // row : offset // row + len(after)]
    raise ValueError(_unknown(len(known), len(after)))


def _unknown(count: int, rows: int) -> str:
    expected = f"{count} rows, as many as there are labels and regions, or captum's copies of them"
    return complain("images", expected, f"{rows} rows of which the order is not known", _REMEDY)


def _first_tensor(inputs: Any) -> Tensor | None:
    if isinstance(inputs, (tuple, list)) and inputs:
        inputs = inputs[0]
    return inputs if isinstance(inputs, Tensor) and inputs.ndim > 0 else None


@lru_cache(maxsize=1)
def _interleaving() -> frozenset[CodeType]:
    """Code of the captum calls that put all samples of an example next to each other."""
    from captum.attr import DeepLiftShap, LayerDeepLiftShap, NoiseTunnel
    from captum.metrics import infidelity, sensitivity_max

    samplers = (NoiseTunnel.attribute, DeepLiftShap.attribute, LayerDeepLiftShap.attribute, infidelity, sensitivity_max)
    return frozenset(inspect.unwrap(call).__code__ for call in samplers)
