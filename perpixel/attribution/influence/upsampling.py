"""The logits on the grid where the model computes them, before it upsamples, and the linear map from there."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from perpixel.attribution.inputs import dense
from perpixel.checks import complain
from perpixel.outputs import class_logits, logits_at
from perpixel.upsampling import axis_matrices

Size = tuple[int, int]
Options = Mapping[str, Any]  # of F.interpolate, its input left out
_INTERPOLATE = signature(F.interpolate)


@dataclass(frozen=True)
class Upsampling:
    """The map from logits on their grid (N, C, h, w) to full size (N, C, H, W): linear, and the same for every channel.

    size: the images', output: that of the model's output, nearly always the same.
    own: how the model itself comes from the grid to its output: the options of `F.interpolate`; None where it does not.
    call: which call of `F.interpolate` in a forward pass that is, from 1; 0 where there is none.
    """

    grid: Size
    output: Size
    size: Size
    own: Options | None = None
    call: int = 0
    _axes: dict[Any, tuple[Tensor, Tensor]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __call__(self, grid: Tensor, size: Size | None = None) -> Tensor:
        """Grid (N, C, h, w) -> (N, C, H, W) at the size of the images, or at that of the output if `size` is it."""
        result = grid if self.own is None else F.interpolate(grid, **self.own)
        return result if size == self.output else logits_at(result, self.size)

    def weights(self, maps: Tensor) -> Tensor:
        """Maps m (..., H, W) -> weights w (..., h, w) with Σ m · upsampled(g) = Σ w · g for every grid g: the adjoint.

        float64, or float32 where the device has no better.
        """
        rows, columns = self.axes(size_of(maps), maps.device)
        maps = maps.to(precise(maps.device))
        maps = maps if rows is None else rows.T @ maps
        return maps if columns is None else maps @ columns

    def part(self, grid: Tensor, size: Size, rows: slice, columns: slice) -> Tensor:
        """These rows and columns of the grid (N, C, h, w) at `size`, up to rounding."""
        down, right = self.axes(size, grid.device)
        grid = grid[..., columns] if right is None else grid @ right[columns].T.to(grid.dtype)
        return grid[..., rows, :] if down is None else down[rows].to(grid.dtype) @ grid

    def axes(self, size: Size, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
        """Matrices (H, h) and (W, w) with upsampled(g) = rows · g · columnsᵀ; None for the identity."""
        steps = [] if self.own is None else [(self.grid, self.own)]
        if size != self.output:
            steps.append((self.output, {"size": self.size, "mode": "bilinear", "align_corners": False}))
        if not steps:
            return None, None
        if (size, device) not in self._axes:
            rows, columns = axis_matrices(*steps[0], dtype=precise(device), device=device)
            for grid, options in steps[1:]:
                down, right = axis_matrices(grid, options, dtype=precise(device), device=device)
                rows, columns = down @ rows, right @ columns
            self._axes[size, device] = (rows, columns)
        return self._axes[size, device]

    def logits(self, model: nn.Module, images: Tensor) -> Tensor:
        """The logits on the grid, of two classes or more, of a forward pass whose own last upsampling is left out.

        RuntimeError if the pass does not return what it would have upsampled.
        """
        with _Skipping(self.call) as skipping:
            logits = dense(model(images), images)
        fits = skipping.returned(logits) if self.call else True
        if not fits or size_of(logits) != self.grid:
            came = f"{tuple(logits.shape[-2:])}, not the grid {self.grid}"
            remedy = "It upsamples in another way when pixels are hidden. Keep what it does apart from their values."
            raise RuntimeError(complain("model", "a forward pass that ends as that of the images", came, remedy))
        return class_logits(logits)


def find_upsampling(model: nn.Module, images: Tensor) -> tuple[Tensor, Upsampling]:
    """The logits of `images` on the grid, as they come, and how they become full size: what `F.interpolate` does.

    The grid is what the model gives to the `F.interpolate` whose result, untouched, is its output: of the same
    channels, no larger, and a pass without that call returns it. Else (the last layer is no interpolation, runs in
    other threads, or in a script) the grid is the output. An output of another size than the images is then resized
    to theirs, bilinear.

    One pass where the first call that brings something to the images' size is the one; three at most.
    """
    size = size_of(images)
    guess = _without(model, images, _Skipping(size=size), size)
    if guess is not None:
        return guess
    upsampled: list[tuple[Tensor, Options, Tensor]] = []

    def record(given: Tensor, options: Options) -> Tensor:
        upsampled.append((given, options, F.interpolate(given, **options)))
        return upsampled[-1][2]

    with _Interpolating(record):
        logits = dense(model(images), images)
    for number, (given, options, result) in enumerate(upsampled, 1):
        if not _is(logits, result) or given.shape[:2] != logits.shape[:2]:
            continue
        if torch.equal(F.interpolate(given, **options), logits) or bool(logits.isnan().any()):  # not written to since
            found = _without(model, images, _Skipping(number), size)
            if found is not None:
                return found
    return logits, Upsampling(size_of(logits), size_of(logits), size)


def _without(model: nn.Module, images: Tensor, skipping: "_Skipping", size: Size) -> tuple[Tensor, Upsampling] | None:
    """The grid, if the model returns it where `skipping` leaves the upsampling out."""
    try:
        with skipping:
            logits = dense(model(images), images)
    except Exception:  # whatever a network raises that needs the full size for something else too
        return None
    if not skipping.returned(logits):
        return None
    output = size_of(F.interpolate(logits[:1, :1], **skipping.options))
    if output[0] * output[1] < logits.shape[-2] * logits.shape[-1]:
        return None
    return logits, Upsampling(size_of(logits), output, size, skipping.options, skipping.call)


class _Interpolating(TorchFunctionMode):
    """Calls `instead` in the place of `F.interpolate`; all other functions run as they are."""

    def __init__(self, instead: Callable[[Tensor, Options], Tensor]) -> None:
        super().__init__()
        self.instead = instead

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not F.interpolate:
            return func(*args, **(kwargs or {}))
        options = dict(_INTERPOLATE.bind(*args, **(kwargs or {})).arguments)
        return self.instead(options.pop("input"), options)


class _Skipping(_Interpolating):
    """Returns what one call was given as its result: number `call`, from 1, or else the first that gives `size`."""

    def __init__(self, call: int = 0, size: Size | None = None) -> None:
        super().__init__(self.interpolate)
        self.call, self.size = call, size
        self.count, self.version = 0, 0
        self.given: Tensor | None = None
        self.options: Options = {}

    def interpolate(self, given: Tensor, options: Options) -> Tensor:
        self.count += 1
        wanted = self.count == self.call
        if self.size is not None and given.ndim == 4 and len(given):
            wanted = size_of(F.interpolate(given[:1, :1], **options)) == self.size
        if self.given is not None or not wanted:
            return F.interpolate(given, **options)
        self.call, self.given, self.options, self.version = self.count, given, options, _version(given)
        return given

    def returned(self, logits: Tensor) -> bool:
        """Whether `logits` is the very tensor that was given, unchanged."""
        return self.given is not None and _is(logits, self.given) and _version(self.given) == self.version


def _is(one: Tensor, other: Tensor) -> bool:
    """Whether both are the same numbers in the same place."""
    same = one.data_ptr() == other.data_ptr() and one.dtype == other.dtype and one.device == other.device
    return same and one.shape == other.shape and one.stride() == other.stride()


def _version(tensor: Tensor) -> int:
    """How often it was written to; 0 where nobody counts."""
    return 0 if tensor.is_inference() else tensor._version


def precise(device: torch.device) -> torch.dtype:
    """float64, or float32 where the device has no better."""
    return torch.float32 if device.type == "mps" else torch.float64


def size_of(tensor: Tensor) -> Size:
    """Height and width."""
    return int(tensor.shape[-2]), int(tensor.shape[-1])
