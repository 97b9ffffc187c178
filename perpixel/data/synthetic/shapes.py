"""The shapes in the synthetic scenes: each a signed distance (negative inside) and a colour per point.

Coordinates and distances are in scene units; `y` has shape (h, 1), `x` (1, w).
"""

import functools
from collections.abc import Callable

import numpy as np

from perpixel.data.synthetic.classes import BODIES, LOCAL_COLOURS, Colour
from perpixel.data.synthetic.scene import HEAD_RADIUS, Array, Thing

LIGHT = (-0.45, -0.45, 0.77)  # y, x, z: from the upper left


def rgb(colour: Colour) -> Array:
    """A colour as float32 (3, 1, 1), to be broadcast over a picture."""
    return np.asarray(colour, np.float32)[:, None, None]


def smooth(low: float, high: float, value: Array) -> Array:
    """0 up to `low`, 1 from `high` on, and a smooth cubic step 3t² − 2t³ in between."""
    t = np.clip((value - np.float32(low)) / np.float32(high - low), 0, 1)
    return t * t * (3 - 2 * t)


def mix(first: Array, second: Array, share: Array) -> Array:
    """`first` where share is 0, `second` where it is 1, and linear in between."""
    return first + (second - first) * share


def _ribbon(thing: Thing, y: Array, x: Array) -> tuple[Array, Array, Array, Array, Array]:
    """Signed distance to a creature's body, place along (from the head) and across it (-1..1), and the unit normal."""
    spine, radius = thing.spine, thing.radius
    moves = np.gradient(spine, axis=0)
    step = np.hypot(moves[:, 0], moves[:, 1])
    tangent = moves / step[:, None]
    near = ((y[..., None] - spine[:, 0]) ** 2 + (x[..., None] - spine[:, 1]) ** 2).argmin(-1)
    dy, dx, ty, tx = y - spine[near, 0], x - spine[near, 1], tangent[near, 0], tangent[near, 1]
    along, across = dy * ty + dx * tx, dy * tx - dx * ty
    place = near.astype(np.float32) * step.mean() + along
    length = step.mean() * (len(spine) - 1)
    taper = np.sqrt(np.clip((length + 1 - place) / (0.45 * length), 0.03, 1))
    width = radius * (0.25 + 0.75 * taper)
    if BODIES[thing.pair].pattern == "beads":
        width = width * (1.02 + 0.1 * np.cos(2 * np.pi * place / (2.1 * radius)))
    beyond = np.maximum(np.abs(along) - 0.5 * step[near], 0)
    return np.hypot(beyond, across) - width, place, across / width, tx * np.sign(across), ty * np.sign(across)


def _pattern(pattern: str, thing: Thing, place: Array, across: Array) -> Array:
    """How much of the marks' colour each body pixel has, 0 to 1."""
    period = thing.radius * (1.9 + 0.8 * thing.appearance[0])
    t = place / np.float32(period) + np.float32(thing.appearance[1])
    wave = np.abs(2 * (t - np.floor(t)) - 1)  # triangle, 1 at whole numbers
    if pattern == "zigzag":
        return smooth(0.42, 0.2, np.abs(across - (1.3 * wave - 0.65)))
    if pattern == "rings":
        return smooth(0.5, 0.72, wave)
    if pattern == "beads":
        return smooth(0.75, 0.2, np.abs(across)) * 0.8
    if pattern == "dots":
        return smooth(0.62, 0.4, np.hypot((1 - wave) * 1.3, across))
    if pattern == "chevrons":
        u = t + 0.35 * np.abs(across)
        return smooth(0.45, 0.7, np.abs(2 * (u - np.floor(u)) - 1))
    return smooth(0.42, 0.22, np.abs(across))


def _shade(colour: Array, across: Array, ny: Array, nx: Array) -> Array:
    """Rounds a form: `across` is 0 at its crest and 1 at its rim, (ny, nx) the way outwards there."""
    rim = np.clip(np.abs(across), 0, 1)
    light = (ny * rim) * LIGHT[0] + (nx * rim) * LIGHT[1] + np.sqrt(1 - rim * rim) * LIGHT[2]
    return colour * (0.62 + 0.5 * np.clip(light, 0, 1)) + 0.16 * smooth(0.9, 1.0, light)


def _capsule(a: Array, b: Array, start: tuple[float, float], end: tuple[float, float], radius: float) -> Array:
    (a0, b0), (a1, b1) = start, end
    ea, eb = a1 - a0, b1 - b0
    t = np.clip(((a - a0) * ea + (b - b0) * eb) / (ea * ea + eb * eb), 0, 1)
    return np.hypot(a - a0 - t * ea, b - b0 - t * eb) - radius


def _ellipse(a: Array, b: Array, centre: float, half_a: float, half_b: Array | float) -> Array:
    """To first order: the implicit function over the length of its gradient."""
    u, v = (a - centre) / half_a, b / half_b
    level = np.hypot(u, v)
    return level * (level - 1) / np.maximum(np.hypot(u / half_a, v / half_b), np.float32(1e-3))


def _disc(a: Array, b: Array, radius: float, centre: tuple[float, float] = (0, 0)) -> Array:
    return np.hypot(a - centre[0], b - centre[1]) - radius


def _union(*distances: Array) -> Array:
    return functools.reduce(np.minimum, distances)


# Signed distance, in head radii, to a head; `a` runs forwards from its centre and b = |b| sideways.
HEADS: dict[str, Callable[[Array, Array], Array]] = {
    "egg": lambda a, b: _ellipse(a, b, 0.1, 1.35, np.clip(1.08 - 0.42 * a, 0.4, 1.5)),
    "hood": lambda a, b: _union(_ellipse(a, b, -0.35, 0.95, 1.35), _ellipse(a, b, 0.5, 0.8, 0.72)),
    "antennae": lambda a, b: _union(
        _disc(a, b, 0.95), _capsule(a, b, (0.6, 0.4), (1.5, 0.75), 0.13), _disc(a, b, 0.24, (1.5, 0.75))
    ),
    "pincers": lambda a, b: _union(_ellipse(a, b, 0, 0.9, 1.05), _capsule(a, b, (0.7, 0.75), (1.6, 0.3), 0.19)),
    "beak": lambda a, b: _union(_disc(a, b, 0.9), _capsule(a, b, (0.6, 0), (1.6, 0), 0.26)),
    "hammer": lambda a, b: _union(_ellipse(a, b, -0.1, 0.95, 0.8), _ellipse(a, b, 0.55, 0.48, 1.5)),
    "ears": lambda a, b: _union(_disc(a, b, 0.92), _disc(a, b, 0.45, (-0.15, 0.95))),
    "fan": lambda a, b: _union(
        _disc(a, b, 0.95),
        _capsule(a, b, (0, 0.6), (0.5, 1.4), 0.2),
        _capsule(a, b, (0, 0.6), (-0.1, 1.5), 0.2),
        _capsule(a, b, (0, 0.5), (-0.7, 1.3), 0.2),
    ),
    "horns": lambda a, b: _union(_disc(a, b, 0.92), _capsule(a, b, (-0.2, 0.6), (-0.9, 1.35), 0.2)),
    "crown": lambda a, b: _union(
        _disc(a, b, 0.9), _capsule(a, b, (0.5, 0), (1.5, 0), 0.2), _capsule(a, b, (0.4, 0.4), (1.2, 0.95), 0.2)
    ),
    "snout": lambda a, b: _union(_disc(a, b, 0.88), _capsule(a, b, (0.3, 0), (1.2, 0), 0.5)),
    "round": lambda a, b: _disc(a, b, 1),
}


def _frame(thing: Thing, y: Array, x: Array, radius: float) -> tuple[Array, Array]:
    """Coordinates forwards and sideways of a thing's centre, in its radii."""
    dy, dx = (y - thing.spine[0, 0]) / np.float32(radius), (x - thing.spine[0, 1]) / np.float32(radius)
    sin, cos = np.float32(np.sin(thing.angle)), np.float32(np.cos(thing.angle))
    return dy * sin + dx * cos, dy * cos - dx * sin


def _outwards(thing: Thing, y: Array, x: Array, distance: Array) -> tuple[Array, Array]:
    """Unit vectors (y, x) away from a thing's centre, which is `distance` away."""
    return (y - thing.spine[0, 0]) / distance, (x - thing.spine[0, 1]) / distance


def _vary(colour: Colour, thing: Thing, amount: float = 0.06) -> Array:
    """An individual's colour: lighter or darker, warmer or colder."""
    light, warm = 2 * thing.appearance[-1] - 1, 2 * thing.appearance[-2] - 1
    return np.clip(
        rgb(colour) * np.float32(1 + amount * light) + rgb((warm, 0, -warm)) * np.float32(0.6 * amount), 0, 1
    )


def body(thing: Thing, y: Array, x: Array) -> tuple[Array, Array]:
    """A creature without its head; the same for both members of its pair."""
    distance, place, across, ny, nx = _ribbon(thing, y, x)
    pattern = _pattern(BODIES[thing.pair].pattern, thing, place, across)
    colour = mix(_vary(BODIES[thing.pair].base, thing), _vary(BODIES[thing.pair].marks, thing), pattern)
    return distance, _shade(colour, across, ny, nx)


def head(thing: Thing, y: Array, x: Array) -> tuple[Array, Array]:
    """The one part of a creature that tells its class."""
    kind = BODIES[thing.pair].second if thing.side else BODIES[thing.pair].first
    a, b = _frame(thing, y, x, HEAD_RADIUS)
    distance = HEADS[kind.shape](a, np.abs(b))
    radial = np.hypot(a, b)
    normal = _outwards(thing, y, x, np.maximum(HEAD_RADIUS * radial, np.float32(1e-3)))
    colour = _shade(_vary(kind.colour, thing, 0.04), np.clip(radial * 0.8, 0, 1), *normal)
    eye = np.hypot(a - 0.3, np.abs(b) - 0.46)
    colour = mix(colour, rgb((0.99, 0.99, 0.97)), smooth(0.38, 0.28, eye))
    return distance * HEAD_RADIUS, mix(colour, rgb((0.06, 0.06, 0.10)), smooth(0.24, 0.14, eye))


def turtle(thing: Thing, y: Array, x: Array) -> tuple[Array, Array]:
    """A tortoise or a turtle: not a pixel differs."""
    a, b = _frame(thing, y, x, thing.radius)
    shell = np.hypot(a, b / 0.86) - 0.72
    limbs = _union(
        _capsule(a, np.abs(b), (0.3, 0.4), (0.66, 0.86), 0.15),
        _capsule(a, np.abs(b), (-0.35, 0.4), (-0.68, 0.72), 0.13),
        _disc(a, b, 0.23, (0.93, 0)),
        _capsule(a, b, (-0.6, 0), (-0.95, 0), 0.06),
    )
    radial = np.hypot(a, b / 0.86) / 0.72
    sector = np.arctan2(b, a) * 3 / np.pi
    seam = np.abs(sector - np.round(sector)) * np.clip(radial, 0.2, 1)
    line = np.maximum(smooth(0.09, 0.03, seam) * smooth(0.5, 0.56, radial), smooth(0.08, 0.03, np.abs(radial - 0.53)))
    normal = _outwards(thing, y, x, np.maximum(np.hypot(a, b), np.float32(1e-3)) * np.float32(thing.radius))
    top = mix(_vary((0.62, 0.50, 0.30), thing), rgb((0.34, 0.25, 0.16)), line)
    top = _shade(top, np.clip(radial, 0, 1) * np.float32(0.9), *normal)
    colour = mix(top, _vary((0.62, 0.66, 0.42), thing), smooth(-0.03, 0.03, shell))
    eye = np.hypot(a - 1.0, np.abs(b) - 0.12)
    colour = mix(colour, rgb((0.08, 0.08, 0.08)), smooth(0.09, 0.05, eye))
    colour = mix(colour, rgb((0.2, 0.16, 0.1)), 0.6 * smooth(0.06, 0.0, np.abs(shell)))
    return np.minimum(shell, limbs) * np.float32(thing.radius), colour


def flower(thing: Thing, y: Array, x: Array) -> tuple[Array, Array]:
    """A blossom whose every pixel has the colour of its class."""
    a, b = _frame(thing, y, x, thing.radius)
    petals = 5 + int(3 * thing.appearance[0])
    radial, angle = np.hypot(a, b), np.arctan2(b, a)
    wave = np.cos(petals * angle)
    rim = 0.78 + 0.2 * np.sqrt(np.abs(wave)) * np.sign(wave) * 0.8
    base = _vary(LOCAL_COLOURS[thing.side], thing, 0.08)
    shade = 0.62 + 0.38 * smooth(0.05, 0.75, radial) - 0.14 * smooth(0.0, -1.0, wave) * smooth(0.3, 0.5, radial)
    colour = base * shade + 0.14 * smooth(0.35, 1.0, wave) * smooth(0.45, 0.8, radial)
    ring = smooth(0.06, 0.0, np.abs(radial - 0.26))
    return (radial - rim) * np.float32(0.8 * thing.radius), colour * (1 - 0.3 * ring)


def stone(thing: Thing, y: Array, x: Array) -> tuple[Array, Array]:
    """A grey boulder: background, but opaque."""
    a, b = _frame(thing, y, x, thing.radius)
    angle, radial = np.arctan2(b, a), np.hypot(a, b)
    u, v = thing.appearance[0] * 6.3, thing.appearance[1] * 6.3
    rim = 0.96 + 0.05 * np.sin(2 * angle + u) + 0.035 * np.sin(5 * angle + v)
    normal = _outwards(thing, y, x, np.maximum(radial, np.float32(1e-3)) * np.float32(thing.radius))
    speck = np.sin(9 * a + u + 2 * np.sin(5 * b)) * np.sin(8 * b + v + 2 * np.sin(6 * a))
    base = _vary((0.60, 0.60, 0.62), thing, 0.1) * (1 + 0.07 * speck)
    crack = smooth(0.07, 0.02, np.abs(b - 0.25 * np.sin(3 * a + u))) * smooth(0.8, 0.4, radial)
    base = mix(base, rgb((0.33, 0.33, 0.37)), 0.5 * crack)
    return (radial - rim) * np.float32(thing.radius), _shade(base, np.clip(radial / rim, 0, 1) ** 2, *normal)
