"""A small explained picture, the answers it must give (from full-size arrays, in float64), and what a page stores."""

import base64
import json
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

SIZE, GRID, PATCH = (48, 64), (7, 9), 16
CLASSES = ("road", "tree", "car", "sky")
HOSTILE = [
    "</script><script>document.title='broken'</script>",
    "<!-- <script>",
    "\u2028\u2029\"'`\\ & &lt; {{data}} ${1}",
    "<img src=http://example.invalid/x onerror=\"document.title='broken'\">",
]


def boxes(size: tuple[int, int] = SIZE, patch: int = PATCH, stride: int = PATCH) -> Tensor:
    height, width = size
    rows = [
        (y, x, min(y + patch, height), min(x + patch, width))
        for y in range(0, height, stride)
        for x in range(0, width, stride)
    ]
    return torch.tensor(rows)


def case(classes: int = 4, *, size: tuple[int, int] = SIZE, grid: tuple[int, int] = GRID, seed: int = 0, **more: Any):
    """Arguments of `context_explorer`: random blobs, and effects that fade with the distance from their patch."""
    generator = torch.Generator().manual_seed(seed)
    patches = more.pop("boxes", boxes(size))
    logits = 3 * F.interpolate(
        torch.randn(1, classes, 4, 5, generator=generator), size=grid, mode="bicubic", align_corners=False
    )
    y = (torch.arange(grid[0]) + 0.5) * size[0] / grid[0]
    x = (torch.arange(grid[1]) + 0.5) * size[1] / grid[1]
    centre = (patches[:, :2] + patches[:, 2:]) / 2
    far = (y[None, :, None] - centre[:, 0, None, None]) ** 2 + (x[None, None] - centre[:, 1, None, None]) ** 2
    near = torch.exp(-far / (2 * (0.35 * min(size)) ** 2))[:, None]
    effects = 4 * near * torch.randn(len(patches), classes, *grid, generator=generator)
    names = list(CLASSES[:classes]) if classes <= 4 else [f"class {i}" for i in range(classes)]
    image = F.interpolate(torch.rand(1, 3, 6, 8, generator=generator), size=size, mode="bilinear")[0]
    return {"image": image, "logits": logits[0], "effects": effects, "boxes": patches, "classes": names, **more}


def full_size(values: Tensor, size: tuple[int, int] = SIZE, **mode: Any) -> Tensor:
    """(..., h, w) -> float64 (..., H, W)."""
    mode = mode or {"mode": "bilinear", "align_corners": False}
    flat = values.double().reshape(1, -1, *values.shape[-2:])
    return F.interpolate(flat, size=size, **mode).reshape(*values.shape[:-2], *size)


def payload(path: Path) -> dict[str, Any]:
    """The data of a page, its packed parts as numpy arrays of the stored types."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.S)
    assert found
    data = json.loads(found[1])

    def unpack(text: str, kind: Any) -> np.ndarray:
        return np.frombuffer(zlib.decompress(base64.b64decode(text)), kind)

    effects = data["effects"]
    effects["values"] = np.cumsum(unpack(effects["values"], np.int8).reshape(effects["shape"]), -1, dtype=np.int8)
    effects["scales"] = unpack(effects["scales"], np.float32).reshape(effects["shape"][0], 1, *effects["shape"][2:])
    data["logits"]["values"] = unpack(data["logits"]["values"], np.float32).reshape(data["logits"]["shape"])
    return data


def stored_effects(path: Path) -> Tensor:
    """Effects as the page has them: (P, kept classes, h, w)."""
    effects = payload(path)["effects"]
    return torch.from_numpy(effects["values"] * effects["scales"]).transpose(0, 1)


def inside_polygon(polygon: list[tuple[float, float]], size: tuple[int, int]) -> Tensor:
    """Pixels whose centre is inside, by counting the edges a ray to the right crosses; one pixel at a time."""
    mask = torch.zeros(size, dtype=torch.bool)
    for row in range(size[0]):
        for column in range(size[1]):
            x, y, crossed = column + 0.5, row + 0.5, False
            for (x0, y0), (x1, y1) in zip(polygon, polygon[1:] + polygon[:1]):
                if (y0 > y) != (y1 > y) and x < x0 + (y - y0) * (x1 - x0) / (y1 - y0):
                    crossed = not crossed
            mask[row, column] = crossed
    return mask


def pixel(y: int, x: int) -> Tensor:
    mask = torch.zeros(SIZE, dtype=torch.bool)
    mask[y, x] = True
    return mask


def means(logits: Tensor, region: Tensor, c: int) -> dict[str, float]:
    """Mean logit, margin (over the best other class) and softmax probability of class `c` over a region."""
    inside = logits[:, region]
    margin = inside[c] - inside.index_fill(0, torch.tensor(c), -torch.inf).amax(0)
    found = {"logit": inside[c], "margin": margin, "probability": inside.softmax(0)[c]}
    return {name: float(values.mean()) for name, values in found.items()}


LOGITS, EFFECTS = (full_size(case()[name]) for name in ("logits", "effects"))
LABELS = LOGITS.argmax(0)
