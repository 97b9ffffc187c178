"""Which class leans on which? The class-context matrix, pooled over images (matrix.csv, matrix.png)."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import torch

from perpixel.evaluation import ratio
from perpixel.report import class_matrix_chart
from recipes.explaining.maps import RANDOM, TRAINED, Explanation
from recipes.explaining.measurements.measurement import Figure, Measurement, Results, Rows, Section, Tables
from recipes.explaining.settings import DataSetSettings
from recipes.explaining.statistics import (
    FEWEST,
    count,
    interval_text,
    of_network,
    pooled_name,
    with_interval,
)
from recipes.kit.statistics import Statistic, difference, ratio_of_sums
from recipes.kit.tables import Row, markdown_text

MOST_NAMED = 3  # classes named per label


class ClassContextMatrix(Measurement):
    """What hiding each class costs the logits of each other class, beside as much hidden at random."""

    name = "matrix"

    def measure(self, explanation: Explanation) -> Rows:
        image, measure = explanation.image, self.settings.measure
        labels = image.truth if measure.truth and image.truth is not None else image.predicted
        matrix = explanation.effects.class_matrix(
            labels[None],
            ignore_index=self.images.ignore_index,
            least=measure.least,
            controls=measure.controls,
            seed=self.settings.seed,
        )
        counts = torch.stack([matrix.counts, matrix.control_counts]).double()
        sums = torch.stack([matrix.values, matrix.control]).nan_to_num() * counts
        return [{"image": image.name, "network": explanation.network_name, "sums": sums, "counts": counts}]

    def tables(self, results: Results) -> Tables:
        rows = matrix_rows(results.measured[self.name], self.images.classes, self.settings.measure)
        return {"matrix": (rows, "the class-context matrix, with controls and intervals; logits")}

    def section(self, results: Results) -> Section:
        own = [r for r in results.tables["matrix"] if r["network"] == TRAINED and r["class"] != r["hidden"]]
        random = of_network(results.tables["matrix"], RANDOM, "class", "hidden")
        lines = [_sentence(label, [r for r in own if r["class"] == label], random) for label in results.labels]
        entries = [r for r in own if r["excess_low"] == r["excess_low"]]
        if entries:
            by_luck = len(entries) * (1 - self.settings.measure.level) / 2
            outside = sum(r["excess_low"] > 0 for r in entries)
            have = "has" if outside == 1 else "have"
            lines.append(
                f"\nOf {len(entries)} pairs of different classes, {outside} {have} an interval above zero; about "
                f"{by_luck:.1f} would by luck alone, if every interval held what it says and nothing leaned on "
                "anything."
            )
        whose = "labelled" if self.settings.measure.truth else "predicted"
        note = (
            "Mean fall of a class's logit at its visible pixels when another class is hidden (all patches with more "
            f"than {100 * self.settings.measure.least:g} % of pixels {whose} so), less the fall when as many pixels "
            f"are hidden at random places, with its interval over images (from {FEWEST} images on)."
        )
        return Section("Which context decides", lines, note)

    def charts(self, results: Results) -> Iterator[Figure]:
        whose = "true" if self.settings.measure.truth else "predicted"
        for network, name in ((TRAINED, "matrix"), (RANDOM, "matrix_random")):
            matrix = PooledMatrix(results.measured[self.name], network)
            if matrix.pixels.any():
                about = f"{self.subject}, {network}, {len(results.images)} images ({whose} classes)"
                ends = torch.full((2, *matrix.pixels.shape), torch.nan, dtype=torch.float64)
                for row in (r for r in results.tables["matrix"] if r["network"] == network):
                    c, k = (self.images.classes.index(row[name]) for name in ("class", "hidden"))
                    ends[:, c, k] = torch.tensor([row["excess_low"], row["excess_high"]], dtype=torch.float64)
                figure = class_matrix_chart(
                    torch.from_numpy(matrix.loss),
                    torch.from_numpy(matrix.pixels),
                    classes=self.images.classes,
                    control=torch.from_numpy(matrix.control),
                    intervals=(ends[0], ends[1]),
                    title=f"Which class leans on which? {about}",
                )
                yield name, figure, f"the class-context matrix of the network, {network}, beside its control"


class PooledMatrix:
    """The class-context matrix of one (pooled) network, from its rows; sums and counts float64 (images, 2, C, C).

    loss: mean fall of a class's logit with another hidden, control: with as much at random, float64 (C, C); pixels:
    int64, how many the loss is a mean over (of several networks, each counts once).
    """

    def __init__(self, rows: Sequence[Row], network: str) -> None:
        mine = [r for r in rows if pooled_name(r["network"]) == network]
        parts = [[r for r in mine if r["image"] == image] for image in dict.fromkeys(r["image"] for r in mine)]
        self.sums, self.counts = (
            torch.stack([sum(r[name] for r in of_image) for of_image in parts]).numpy() for name in ("sums", "counts")
        )
        self.loss, self.control = ratio(self.sums.sum(0), self.counts.sum(0))
        self.pixels = (self.counts.sum(0)[0] / len(parts[0])).round().astype(np.int64)

    def excess(self, row: int, column: int) -> Statistic:
        """Entry minus its control; both over images where both have pixels."""
        both = np.all(self.counts[:, :, row, column] > 0, axis=1)
        sums, counts = (v[:, :, row, column] * both[:, None] for v in (self.sums, self.counts))
        own, control = (ratio_of_sums(sums[:, part], counts[:, part]) for part in (0, 1))
        return difference(own, control)


def matrix_rows(rows: Sequence[Row], names: Sequence[str], settings: DataSetSettings) -> Rows:
    """matrix.csv: a row per network, class whose logit is read, and hidden class.

    excess: loss - control, with interval over images; minus_random: less that of the networks with random weights.
    """
    matrices, result = {network: PooledMatrix(rows, network) for network in (TRAINED, RANDOM)}, Rows()
    for network, matrix in matrices.items():
        for c, k in np.argwhere(matrix.pixels > 0).tolist():
            images, seen = len(matrix.sums), int((matrix.counts[:, 0, c, k] > 0).sum())
            row = {"network": network, "class": names[c], "hidden": names[k], "images": seen}
            row |= {"pixels": int(matrix.pixels[c, k])}
            row |= {"loss": float(matrix.loss[c, k]), "control": float(matrix.control[c, k])}
            row |= with_interval("excess", matrix.excess(c, k), images, seen, settings)
            if network == TRAINED:
                statistic = difference(matrix.excess(c, k), matrices[RANDOM].excess(c, k))
                row |= with_interval("minus_random", statistic, images, seen, settings)
            result.append(row)
    return result


def _sentence(label: str, rows: Sequence[Row], random: Mapping[tuple[str, ...], Row]) -> str:
    """What the label leans on: rows of the matrix with its logit, and those of random weights."""
    text_of = partial(interval_text, name="excess", sign=True)
    name, known = markdown_text(label), [r for r in rows if r["excess_low"] == r["excess_low"]]
    costly = sorted((r for r in known if r["excess_low"] > 0), key=lambda r: -r["excess"])[:MOST_NAMED]
    cheap = sorted((r for r in known if r["excess_high"] < 0), key=lambda r: r["excess"])[:MOST_NAMED]
    if costly:
        parts = []
        for row in costly:
            control = random.get((label, row["hidden"]))
            beside = "" if control is None else f"; random weights {text_of(control)}"
            parts.append(f"**{markdown_text(row['hidden'])}** {text_of(row)}, {count(row['images'], 'image')}{beside}")
        text = f"- **{name}** leans on " + "; ".join(parts) + "."
    elif not known:
        seen = max((r["images"] for r in rows if r["excess"] == r["excess"]), default=0)
        text = f"- **{name}**: too few images to say (with any one other class in at most {seen})."
    else:
        text = f"- **{name}**: no class whose hiding costs it certainly more than as much hidden at random."
    if cheap:
        named = ", ".join(f"{markdown_text(r['hidden'])} {text_of(r)}" for r in cheap)
        text += f" Hiding these costs it less than hiding as much at random: {named}."
    return text
