"""`context_explorer`: an HTML file in which a person asks any pixel, region or class which patches decide its label."""

import base64
import hashlib
import html
import json
import os
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from perpixel.checks import check_integer, complain
from perpixel.report.explorer.arguments import check_input
from perpixel.report.explorer.axes import Upsampling, upsampling_axes
from perpixel.report.explorer.start import sure_pixel
from perpixel.report.explorer.storage import grid_of, pack, precisions, storage_note, store_effects, store_logits
from perpixel.report.theme import AGAINST, FOR

_SCRIPTS = ("grid.js", "evidence.js", "draw.js", "text.js", "input.js", "explorer.js")


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
        start: (row, column) of the pixel asked about when the page opens; None: the one with the largest margin inside
            the largest connected area of a predicted class that is not called "background".
        max_bytes: the file is kept at or below this, by these steps, as many as needed; the page names what they cost:
            effects in 127 levels per pixel and class; 63 levels; only classes that come first or second at some pixel,
            or first with one patch hidden; 31 levels; the effects averaged over 2 x 2 cells, 4 x 4 cells and so on.

    Raises:
        ValueError, TypeError: of wrong shapes, NaN or infinite values, boxes or labels out of range, or if `max_bytes`
            cannot be met. FileNotFoundError: no such folder.
    """
    check_integer("max_bytes", max_bytes, low=1)
    for name, text in (("title", title), ("note", note)):
        if not isinstance(text, str):
            raise TypeError(complain(name, "a text", text, "Pass a str."))
    target = Path(path)
    if not target.parent.is_dir():
        came = f"{str(target)!r}, whose folder does not exist"
        raise FileNotFoundError(complain("path", "a file in a folder that exists", came, "Make the folder first."))
    given = check_input(image, logits, effects, boxes, segments, labels, classes, palette, start, ignore_index)
    size = (given.image.shape[1], given.image.shape[2])
    axes = effect_axes = upsampling_axes(upsampling, grid_of(given.logits), size)
    if grid_of(given.effects) != grid_of(given.logits):
        effect_axes = upsampling_axes(upsampling, grid_of(given.effects), size)
    stored_logits, factor = store_logits(given.logits, axes, max_bytes // 3)
    fixed = {
        "title": title,
        "note": note,
        "classes": list(classes),
        "palette": given.palette.tolist(),
        "size": list(size),
        "start": list(start or sure_pixel(axes(given.logits), classes)),
        "image": _picture(given.image, max_bytes // 6),
        "patches": {"boxes": given.patches.tolist()} if segments is None else {"segments": pack(given.patches.int())},
        "truth": None if given.labels is None else pack(given.labels.int()),
        "logits": stored_logits,
    }
    smallest = None
    for precision in precisions(given, axes, effect_axes, max_bytes):
        stored, error = store_effects(given.effects, precision, effect_axes)
        cost = storage_note(given.effects, precision, factor, error)
        page = _html({**fixed, "effects": stored, "stored": cost}, title)
        if len(page) <= max_bytes:
            target.write_bytes(page)
            grid = precision.grid(given.effects)
            return ExplorerPage(target, len(page), grid, tuple(precision.classes), precision.levels, error)
        smallest = len(page)
    expected = f"at least {smallest} for this image and these patches"
    raise ValueError(complain("max_bytes", expected, max_bytes, "Raise it, or pass a smaller image or fewer patches."))


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


def _html(content: dict[str, Any], title: str) -> bytes:
    folder = resources.files("perpixel.report.explorer") / "assets"
    read = {name: (folder / name).read_text(encoding="utf-8") for name in ("explorer.html", "explorer.css", *_SCRIPTS)}
    style = read["explorer.css"].replace("{{for}}", FOR).replace("{{against}}", AGAINST)
    script = '"use strict";\n(() => {\n' + "\n".join(read[name] for name in _SCRIPTS) + "})();\n"
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    policy = (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digests[0]}'; script-src 'sha256-{digests[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )
    parts = {"policy": policy, "title": html.escape(title), "style": style, "data": _json(content), "script": script}
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], read["explorer.html"])
    return page.encode("utf-8", "replace")
