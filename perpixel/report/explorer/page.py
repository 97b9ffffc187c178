"""`context_explorer`: an HTML file in which a person asks any pixel, region or class which patches decide its label."""

import base64
import hashlib
import html
import json
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from perpixel.checks import check_integer, complain
from perpixel.report.explorer.arguments import Explained, check_explained
from perpixel.report.explorer.axes import Axes, Upsampling, check_upsampling, taps, upsampling_axes

_PARTS = ("answers.js", "draw.js", "words.js", "stage.js", "explorer.js")
_TRY_AT_MOST = 40  # a step whose values number more than this times max_bytes is not even tried
_LOOK_AT_MOST = 2**16  # pixels, evenly spread, on which winners with a patch hidden are sought


class ExplorerPage(NamedTuple):
    """A written explorer: where, its bytes, what was left out to keep it small, and how exact its effects are.

    `error`: the largest difference between an effect of the page and the one passed, over all kept classes, in logits.
    `grid`: rows and columns of the effects stored. `classes`: numbers of the classes whose effects are stored.
    `levels`: an effect is a whole number from -levels to levels times the strongest of its pixel and class over levels.
    """

    path: Path
    size: int
    grid: tuple[int, int]
    classes: tuple[int, ...]
    levels: int
    error: float


class _Step(NamedTuple):
    factor: int
    kept: list[int]
    levels: int


def context_explorer(
    path: str | os.PathLike[str],
    image: Tensor,
    logits: Tensor,
    effects: Tensor,
    boxes: Tensor | None = None,
    *,
    classes: Sequence[str],
    segments: Tensor | None = None,
    labels: Tensor | None = None,
    palette: Tensor | None = None,
    upsampling: Upsampling = "bilinear",
    title: str = "Context explorer",
    note: str = "",
    start: tuple[int, int] | None = None,
    ignore_index: int = 255,
    max_bytes: int = 5_000_000,
) -> ExplorerPage:
    """Write a self-contained HTML page that answers, for any pixel, region or class, which patches decide its label.

    An effect is the logit with nothing hidden minus the logit with the patch hidden: positive where the patch supports
    the class. The page needs no server and is forbidden to load anything; a browser of 2024 or newer opens it.

    Args:
        path: the file to write, in a folder that exists.
        image: (3, H, W), float in [0, 1] or uint8.
        logits: float (C, h, w), unperturbed, C >= 2, on any grid; the page brings them to (H, W) by `upsampling`.
        effects: float (P, C, h', w') of the P patches on a grid of the same kind.
        boxes: integer (P, 4), the patches as y0, x0, y1, x1 in pixels, ends exclusive; they may overlap.
        classes: C names; any text, shown as it is.
        segments: integer (H, W) in place of `boxes`: the number of the patch a pixel belongs to, -1 for none.
        labels: integer (H, W), the truth, optional; `ignore_index` and negative values are void.
        palette: integer (C, 3) in [0, 255]; None: colours chosen to differ.
        upsampling: how the network brings logits to (H, W): as `F.interpolate` with mode "bilinear" and
            align_corners=False, the same with align_corners=True ("bilinear_aligned"), or mode "nearest"; or a callable
            (1, K, h, w) -> (1, K, H, W), linear in rows and columns, such as `Influence.passes.upsampling`.
        title, note: text at the top and at the foot (say there how patches were hidden, and by which network).
        start: (row, column) of the pixel asked about when the page opens; None: the middle.
        max_bytes: the file is kept at or below this, by these steps, as many as needed; the page names what they cost:
            effects in 127 levels per pixel and class; 63 levels; only classes that win at some pixel with nothing or
            one patch hidden; 31 levels; the effects averaged over 2 x 2 cells, 4 x 4 cells and so on.

    Raises:
        ValueError, TypeError: of wrong shapes, NaN or infinite values, boxes or labels out of range, or if `max_bytes`
            cannot be met. FileNotFoundError: no such folder.
    """
    check_integer("max_bytes", max_bytes, low=1)
    check_upsampling(upsampling)
    for name, text in (("title", title), ("note", note)):
        if not isinstance(text, str):
            raise TypeError(complain(name, "a text", text, "Pass a str."))
    target = Path(path)
    if not target.parent.is_dir():
        came = f"{str(target)!r}, whose folder does not exist"
        raise FileNotFoundError(complain("path", "a file in a folder that exists", came, "Make the folder first."))
    given = check_explained(image, logits, effects, boxes, segments, labels, classes, palette, start, ignore_index)
    size = (given.image.shape[1], given.image.shape[2])
    axes = upsampling_axes(upsampling, _grid(given.logits), size)
    effect_axes = axes
    if _grid(given.effects) != _grid(given.logits):
        effect_axes = upsampling_axes(upsampling, _grid(given.effects), size)
    stored_logits, factor = _logits(given.logits, axes, max_bytes // 3)
    fixed = {
        "title": title,
        "note": note,
        "classes": list(classes),
        "palette": given.palette.tolist(),
        "size": list(size),
        "start": list(given.start),
        "image": _picture(given.image, max_bytes // 6),
        "patches": _patches(given),
        "truth": None if given.labels is None else _pack(given.labels.int()),
        "logits": stored_logits,
    }
    smallest = None
    for step in _steps(given, axes, effect_axes, max_bytes):
        if _hopeless(given.effects, step, max_bytes):
            continue
        stored, error = _effects(given.effects, step, effect_axes)
        page = _page({**fixed, "effects": stored, "stored": _told(given, step, factor, error)}, title)
        if len(page) <= max_bytes:
            target.write_bytes(page)
            grid = (stored["shape"][2], stored["shape"][3])
            return ExplorerPage(target, len(page), grid, tuple(step.kept), step.levels, error)
        smallest = len(page)
    expected = f"at least {smallest} for this image and these patches"
    raise ValueError(complain("max_bytes", expected, max_bytes, "Raise it, or pass a smaller image or fewer patches."))


def _grid(values: Tensor) -> tuple[int, int]:
    return values.shape[-2], values.shape[-1]


def _steps(given: Explained, axes: Axes, effect_axes: Axes, max_bytes: int) -> Iterator[_Step]:
    """From exact to coarse."""
    count, classes, height, width = given.effects.shape
    everything = list(range(classes))
    winners: list[int] | None = None
    factor = 1
    while True:
        cells = -(-height // factor) * -(-width // factor)
        if count * cells * classes <= _TRY_AT_MOST * max_bytes:
            if factor == 1:
                yield _Step(1, everything, 127)
                yield _Step(1, everything, 63)
            if winners is None:
                winners = _winners(given, axes, effect_axes)
            yield from (_Step(factor, winners, levels) for levels in (63, 31))
        if cells == 1:
            return
        factor *= 2


def _winners(given: Explained, axes: Axes, effect_axes: Axes) -> list[int]:
    """Classes with the highest logit at some pixel, with nothing or any one patch hidden; two at least."""
    logits = axes(given.logits)
    won = torch.bincount(logits.argmax(0).flatten(), minlength=len(logits))
    every = max(1, round((logits[0].numel() / _LOOK_AT_MOST) ** 0.5))
    logits = logits[:, ::every, ::every]
    seen = Axes(effect_axes.rows[::every], effect_axes.columns[::every])
    for effect in given.effects:
        hidden = logits - seen(effect.float())
        won += torch.bincount(hidden.argmax(0).flatten(), minlength=len(logits))
    found = (won > 0).nonzero().flatten().tolist()
    if len(found) < 2:
        rest = logits.mean((1, 2)).index_fill(0, torch.tensor(found), -torch.inf)
        found.append(int(rest.argmax()))
    return sorted(found)


def _effects(effects: Tensor, step: _Step, axes: Axes) -> tuple[dict[str, Any], float]:
    """Effects of the kept classes as whole numbers of a scale per cell and class, and the largest error made."""
    whole, back = _coarser(_grid(effects), step.factor)
    numbers, scales, error = [], [], 0.0
    for c in step.kept:
        number, scale = _quantised(effects[:, c], step, whole)
        found = number * scale
        error = max(error, float(((found if back is None else back(found)) - effects[:, c]).abs().max()))
        numbers.append(number)
        scales.append(scale)
    values = torch.stack(numbers)
    values[..., 1:] -= values[..., :-1].clone()  # wraps around, as the page's running sum does
    stored = {
        "shape": [len(step.kept), len(effects), *whole],
        "classes": step.kept,
        "values": _pack(values),
        "scales": _pack(torch.stack(scales)),
        **_packed_axes(axes if back is None else back.after(axes)),
    }
    return stored, error


def _quantised(effects: Tensor, step: _Step, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Effects (P, h, w) of a class as int8 (P, *grid) and the float32 (*grid) that those are to be multiplied by."""
    coarse = effects.float()
    if step.factor > 1:
        coarse = F.interpolate(coarse[None], size=grid, mode="area")[0]
    scale = coarse.abs().amax(0) / step.levels
    number = (coarse / scale.clamp(min=torch.finfo(torch.float32).tiny)).round().clamp(-step.levels, step.levels)
    return number.to(torch.int8), scale


def _hopeless(effects: Tensor, step: _Step, max_bytes: int) -> bool:
    """Whether a class taken from the middle needs twice its share of the file."""
    grid, _ = _coarser(_grid(effects), step.factor)
    number, _ = _quantised(effects[:, step.kept[len(step.kept) // 2]], step, grid)
    return grid != (1, 1) and len(_pack(number)) * len(step.kept) > 2 * max_bytes


def _coarser(grid: tuple[int, int], factor: int) -> tuple[tuple[int, int], Axes | None]:
    """The grid of cells `factor` times as wide, and the way back from it; None where it is the same."""
    if factor == 1:
        return grid, None
    coarse = (-(-grid[0] // factor), -(-grid[1] // factor))
    return coarse, upsampling_axes("bilinear", coarse, grid)


def _logits(logits: Tensor, axes: Axes, budget: int) -> tuple[dict[str, Any], int]:
    """Logits as float32, averaged over factor x factor cells while they alone would exceed the budget; the factor."""
    factor = 1
    while logits.numel() * 4 // factor**2 > budget and min(logits.shape[1:]) > factor:
        factor *= 2
    grid, back = _coarser(_grid(logits), factor)
    if back is not None:
        logits, axes = F.interpolate(logits[None], size=grid, mode="area")[0], back.after(axes)
    return {"shape": list(logits.shape), "values": _pack(logits), **_packed_axes(axes)}, factor


def _packed_axes(axes: Axes) -> dict[str, Any]:
    found = {}
    for name, matrix in axes._asdict().items():
        first, weights = taps(matrix)
        found[name] = {"first": _pack(first), "weights": _pack(weights), "taps": weights.shape[1]}
    return found


def _patches(given: Explained) -> dict[str, Any]:
    if given.boxes is not None:
        return {"boxes": given.boxes.tolist()}
    return {} if given.segments is None else {"segments": _pack(given.segments.int())}


def _told(given: Explained, step: _Step, factor: int, error: float) -> str:
    """What is stored and how exactly, for the foot of the page."""
    count, classes = given.effects.shape[:2]
    grid = [-(-side // step.factor) for side in given.effects.shape[2:]]
    text = f"{count} patches, effects on a grid of {grid[0]} × {grid[1]}"
    if step.factor == 1:
        share = 50 / step.levels
        text += f", stored to {share:.1f} % of the strongest on the same pixel and class (±{error:.2g} logits at most)."
    else:
        text += f", means over {step.factor} × {step.factor} cells to save space (±{error:.2g} logits at most)."
    if len(step.kept) < classes:
        left_out = f"{classes - len(step.kept)} of {classes}"
        text += f" Left out: effects on the classes that win nowhere, with nothing or one patch hidden ({left_out})."
    if factor > 1:
        text += f" Logits are means over {factor} × {factor} cells."
    return text


def _pack(values: Tensor) -> str:
    return base64.b64encode(zlib.compress(values.contiguous().numpy().tobytes(), 6)).decode()


def _picture(image: Tensor, budget: int) -> str:
    """A data address: PNG, or JPEG where that is too large."""
    from torchvision.io import encode_jpeg, encode_png

    kind, data = "png", encode_png(image)
    for quality in (92, 80, 60, 40):
        if data.numel() <= budget:
            break
        kind, data = "jpeg", encode_jpeg(image, quality=quality)
    return f"data:image/{kind};base64," + base64.b64encode(data.numpy().tobytes()).decode()


def _json(content: dict[str, Any]) -> str:
    """JSON that stays JSON inside a script element: no <, > or &, nothing beyond ASCII."""
    text = json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&]", lambda match: f"\\u{ord(match[0]):04x}", text)


def _page(content: dict[str, Any], title: str) -> bytes:
    folder = resources.files("perpixel.report.explorer") / "assets"
    read = {name: (folder / name).read_text(encoding="utf-8") for name in ("explorer.html", "explorer.css", *_PARTS)}
    style = read["explorer.css"]
    script = '"use strict";\n(() => {\n' + "\n".join(read[name] for name in _PARTS) + "})();\n"
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    policy = (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digests[0]}'; script-src 'sha256-{digests[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )
    parts = {
        "policy": policy,
        "title": html.escape(title),
        "style": style,
        "data": _json(content),
        "script": script,
    }
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], read["explorer.html"])
    return page.encode("utf-8", "replace")
