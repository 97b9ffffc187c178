"""What `fixations` returns: the points of every image and label, their mass, and what became of the rest."""

import difflib
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from perpixel.checks import check_flag, check_number, check_same_device, check_tensor, complain
from perpixel.fixations import density as maps
from perpixel.fixations.points import Points, sums
from perpixel.outputs import whole_mask

_HEAVIEST = 5  # labels that are named when printed


@dataclass(frozen=True, repr=False)
class PointMap:
    """The points on one tensor.

    points: int64 (P, 5), image, label, channel, y, x; unique and sorted. On a tensor (N, F), y = x = 0.
    mass: float64 (P,), output pixels whose trace passes there; a start pixel counts 1.
    sign: int64 (P,), 1 where the question is what made the unit positive, -1 what made it negative, 0 where both meet.
    size: height and width. images, classes: N and C.
    """

    points: Tensor
    mass: Tensor
    sign: Tensor
    size: tuple[int, int]
    images: int
    classes: int

    def density(self, sigma: float | None = None, drop_outliers: bool = True) -> Tensor:
        """Heat maps float32 (N, C, H, W): masses blurred by a Gaussian of `sigma` pixels, cut at the border.

        sigma: None for 2 % of the diagonal. drop_outliers: leave out points with fewer than 5 % of the points of their
        image and label within 2 % of the diagonal. Each map sums to the mass it shows; no points: zeros.
        Ganeshan 2017, section 2.4.
        """
        check_flag("drop_outliers", drop_outliers)
        if sigma is None:
            sigma = max(maps.NEAR * math.hypot(*self.size), 0.5)
        sigma = check_number("sigma", sigma, low=0.0, open_low=True)
        group, y, x, mass = self._flat()
        if drop_outliers:
            keep = ~maps.outliers(group, y, x, self.size)
            group, y, x, mass = group[keep], y[keep], x[keep], mass[keep]
        result = maps.density(group, y, x, mass, self.images * self.classes, self.size, sigma)
        return result.view(self.images, self.classes, *self.size)

    def inside(self, labels: Tensor) -> Tensor:
        """Share of the mass that lies on the object, float64 (N, C), NaN where an image has no mass of a label.

        labels: int (N, H, W) at this tensor's size; a point counts as inside where they equal its own label. Where C is
            2, masks of any dtype, (N, 1, H, W) as well.
        """
        mask = whole_mask("labels", labels) if self.classes == 2 else labels
        labels = check_tensor("labels", mask, ndim=3, shape="(N, H, W)", floating=False)
        check_same_device(labels=labels, fixations=self.points)
        if tuple(labels.shape) != (self.images, *self.size):
            expected = f"shape {(self.images, *self.size)}, one label per unit of the map"
            remedy = "Bring them to this size with nearest-neighbour interpolation."
            raise ValueError(complain("labels", expected, labels, remedy))
        return maps.inside(*self._flat(), self.classes, labels)

    def __repr__(self) -> str:
        return "\n  ".join([self._of(), self._by_label()])

    def _of(self) -> str:
        images = f"{_counted(self.images, 'image')} of {self.size[0]}x{self.size[1]}"
        points = _counted(len(self.points), "point")
        return f"{type(self).__name__}: {points} in {images}, labels 0 to {self.classes - 1}"

    def _by_label(self) -> str:
        """The share of the mass that the heaviest labels have."""
        mass = self.mass.new_zeros(self.classes).index_add_(0, self.points[:, 1], self.mass)
        heaviest, labels = mass.sort(descending=True, stable=True)
        held, total = int((heaviest > 0).sum()), float(mass.sum())
        pairs = list(zip(labels.tolist(), heaviest.tolist()))[: min(held, _HEAVIEST)]
        shares = [f"label {label} {_percent(part, total)}" for label, part in pairs]
        more = [f"{held - _HEAVIEST} more"] if held > _HEAVIEST else []
        return f"mass {total:.6g}: {', '.join(shares + more)}" if shares else "no mass"

    def _flat(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        image, label, _, y, x = self.points.unbind(1)
        return image * self.classes + label, y, x, self.mass


@dataclass(frozen=True, repr=False)
class Fixations(PointMap):
    """The fixations of a batch: points on the input, and how they came there.

    started: output pixels traced; the masses and `dropped` add up to it.
    dropped: mass that reached no input, `dropped_at` by node: in padding, or cut by the cap (`capped`, by node).
    jumps: mass that went through a global pooling, from one unit to any place of the map, by node.
    layers: with record=True, the points on every tensor passed, by the name of its node; `on` finds them by layer.
    """

    started: float
    dropped: float
    dropped_at: dict[str, float]
    capped: dict[str, float]
    jumps: dict[str, float]
    layers: dict[str, PointMap]
    nodes: dict[str, str]  # recorded node -> dotted name of its layer

    def __repr__(self) -> str:
        capped, through = sum(self.capped.values()), sum(self.jumps.values())
        lost = f"dropped {_percent(self.dropped, self.started)} of it"
        if self.dropped_at:
            worst = max(self.dropped_at, key=self.dropped_at.__getitem__)
            lost += f", most at {worst!r} ({_percent(self.dropped_at[worst], self.started)})"
        lines = [
            self._of(),
            f"started {self.started:g} output pixels; {lost}; cut by the cap {_percent(capped, self.started)}",
            self._by_label(),
        ]
        if through:
            lines.append(f"through global pooling {_percent(through, self.started)}, which may go anywhere in the map")
        if self.layers:
            lines.append(f"recorded on {_counted(len(self.layers), 'tensor')}: .on(layer)")
        return "\n  ".join(lines)

    def on(self, layer: str) -> PointMap:
        """The points on the output of `layer`: the name of a node, or the dotted name of a layer.

        ValueError for a layer without points, one that runs several times (name the node), or without record=True.
        """
        if layer in self.layers:
            return self.layers[layer]
        runs = [node for node, name in self.nodes.items() if name == layer]
        if len(runs) == 1:
            return self.layers[runs[0]]
        if runs:
            raise ValueError(complain("layer", "a layer that runs once", f"{layer!r}, run as {runs}", "Name the node."))
        if not self.layers:
            raise ValueError(complain("layer", "recorded layers", "fixations without", "Call with record=True."))
        close = difflib.get_close_matches(str(layer), [*self.layers, *self.nodes.values()], 5) or list(self.layers)[:5]
        remedy = f"The closest with points: {', '.join(dict.fromkeys(close))}. See fix.layers."
        raise ValueError(complain("layer", "a node or layer that points pass", layer, remedy))


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _percent(part: float, whole: float) -> str:
    """The share with one digit, "<0.1%" rather than a nought that is none."""
    share = part / whole if whole else 0.0
    return "<0.1%" if 0 < share < 0.001 else f"{share:.1%}"


def point_map(points: Points, shape: tuple[int, ...], classes: int, device: torch.device) -> PointMap:
    """The public form of points on a tensor of `shape`."""
    size = (shape[2], shape[3]) if len(shape) == 4 else (1, shape[2]) if len(shape) == 3 else (1, 1)
    places = size[0] * size[1]
    group, rows = points.labelled(places, classes).rows()
    units, count = points.units, math.prod(shape[1:])
    minus = np.zeros(len(units), np.bool_) if units.minus is None else units.minus
    unit = units.channel * places + units.pixel % places
    key, row = np.unique(group * count + unit.take(rows), return_inverse=True)
    mass, asked = sums(row, points.mass, len(key)), np.bincount(row, minlength=len(key))
    negative = np.bincount(row, minus.take(rows), len(key))
    sign = (negative == 0).astype(np.int64) - (negative == asked)
    group = key // count
    channel, pixel = np.divmod(key - group * count, places)
    columns = (group // classes, group % classes, channel, pixel // size[1], pixel % size[1])
    on_device = [torch.from_numpy(array).to(device) for array in (np.stack(columns, 1), mass, sign)]
    return PointMap(on_device[0], on_device[1], on_device[2], size, shape[0], classes)
