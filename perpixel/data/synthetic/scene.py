"""Scenes of `SyntheticEvidence` as plain numbers: where the shore runs, what lies where, and what covers what.

Nothing is drawn here. Lengths are in units of 1/96 of the shorter image side, so a scene is the same at every size.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]  # float32 unless said otherwise
BODY_RADIUS, HEAD_RADIUS, TURTLE_RADIUS, FLOWER_RADIUS = 4.2, 5.8, 8.5, 6.5
RING = 9.0  # width of the ground around a tortoise or turtle that counts as its evidence


@dataclass(frozen=True)
class Ground:
    """Sea where `level` > 0, meadow below; `offset` = +-inf for a scene without shore."""

    angle: float
    offset: float
    waves: tuple[float, float, float, float]
    flipped: bool = False

    def level(self, y: Array, x: Array) -> Array:
        """Distance to the shore line, roughly, positive on the sea side."""
        along = x * np.float32(np.cos(self.angle)) + y * np.float32(np.sin(self.angle))
        level = y * np.float32(np.cos(self.angle)) - x * np.float32(np.sin(self.angle)) - np.float32(self.offset)
        f, g, a, b = self.waves
        level = (
            level + 4.0 * np.sin(0.07 * (0.6 + f) * along + 6.3 * a) + 1.5 * np.sin(0.2 * (0.6 + g) * along + 6.3 * b)
        )
        return (-level if self.flipped else level).astype(np.float32)


@dataclass(frozen=True)
class Thing:
    """One object. `appearance`: numbers in [0, 1) that set colours and pattern, and know nothing of its class."""

    kind: str  # "creature", "turtle", "flower", "stone"
    label: int  # class id, 0 for a stone
    side: int  # which member of its pair: 0 or 1
    pair: int  # which confusable pair, for a creature
    spine: Array  # (n, 2) y, x from head to tail; (1, 2) the centre of the other kinds
    radius: float
    angle: float
    appearance: tuple[float, ...]
    hidden: bool = False


@dataclass(frozen=True)
class Scene:
    """The ground and the things on it, in drawing order (stones that hide heads come last)."""

    ground: Ground
    things: tuple[Thing, ...]
    seed: int  # of texture and noise

    def swapped(self, index: int, other: int) -> "Scene":
        """The same scene with thing `index` turned into the other member of its pair, class `other`."""
        things = list(self.things)
        thing = things[index]
        things[index] = replace(thing, label=other, side=1 - thing.side)
        return replace(self, things=tuple(things))
