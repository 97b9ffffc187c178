"""The classes of the synthetic scenes: names, label colours, and the shapes and colours of bodies and heads."""

from typing import NamedTuple

Colour = tuple[float, float, float]


class Pair(NamedTuple):
    """Two class ids that only their evidence tells apart.

    `kind` says what decides: "confusable" the head, "context" the ground around, "local" the own colour.
    """

    first: int
    second: int
    kind: str


class Head(NamedTuple):
    """One member of a confusable pair: class name, label colour, head shape and head colour (RGB in [0, 1])."""

    name: str
    label_colour: tuple[int, int, int]
    shape: str
    colour: Colour


class Body(NamedTuple):
    """What both members of a confusable pair share: pattern, ground colour and pattern colour of the body."""

    pattern: str
    base: Colour
    marks: Colour
    first: Head
    second: Head


BODIES: tuple[Body, ...] = (
    Body("zigzag", (0.90, 0.66, 0.30), (0.58, 0.34, 0.16),
         Head("viper", (255, 196, 87), "egg", (0.16, 0.36, 0.20)),
         Head("cobra", (186, 110, 20), "hood", (0.98, 0.92, 0.76))),
    Body("beads", (0.66, 0.47, 0.76), (0.84, 0.72, 0.90),
         Head("caterpillar", (205, 160, 240), "antennae", (0.99, 0.87, 0.33)),
         Head("centipede", (122, 66, 176), "pincers", (0.36, 0.12, 0.20))),
    Body("rings", (0.88, 0.90, 0.92), (0.42, 0.48, 0.58),
         Head("eel", (226, 236, 244), "beak", (0.42, 0.80, 0.66)),
         Head("hammerhead", (128, 146, 168), "hammer", (0.15, 0.19, 0.42))),
    Body("dots", (0.95, 0.64, 0.58), (0.99, 0.86, 0.80),
         Head("newt", (255, 170, 160), "ears", (0.42, 0.52, 0.16)),
         Head("axolotl", (226, 84, 110), "fan", (0.88, 0.28, 0.58))),
    Body("chevrons", (0.16, 0.48, 0.50), (0.56, 0.86, 0.76),
         Head("dragon", (60, 190, 180), "horns", (0.95, 0.50, 0.14)),
         Head("phoenix", (14, 112, 116), "crown", (0.99, 0.95, 0.88))),
    Body("line", (0.33, 0.30, 0.33), (0.70, 0.64, 0.62),
         Head("otter", (150, 128, 118), "round", (0.62, 0.40, 0.22)),
         Head("badger", (86, 70, 66), "snout", (0.93, 0.93, 0.95))),
)  # fmt: skip

BACKGROUND = ("background", (30, 36, 50))
CONTEXT = (("tortoise", (170, 205, 80)), ("turtle", (52, 150, 84)))  # on the meadow, in the sea
LOCAL = (("poppy", (240, 70, 60)), ("cornflower", (76, 110, 240)))
LOCAL_COLOURS: tuple[Colour, Colour] = ((0.90, 0.24, 0.20), (0.29, 0.40, 0.92))
