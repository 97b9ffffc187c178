"""Where things lie in a random scene, so that nobody's evidence is covered."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from perpixel.data.synthetic.scene import (
    BODY_RADIUS,
    FLOWER_RADIUS,
    HEAD_RADIUS,
    RING,
    TURTLE_RADIUS,
    Array,
    Ground,
    Scene,
    Thing,
)

POINTS = 44  # a spine's vertices


def _spines(rng: np.random.Generator, count: int, height: float, width: float, lengths: Array) -> tuple[Array, Array]:
    """`count` random smooth curves (count, POINTS, 2) that start inside the frame, and their headings at the start."""
    inset = 1.6 * HEAD_RADIUS
    head = rng.uniform((inset, inset), (height - inset, width - inset), (count, 2))
    start = rng.uniform(0, 2 * np.pi, (count, 1))
    s = np.linspace(0, 1, POINTS)[None]
    turn, bend = rng.uniform(-2.4, 2.4, (count, 1)), rng.uniform(0.35, 1.25, (count, 1))
    rate, phase = rng.uniform(0.6, 1.7, (count, 1)), rng.uniform(0, 2 * np.pi, (count, 1))
    heading = start + turn * s + bend * np.sin(2 * np.pi * rate * s + phase)
    step = lengths[:, None] / (POINTS - 1)
    moves = np.stack([np.sin(heading), np.cos(heading)], -1) * step[..., None]
    spine = head[:, None] + np.cumsum(moves, 1) - moves[:, :1]
    return spine.astype(np.float32), (heading[:, 0] + np.pi).astype(np.float32)


def _well_formed(spines: Array, lengths: Array) -> NDArray[np.bool_]:
    """Which curves neither cross themselves nor come back to their own head."""
    y, x = spines[:, ::2, 0], spines[:, ::2, 1]
    gap = np.hypot(y[:, :, None] - y[:, None], x[:, :, None] - x[:, None])
    index = np.arange(0, POINTS, 2)
    arc = np.abs(index[:, None] - index)[None] * (lengths / (POINTS - 1))[:, None, None]
    apart = np.where(arc > 5 * BODY_RADIUS, gap, np.inf)
    return (apart[:, 0].min(1) > HEAD_RADIUS + 2.2 * BODY_RADIUS) & (apart.min((1, 2)) > 2.5 * BODY_RADIUS)


class _Placer:
    """Puts things where they cover nobody's evidence."""

    def __init__(self, rng: np.random.Generator, height: float, width: float) -> None:
        self.rng, self.height, self.width = rng, height, width
        self.clear: list[tuple[float, float, float]] = []  # discs (y, x, radius) that nothing may cover any more
        self.bodies: list[Array] = []

    def free(self, points: Array, radius: float) -> NDArray[np.bool_]:
        """Which of the point sets (count, n, 2), thickened by `radius`, stay off the discs."""
        free = np.ones(len(points), bool)
        for y, x, r in self.clear:
            free &= np.hypot(points[..., 0] - y, points[..., 1] - x).min(1) > r + radius
        return free

    def keep_clear(self, point: Array, radius: float) -> None:
        self.clear.append((float(point[0]), float(point[1]), radius))

    def spine(self, low: float, high: float) -> tuple[Array, float] | None:
        """A curve for a body and the angle of its head: of a few that fit, the one that crosses others least."""
        for attempt in range(12):
            shorter = 0.85 ** max(0, attempt - 3)  # no room for the length asked for
            lengths = (shorter * self.rng.uniform(low, high, 24)).astype(np.float32)
            spines, headings = _spines(self.rng, len(lengths), self.height, self.width, lengths)
            inside = ((spines > 0) & (spines < (self.height, self.width))).all(2).mean(1) >= 0.9
            good = inside & self.free(spines, BODY_RADIUS + 1) & self.free(spines[:, :1], 1.5 * HEAD_RADIUS)
            chosen = np.flatnonzero(good)
            chosen = chosen[_well_formed(spines[chosen], lengths[chosen])]
            if len(chosen):
                crossed = [self._crossings(spines[i]) for i in chosen[:4]]
                best = int(chosen[int(np.argmin(crossed))])
                self.bodies.append(spines[best])
                return spines[best], float(headings[best])
        return None

    def _crossings(self, spine: Array) -> int:
        """How many points of a curve lie on other bodies."""
        if not self.bodies:
            return 0
        others = np.concatenate(self.bodies)[::2]
        near = (spine[:, None, 0] - others[:, 0]) ** 2 + (spine[:, None, 1] - others[:, 1]) ** 2
        return int((near.min(1) < (2.2 * BODY_RADIUS) ** 2).sum())

    def spot(self, radius: float, inset: float = 0.8) -> Array | None:
        """A free centre for something round."""
        low = inset * radius
        centres = self.rng.uniform((low, low), (self.height - low, self.width - low), (24, 1, 2)).astype(np.float32)
        good = self.free(centres, radius)
        return centres[int(good.argmax())] if good.any() else None

    def spot_on_one_ground(self, radius: float, ground: Ground) -> Array | None:
        """A free centre whose surroundings are all meadow or all sea."""
        centres = self.rng.uniform((radius,) * 2, (self.height - radius, self.width - radius), (24, 1, 2))
        around = np.linspace(0, 2 * np.pi, 12, endpoint=False)
        rim = centres + (radius + RING + 2) * np.stack([np.sin(around), np.cos(around)], -1)
        level = ground.level(*np.concatenate([centres, rim], 1).astype(np.float32).transpose(2, 0, 1))
        one = np.abs(np.sign(level).sum(1)) == level.shape[1]
        good = one & (np.abs(level).min(1) > 5) & self.free(centres.astype(np.float32), radius)
        return centres[int(good.argmax())].astype(np.float32) if good.any() else None


def _ground(rng: np.random.Generator, height: float, width: float) -> Ground:
    angle, waves = float(rng.uniform(0, 2 * np.pi)), tuple(float(w) for w in rng.random(4))
    through = rng.uniform((0.25, 0.25), (0.75, 0.75)) * (height, width)
    offset = through[0] * np.cos(angle) - through[1] * np.sin(angle)
    kind = rng.random()
    if kind < 0.5:  # no shore: half sea, half meadow
        offset = -np.inf if kind < 0.25 else np.inf
    return Ground(angle, float(offset), waves)  # type: ignore[arg-type]


def random_scene(
    rng: np.random.Generator,
    size: tuple[float, float],
    pairs: int,
    first_class: Mapping[str, int],
    creatures: tuple[int, int],
    body_length: tuple[float, float],
    hidden_head: float,
) -> Scene:
    """A random scene, all lengths in scene units.

    pairs: number of confusable pairs; pair p has the class ids 1 + 2p and 2 + 2p. first_class: that of "turtle" and
    "flower", where they occur. creatures, body_length: ranges. hidden_head: a probability. Classes are
    drawn last and by fair coins that nothing else depends on, so that neither place, pose nor company gives them away;
    only a tortoise's class follows from the ground.
    """
    placer, ground = _Placer(rng, *size), _ground(rng, *size)
    kinds = ["creature"] * int(rng.integers(creatures[0], creatures[1] + 1)) if pairs else []
    kinds += ["turtle"] * int(rng.integers(1, 3)) if "turtle" in first_class else []
    kinds += ["flower"] * int(rng.integers(1, 4)) if "flower" in first_class else []
    family = rng.integers(0, max(pairs, 1), len(kinds))
    if rng.random() < 0.5 and len(kinds) > 1:
        family[1] = family[0]  # relatives often meet, so that "which of the two is here" is not enough
    things: list[Thing] = []
    stones: list[Thing] = []
    rank = {"turtle": 0.0, "flower": 0.2, "creature": 0.1}
    for index in sorted(range(len(kinds)), key=lambda i: rank[kinds[i]] + rng.random()):
        kind, appearance = kinds[index], tuple(rng.random(8).tolist())
        angle, side = float(rng.uniform(0, 2 * np.pi)), int(rng.integers(2))
        if kind == "creature":
            placed = placer.spine(*body_length)
            if placed is None:
                continue
            spine, angle = placed
            hidden, pair = bool(rng.random() < hidden_head), int(family[index])
            placer.keep_clear(spine[0], 1.5 * HEAD_RADIUS)
            things.append(Thing(kind, 1 + 2 * pair + side, side, pair, spine, BODY_RADIUS, angle, appearance, hidden))
            if hidden:
                stones.append(_stone(rng, spine[:1], 1.45 * HEAD_RADIUS))
            continue
        radius = TURTLE_RADIUS if kind == "turtle" else FLOWER_RADIUS
        centre = placer.spot_on_one_ground(radius, ground) if kind == "turtle" else placer.spot(radius)
        if centre is None:
            continue
        placer.keep_clear(centre[0], 0.6 * radius)
        if kind == "turtle":
            side = int(ground.level(centre[:, 0], centre[:, 1])[0] > 0)
        things.append(Thing(kind, first_class[kind] + side, side, 0, centre, radius, angle, appearance))
    for _ in range(int(rng.integers(0, 3))):  # stones that hide nothing, so that a stone does not mean a hidden head
        radius = float(rng.uniform(0.8, 1.45)) * HEAD_RADIUS
        centre = placer.spot(radius, inset=0.0)
        if centre is not None:
            stones.append(_stone(rng, centre, radius))
    return Scene(ground, (*things, *stones), int(rng.integers(2**31)))


def _stone(rng: np.random.Generator, centre: Array, radius: float) -> Thing:
    appearance = tuple(rng.random(8).tolist())
    return Thing("stone", 0, 0, 0, centre, radius, float(rng.uniform(0, 2 * np.pi)), appearance)
