"""Means over images with bootstrap intervals, and their differences to the controls."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from perpixel.evaluation import IMAGES, BootstrapInterval, Statistic, ratio_of_sums
from recipes.explaining.images import ALL_OF_LABEL
from recipes.explaining.maps import RANDOM, TRAINED
from recipes.explaining.settings import DataSetSettings
from recipes.kit.tables import Row, format_cell, interval_columns

ALL = "all labels"


def pooled_name(network: str) -> str:
    """The name under which networks are pooled: "random weights 1" is one of the "random weights"."""
    return RANDOM if network.startswith(RANDOM) else network


def with_interval(
    name: str, statistic: Statistic, images: int, seen: int, settings: DataSetSettings
) -> dict[str, float]:
    """`interval_columns` over images; without ends where fewer than IMAGES are `seen`, have anything to say."""
    if seen < IMAGES:
        value = float(statistic(np.ones((1, images)))[0])
        return interval_columns(name, BootstrapInterval(value, np.nan, np.nan, settings.level))
    return interval_columns(name, settings.interval(statistic, images))


class Means:
    """Means of a column over the regions of images, as functions of how often each image counts."""

    def __init__(self, rows: Iterable[Row], images: Sequence[str]) -> None:
        self.rows, self.place, self.images = list(rows), {name: i for i, name in enumerate(images)}, len(images)

    def of(self, column: str, wanted: Mapping[str, Any]) -> Statistic:
        """Mean of a column over the rows with the `wanted` values ("network" pooled); NaN entries count nowhere."""
        sums, counts = np.zeros(self.images), np.zeros(self.images)
        for row in self.rows:
            value = row[column]
            fits = all((pooled_name(row[k]) if k == "network" else row[k]) == v for k, v in wanted.items())
            if fits and value == value:
                sums[self.place[row["image"]]] += value
                counts[self.place[row["image"]]] += 1
        return ratio_of_sums(sums, counts)

    def seen(self, wanted: Mapping[str, Any]) -> tuple[int, int]:
        """How many regions, and in how many images: rows of the explained network."""
        fit = [r for r in self.rows if all(r[k] == v for k, v in {**wanted, "network": TRAINED}.items())]
        return len(fit), len({r["image"] for r in fit})


def labels_in(rows: Sequence[Row]) -> list[str]:
    """ALL, and the labels that were asked about, in the order they come."""
    return [ALL, *dict.fromkeys(r["label"] for r in rows if r["pixels_asked"] == ALL_OF_LABEL)]


def of_network(rows: Sequence[Row], network: str, *keys: str) -> dict[tuple[Any, ...], Row]:
    """The rows of one (pooled) network by the values of these columns; of equal ones, the last."""
    return {tuple(r[k] for k in keys): r for r in rows if pooled_name(r["network"]) == network}


def count(number: int, what: str) -> str:
    """ "1 image", "2 images"."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def interval_text(row: Row, name: str, digits: int = 2, *, sign: bool = False) -> str:
    """Value and interval of a row: "1.20 [0.90, 1.51]"; without ends where there are none."""
    return format_cell(row, name, digits, sign=sign, missing="undefined")
