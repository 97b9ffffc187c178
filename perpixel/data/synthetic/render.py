"""Draws a scene: anti-aliased by signed distances, one bounding box per thing, elementwise numpy only."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from perpixel.data.synthetic import shapes
from perpixel.data.synthetic.scene import HEAD_RADIUS, RING, Array, Ground, Scene, Thing
from perpixel.data.synthetic.shapes import mix, rgb, smooth

STONE = -1  # owner of a stone's pixels; the ground's is 0, that of thing i is i + 1
_SHAPES: dict[str, Callable[[Thing, Array, Array], tuple[Array, Array]]] = {
    "creature": shapes.body,
    "turtle": shapes.turtle,
    "flower": shapes.flower,
    "stone": shapes.stone,
}


def _noise(rng: np.random.Generator, y: Array, x: Array, cell: float) -> Array:
    """Smooth noise in [-1, 1] on the grid y (H, 1) by x (1, W), one random value per `cell`."""
    y, x = y / np.float32(cell), x / np.float32(cell)
    values = rng.uniform(-1, 1, (int(y.max()) + 2, int(x.max()) + 2)).astype(np.float32)
    i, j = y.astype(np.int64), x.astype(np.int64)
    v, u = smooth(0, 1, y - np.floor(y)), smooth(0, 1, x - np.floor(x))
    rows = values[i[:, 0]] * (1 - v) + values[i[:, 0] + 1] * v
    return rows[:, j[0]] * (1 - u) + rows[:, j[0] + 1] * u


def draw_ground(ground: Ground, rng: np.random.Generator, y: Array, x: Array) -> Array:
    """The empty landscape (3, H, W) at the points y (H, 1), x (1, W): sea, a strip of sand and foam, meadow."""
    broad, fine = _noise(rng, y, x, 22), _noise(rng, y, x, 4)
    tint = rng.uniform(-0.03, 0.03, (2, 3, 1, 1)).astype(np.float32)
    wave = np.sin(0.55 * y + 1.8 * broad + 0.8 * np.sin(0.11 * x + rng.uniform(0, 6.3))) + 0.3 * fine
    sea = mix(rgb((0.21, 0.49, 0.62)) + tint[0], rgb((0.33, 0.62, 0.71)) + tint[0], 0.5 + 0.5 * broad)
    sea = mix(sea, rgb((0.72, 0.88, 0.90)), 0.5 * smooth(0.75, 1.2, wave))
    meadow = mix(rgb((0.42, 0.60, 0.31)) + tint[1], rgb((0.58, 0.72, 0.37)) + tint[1], 0.5 + 0.5 * broad)
    blades = _noise(rng, y * 0.45, x, 1.3)
    meadow = mix(meadow, rgb((0.29, 0.47, 0.23)), 0.55 * smooth(0.25, 0.9, blades + 0.3 * fine))
    level = ground.level(y, x)
    if np.isinf(ground.offset):
        return sea if level.flat[0] > 0 else meadow
    sand = mix(rgb((0.89, 0.81, 0.62)), rgb((0.80, 0.70, 0.51)), 0.5 + 0.5 * fine)
    shore = mix(meadow, sand, smooth(-5.5, -3.5, level + 0.8 * fine))
    shore = mix(shore, sea, smooth(-0.5, 2.0, level))
    return mix(shore, rgb((0.95, 0.97, 0.96)), 0.8 * np.exp(-(((level - 0.8 - 0.6 * fine) / 0.9) ** 2)))


class _Canvas:
    """The picture so far, who owns each pixel, and which pixels decide the label of a thing."""

    def __init__(self, ground: Array, y: Array, x: Array, scale: float) -> None:
        self.image, self.y, self.x, self.scale = ground, y, x, scale
        self.owner: Array = np.zeros(ground.shape[1:], np.int64)
        self.evidence = np.zeros(ground.shape[1:], bool)

    def window(self, points: Array, margin: float) -> tuple[slice, slice]:
        """The part of the canvas around `points`."""
        low = (points.min(0) - margin) * self.scale
        high = (points.max(0) + margin) * self.scale + 1
        height, width = self.owner.shape
        rows = slice(int(np.clip(low[0], 0, height)), int(np.clip(high[0], 0, height)))
        columns = slice(int(np.clip(low[1], 0, width)), int(np.clip(high[1], 0, width)))
        return rows, columns

    def shadow(self, window: tuple[slice, slice], distance: Array) -> None:
        """Darkens what lies to the lower right of a shape."""
        shift = max(1, round(1.6 * self.scale))
        dark = 0.34 * smooth(1.8, -1.2, distance)
        fallen = np.zeros_like(dark)
        fallen[shift:, shift:] = dark[:-shift, :-shift]
        view = self.image[:, window[0], window[1]]
        view *= 1 - fallen

    def paint(self, window: tuple[slice, slice], distance: Array, colour: Array, owner: int, evidence: bool) -> None:
        """A shape with a thin dark rim; it owns the pixels it covers by half or more."""
        colour = colour * (1 - 0.42 * smooth(-1.1, -0.1, distance))
        view = self.image[:, window[0], window[1]]
        view[:] = mix(view, colour, np.clip(0.5 - distance * np.float32(self.scale), 0, 1))
        inside = distance <= 0
        self.owner[window][inside] = owner
        self.evidence[window][inside] = evidence


def _draw_thing(canvas: _Canvas, thing: Thing, owner: int) -> None:
    window = canvas.window(thing.spine, 1.5 * thing.radius + 4)
    y, x = canvas.y[window[0]], canvas.x[:, window[1]]
    if 0 in (y.size, x.size):
        return
    distance, colour = _SHAPES[thing.kind](thing, y, x)
    canvas.shadow(window, distance)
    canvas.paint(window, distance, colour, owner, evidence=thing.kind == "flower")
    if thing.kind == "creature" and not thing.hidden:
        window = canvas.window(thing.spine[:1], 1.9 * HEAD_RADIUS)
        y, x = canvas.y[window[0]], canvas.x[:, window[1]]
        canvas.paint(window, *shapes.head(thing, y, x), owner, evidence=True)


def render(scene: Scene, size: tuple[int, int], noise: float) -> tuple[Array, NDArray[np.int64], NDArray[np.bool_]]:
    """Image (3, H, W) in [0, 1], owner (H, W) and evidence (H, W) of a scene."""
    rng, scale = np.random.default_rng(scene.seed), min(size) / 96
    y, x = ((np.arange(n, dtype=np.float32) + np.float32(0.5)) / np.float32(scale) for n in size)
    canvas = _Canvas(draw_ground(scene.ground, rng, y[:, None], x[None]), y[:, None], x[None], scale)
    for index, thing in enumerate(scene.things):
        _draw_thing(canvas, thing, STONE if thing.kind == "stone" else index + 1)
    for index, thing in enumerate(scene.things):
        if thing.kind == "turtle" and (canvas.owner == index + 1).any():
            canvas.evidence |= _surroundings(canvas, scene.ground, thing)
    image = canvas.image.astype(np.float32, copy=False) + np.float32(noise) * rng.standard_normal(
        canvas.image.shape, np.float32
    )
    return np.clip(image, 0, 1), canvas.owner, canvas.evidence


def _surroundings(canvas: _Canvas, ground: Ground, thing: Thing) -> NDArray[np.bool_]:
    """The visible ground of one kind around a tortoise or turtle."""
    (cy, cx), reach = thing.spine[0], thing.radius + RING
    near = (canvas.y - cy) ** 2 + (canvas.x - cx) ** 2 <= reach * reach
    same = (ground.level(canvas.y, canvas.x) > 0) == (thing.side == 1)
    return near & same & (canvas.owner == 0)
