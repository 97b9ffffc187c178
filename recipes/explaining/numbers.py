"""From what was measured image by image to tables: means, differences to controls, intervals over images."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from perpixel.evaluation import BootstrapInterval, bootstrap_images
from recipes.explaining.maps import TRAINED, Found, Row
from recipes.explaining.settings import DataSetSettings

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]
RANDOM = "random weights"
ALL = "all"
FEWEST = 5  # images that an interval needs
# quantity of shares.csv -> what it would be by chance, measured on the same maps
CHANCE = {
    "context_share": "context_area",
    "r50": "r50_area",
    "evidence": "evidence_chance",
    "pointing": "pointing_chance",
}


def pool(network: str) -> str:
    """The name under which networks are pooled: "random weights 1" is one of the "random weights"."""
    return RANDOM if network.startswith(RANDOM) else network


def interval(statistic: Statistic, images: int, seen: int, settings: DataSetSettings) -> BootstrapInterval:
    """Bootstrap interval over images; without ends where fewer than FEWEST are `seen`, have anything to say."""
    if seen < FEWEST:
        value = float(statistic(np.ones((1, images)))[0])
        return BootstrapInterval(value, float("nan"), float("nan"), settings.level)
    return bootstrap_images(statistic, images, level=settings.level, resamples=settings.resamples)


def ratio(part: Floats, whole: Floats) -> Floats:
    """part / whole, NaN where the whole is zero."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(whole > 0, part / whole, np.nan)


class Means:
    """Means of a column over the questions of images, as functions of how often each image counts."""

    def __init__(self, rows: Iterable[Row], images: Sequence[str]) -> None:
        self.rows, self.place, self.images = list(rows), {name: i for i, name in enumerate(images)}, len(images)

    def of(self, column: str, wanted: Mapping[str, Any]) -> Statistic:
        """Mean of a column over the rows with the `wanted` values ("network" pooled); NaN entries count nowhere."""
        sums, counts = np.zeros(self.images), np.zeros(self.images)
        for row in self.rows:
            value = row[column]
            if all((pool(row[k]) if k == "network" else row[k]) == v for k, v in wanted.items()) and value == value:
                sums[self.place[row["image"]]] += value
                counts[self.place[row["image"]]] += 1
        return lambda weights: ratio(weights @ sums, weights @ counts)

    def asked(self, wanted: Mapping[str, Any]) -> tuple[int, int]:
        """How many rows, and in how many images."""
        fit = [r for r in self.rows if all(r[k] == v for k, v in wanted.items())]
        return len(fit), len({r["image"] for r in fit})


def minus(one: Statistic, other: Statistic) -> Statistic:
    """The difference of two statistics on the same draw of images."""
    return lambda weights: one(weights) - other(weights)


def labels_in(rows: Sequence[Row], kind: str) -> list[str]:
    """ALL, and the labels that were asked about, in the order they come."""
    return [ALL, *dict.fromkeys(r["label"] for r in rows if r["kind"] == kind)]


def mean_rows(rows: Sequence[Row], images: Sequence[str], settings: DataSetSettings) -> list[Row]:
    """means.csv: a row per kind, label, method, quantity and (pooled) network, with interval, chance, and control.

    minus_chance: value less what chance gives; trained rows also have minus_random: less the networks with random
    weights, on the same questions. Ends of intervals are over images.
    """
    means, result = Means(rows, images), []
    for kind in dict.fromkeys(r["kind"] for r in rows):
        quantities = ("context_share", "r50") if kind == "label" else ("evidence", "pointing")
        for label in labels_in(rows, kind) if kind == "label" else [ALL]:
            for method in dict.fromkeys(r["method"] for r in rows):
                wanted = {"kind": kind, "method": method} | ({} if label == ALL else {"label": label})
                questions, seen = means.asked({**wanted, "network": TRAINED})
                for quantity in quantities:
                    for network in (TRAINED, RANDOM):
                        row = {"kind": kind, "label": label, "method": method, "quantity": quantity}
                        row |= {"network": network, "questions": questions, "images": seen}
                        own = means.of(quantity, {**wanted, "network": network})
                        chance = means.of(CHANCE[quantity], {**wanted, "network": network})
                        row |= _ends("value", own, means.images, seen, settings)
                        row |= {"chance": float(chance(np.ones((1, means.images)))[0])}
                        row |= _ends("minus_chance", minus(own, chance), means.images, seen, settings)
                        other = means.of(quantity, {**wanted, "network": RANDOM})
                        if network == TRAINED:
                            row |= _ends("minus_random", minus(own, other), means.images, seen, settings)
                        result.append(row)
    return result


def _ends(name: str, statistic: Statistic, images: int, seen: int, settings: DataSetSettings) -> Row:
    found = interval(statistic, images, seen, settings)
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}


def alone_rows(rows: Sequence[Row], images: Sequence[str], settings: DataSetSettings) -> list[Row]:
    """alone_means.csv: how much of the regions keeps its label when all else is hidden, by label, with intervals."""
    means, result = Means(rows, images), []
    for label in labels_in(rows, "label"):
        for network in (TRAINED, RANDOM):
            wanted = {"network": network} | ({} if label == ALL else {"label": label})
            questions, seen = means.asked({**wanted, "network": TRAINED})
            row: Row = {"label": label, "network": network, "questions": questions, "images": seen}
            for quantity in ("kept_before", "kept", "kept_elsewhere", "logit_drop", "margin_drop"):
                row |= _ends(quantity, means.of(quantity, wanted), means.images, seen, settings)
            result.append(row)
    return result


class Matrix:
    """The class-context matrix of one (pooled) network over images: sums and counts float64 (images, 2, C, C)."""

    def __init__(self, found: Sequence[Found], network: str) -> None:
        parts = [[f.matrix[name] for name in f.matrix if pool(name) == network] for f in found]
        self.sums = torch.stack([torch.stack([s for s, _ in of_image]).sum(0) for of_image in parts]).numpy()
        self.counts = torch.stack([torch.stack([c for _, c in of_image]).sum(0) for of_image in parts]).numpy()
        self.networks = len(parts[0])

    @property
    def values(self) -> tuple[Tensor, Tensor]:
        """Mean loss of each class's logit with each class hidden, and with as much at random: float64 (C, C) each."""
        own, control = ratio(self.sums.sum(0), self.counts.sum(0))
        return torch.from_numpy(own), torch.from_numpy(control)

    @property
    def pixels(self) -> Tensor:
        """How many pixels each entry is a mean over, int64 (C, C); of several networks, each counts once."""
        return torch.from_numpy(self.counts.sum(0)[0] / self.networks).round().long()

    @property
    def seen(self) -> Tensor:
        """In how many images, int64 (C, C)."""
        return torch.from_numpy((self.counts[:, 0] > 0).sum(0))

    def excess(self, row: int, column: int) -> Statistic:
        """Entry minus its control; both over images where both have pixels."""
        both = np.all(self.counts[:, :, row, column] > 0, axis=1)
        sums, counts = (v[:, :, row, column] * both[:, None] for v in (self.sums, self.counts))
        own, control = (
            lambda weights, part=part: ratio(weights @ sums[:, part], weights @ counts[:, part]) for part in (0, 1)
        )
        return minus(own, control)


def matrix_rows(matrices: Mapping[str, Matrix], names: Sequence[str], settings: DataSetSettings) -> list[Row]:
    """matrix.csv: a row per network, class whose logit is read, and hidden class.

    loss: mean fall of the logit when the class is hidden; control: when as many pixels are, at random places; excess:
    loss - control, with interval over images. minus_random: the excess less that of the networks with random weights.
    """
    result = []
    for network, matrix in matrices.items():
        (loss, control), pixels, seen = matrix.values, matrix.pixels, matrix.seen
        for c, name in enumerate(names):
            for k, hidden in enumerate(names):
                if pixels[c, k] == 0:
                    continue
                row: Row = {"network": network, "class": name, "hidden": hidden, "images": int(seen[c, k])}
                row |= {"pixels": int(pixels[c, k]), "loss": float(loss[c, k]), "control": float(control[c, k])}
                images, both = len(matrix.sums), int(seen[c, k])
                row |= _ends("excess", matrix.excess(c, k), images, both, settings)
                if network == TRAINED and RANDOM in matrices:
                    difference = minus(matrix.excess(c, k), matrices[RANDOM].excess(c, k))
                    row |= _ends("minus_random", difference, images, both, settings)
                result.append(row)
    return result


def profile_means(rows: Sequence[Row], kind: str = "label") -> list[Row]:
    """profile_means.csv: mean share and area per network, method and bin over the questions that have one."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if row["kind"] == kind and row["share"] == row["share"]:
            groups.setdefault((pool(row["network"]), row["method"], row["from"], row["to"]), []).append(row)
    return [
        {
            **dict(zip(("network", "method", "from", "to"), key)),
            "share": float(np.mean([r["share"] for r in group])),
            "area": float(np.mean([r["area"] for r in group])),
            "questions": len(group),
        }
        for key, group in groups.items()
    ]
