"""Whether one map covers the same extent as another: what is given and what was returned, output and head's grid."""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perpixel.borrow import borrowed, random_numbers
from perpixel.checks import complain
from perpixel.outputs import maps_in

Call = tuple[tuple[Any, ...], dict[str, Any]]
_RESIZINGS: tuple[dict[str, Any], ...] = (
    {"mode": "bilinear"},
    {"mode": "bilinear", "align_corners": True},
    {"mode": "nearest"},
    {"mode": "bicubic"},
    {"mode": "bicubic", "align_corners": True},
    {"mode": "nearest-exact"},
    {"mode": "area"},
    {"mode": "bilinear", "antialias": True},
    {"mode": "bicubic", "antialias": True},
)
_WHOLE = ("ToCopyBackward", "CloneBackward", "AliasBackward", "_DDPSinkBackward")  # nodes that keep every value
_LINES, _PROBES = 4, 8  # of a grid, at least, where it is measured; images
_STRETCH, _SHIFT = 0.2, {False: 1.5, True: 0.25}  # of a cell; by align_corners


def comes_from(source: Tensor, result: Tensor) -> bool:
    """Whether `result` is `source` (N, C, h, w), cast or resized as a whole: no crop, no flip, not other images."""
    if source is result or is_whole_in_graph(source, result):
        return True
    return computed_from(source, result) is not False and is_resized(source, result)


def is_whole_in_graph(source: Tensor, result: Tensor) -> bool:
    """Whether the autograd graph between the two has casts and copies and at most one resizing, and nothing else."""
    if source.grad_fn is None or result.grad_fn is None:
        return False
    resizings = 0
    for node, number in _way(result):
        if node is source.grad_fn:
            return number == source.output_nr
        name = node.name()
        if name.startswith("Upsample"):
            scales = [getattr(node, f"_saved_scales_{side}", None) for side in "hw"]
            resizings += 1 if all(scale is None or float(scale).is_integer() for scale in scales) else 2
        if resizings > 1 or not name.startswith(("Upsample", *_WHOLE)):
            return False
    return False


def computed_from(source: Tensor, result: Tensor) -> bool | None:
    """Whether `result` was computed from `source`, as its autograd graph tells; None where there is no graph."""
    if source.grad_fn is None or result.grad_fn is None:
        return None
    waiting, seen = deque([result.grad_fn]), {result.grad_fn}
    while waiting:
        node = waiting.popleft()
        if node is source.grad_fn:
            return True
        for before, _ in node.next_functions:
            if before is not None and before not in seen:
                seen.add(before)
                waiting.append(before)
    return False


@torch.no_grad()
def is_resized(grid: Tensor, logits: Tensor) -> bool:
    """Whether `logits` (N, C, H, W) is `grid` (N, C, h, w) resized in one of the usual ways, or cast."""
    if grid is logits:
        return True
    if grid.shape[:2] != logits.shape[:2] or grid.device != logits.device or not grid.is_floating_point():
        return False
    if logits.numel() == 0:
        return True
    slack, size = _slack(grid, logits), tuple(logits.shape[-2:])
    grid, logits = grid.detach().float(), logits.detach().float()
    casts = (grid.to(dtype).float() for dtype in (torch.float32, torch.bfloat16, torch.float16))
    ways = casts if grid.shape == logits.shape else (F.interpolate(grid, size, **way) for way in _RESIZINGS)
    return any(torch.allclose(resized, logits, rtol=0.0, atol=slack, equal_nan=True) for resized in ways)


class Output(NamedTuple):
    """The head's grid (N, C, h, w) and the model's output that was made of it: map `place` of several (N, C, H, W).

    tokens: the grid as the head gave it, where its channels were last: (N, h, w, C) or (N, h·w, C).
    """

    grid: Tensor
    map: Tensor
    place: int
    tokens: Tensor | None = None

    def as_given(self, probe: Tensor) -> Tensor:
        """A map like the grid, in the form in which the head gives one."""
        return probe if self.tokens is None else probe.movedim(1, -1).reshape(self.tokens.shape)

    def is_grid_resized(self) -> bool:
        """Whether the output is the grid, resized as a whole, and says enough to show a crop."""
        if self.grid is self.map:
            return True
        grid, logits = self.grid[:1].detach(), self.map[:1].detach()
        slack = 20 * _slack(grid, logits)
        varies = all(bool((grid.amax(axis) - grid.amin(axis)).max() > slack) for axis in (2, 3))
        return varies and is_resized(grid, logits)

    def of(self, maps: list[Tensor]) -> Tensor:
        """The like of `map` among what the model gives now; ValueError where it gives none."""
        found = next((one for one in (*maps[self.place :][:1], *maps) if one.shape == self.map.shape), None)
        if found is None:
            came = f"maps of {[tuple(one.shape) for one in maps]}"
            remedy = "Name a layer whose output, resized, is the logits."
            raise ValueError(complain("head", f"an output {tuple(self.map.shape)} in evaluation mode", came, remedy))
        return found


def check_alignment(model: nn.Module, head: nn.Module, call: Call, given: tuple[object, ...], output: Output) -> None:
    """ValueError unless what `head` was given and gave in `model`'s `call` covers the very extent of the output.

    given: the head's inputs, one of them the features (N, D, h', w').
    An output that is the head's grid resized is right. Any other is measured: the model runs five times more, in
    evaluation mode, to see where its output changes when one line of the grid changes, for a line before and one behind
    the middle, of rows and of columns. It may lie up to a cell and a half off (convolutions after the head) and be
    stretched by a fifth of a cell; or lie as align_corners=True puts it. A head of several layers that gives another
    size than it is given is measured by itself as well.
    """
    features = next(value for value in given if isinstance(value, Tensor))
    resizes = output.tokens is None and features.shape[-2:] != output.grid.shape[-2:]
    resizes = resizes and any(True for _ in head.children())
    plain = output.is_grid_resized()
    if plain and not resizes:
        return
    with borrowed(model, features.device):
        if resizes:
            alone = lambda probe: head(*(probe if value is features else value for value in given))  # noqa: E731
            _measure(alone, features.new_empty(_PROBES, *features.shape[1:]), output.grid.shape[-2:], "head's output")
        if not plain:
            within = lambda probe: output.of(_replaced(model, head, call, output.as_given(probe)))  # noqa: E731
            _measure(within, output.grid, output.map.shape[-2:], "model's output")


def _replaced(model: nn.Module, head: nn.Module, call: Call, probe: Tensor) -> list[Tensor]:
    """The maps the model returns where the head gives `probe` whenever it would give a map of that shape."""

    def replace(_: nn.Module, inputs: object, output: object) -> object:
        return probe.to(output) if isinstance(output, Tensor) and output.shape == probe.shape else output

    hook = head.register_forward_hook(replace)
    try:
        with random_numbers(probe.device, seed=0):
            return maps_in(model(*call[0], **call[1]))
    finally:
        hook.remove()


def _measure(run: Callable[[Tensor], Tensor], like: Tensor, size: torch.Size, what: str) -> None:
    """ValueError unless `run` puts the lines of maps `like` (N, D, h, w) where resizing to `size` would put them."""
    if min(like.shape[-2:]) < _LINES:
        came = f"one of {tuple(like.shape[-2:])} cells"
        expected = f"a grid of {_LINES} x {_LINES} cells, since the {what} is not the grid resized"
        raise ValueError(complain("head", expected, came, "Use larger images, or name the last layer with a grid."))
    channels = torch.randn(*like.shape[:2], 1, 1, generator=torch.Generator().manual_seed(0)).to(like)
    whole = run(channels.expand_as(like).clone())[:_PROBES].float()
    for axis, name in ((2, "rows"), (3, "columns")):
        lines = like.shape[axis]
        pair = (lines // 4, lines - 1 - lines // 4)
        places = []
        for line in pair:
            probe = channels.expand_as(like).clone()
            probe.select(axis, line).neg_()
            places.append(_centre((run(probe)[:_PROBES].float() - whole).abs(), axis))
        _compare(places, pair, lines, size[axis - 2], f"{what}, {size[axis - 2]} {name}")


def _compare(places: list[float], pair: tuple[int, int], lines: int, size: int, what: str) -> None:
    """ValueError unless the lines `pair` of a grid of `lines` landed where they do when it is resized to `size`."""
    cell = size / lines
    off: list[tuple[float, float]] = []
    for align_corners in (False, True):
        whole = F.interpolate(torch.eye(lines)[None], size, mode="linear", align_corners=align_corners)[0]
        first, second = (
            (place - _centre(whole[line][None, None, :, None], 2)) / cell
            for line, place in zip(pair, places, strict=True)
        )
        off.append(((second - first) * lines / (pair[1] - pair[0]), (first + second) / 2))
        if abs(off[-1][0]) <= _STRETCH and abs(off[-1][1]) <= _SHIFT[align_corners]:
            return
    came = f"{lines} cells, stretched by {off[0][0]:.2f} and {off[0][1]:.2f} of them off"
    remedy = (
        "A model that pads its input and crops its output has features on another grid than the labels: pad the images "
        "before the model, and the labels with ignore_index; or name a layer whose output, resized, is the logits."
    )
    raise ValueError(complain("head", f"a grid that covers the extent of the {what}", came, remedy))


def _centre(change: Tensor, axis: int) -> float:
    """The mean place, along `axis` of (N, C, H, W), of what changes by more than half as much as what changes most."""
    profile = change.nan_to_num().sum([other for other in range(4) if other != axis])
    weights = (profile - profile.max() / 2).clamp(min=0).double()
    if not float(weights.sum()) > 0:
        remedy = "Name the layer that the logits are computed from."
        raise ValueError(
            complain("head", "a layer that the output depends on", "an output that stays the same", remedy)
        )
    return float((weights * torch.arange(len(weights)).to(weights)).sum() / weights.sum())


def _slack(grid: Tensor, logits: Tensor) -> float:
    rounding = max(torch.finfo(grid.dtype).eps, torch.finfo(logits.dtype).eps)
    return max(1e-4, 4 * rounding) * float(logits.detach().abs().max())


def _way(result: Tensor) -> Iterator[tuple[Any, int]]:
    """The nodes that gave `result`, from the last one, each with the number of its output, along their first input."""
    node, number = result.grad_fn, result.output_nr
    while node is not None:
        yield node, number
        before = node.next_functions
        node, number = before[number] if number < len(before) else (None, 0)
