"""Which class leans on which? The class-context matrix, pooled over images (matrix.csv, matrix.png)."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from perpixel.evaluation import IMAGES, Statistic, difference, ratio, ratio_of_sums
from perpixel.report import class_matrix_chart
from recipes.explaining.maps import RANDOM, TRAINED, Explanation
from recipes.explaining.measurements.measurement import Figure, Measurement, Results, Rows, Tables
from recipes.explaining.settings import DataSetSettings
from recipes.explaining.statistics import count, interval_text, of_network, pooled_name, with_interval
from recipes.kit.summary import Section
from recipes.kit.tables import Row, add_verdicts, markdown_table, markdown_text

MORE, LESS = "leans on it", "loses less than at random"
HEAD = (
    "label",
    "hidden class",
    "costs its logit, less as much at random",
    "the same, random weights",
    "images",
    "verdict",
)


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
        random, shown = of_network(results.tables["matrix"], RANDOM, "class", "hidden"), list[Row]()
        few, open_ones, pairs = list[str](), list[str](), _pairs(results.tables["matrix"])
        for label in results.labels:
            own = [r for r in pairs if r["class"] == label]
            named = [r for r in own if r["excess_low"] > 0 or r["excess_verdict"] == LESS]
            shown += sorted(named, key=lambda r: -r["excess"])
            if not named:
                (open_ones if any(r["images"] >= IMAGES for r in own) else few).append(label)
        body = []
        for row in shown:
            pair = row["class"], row["hidden"]
            texts = [interval_text(of, "excess", sign=True) for of in (row, random[pair])]
            body.append([*pair, *texts, str(row["images"]), row["excess_verdict"]])
        lines = [*markdown_table(HEAD, body, left=(0, 1, 5)), ""] if body else []
        unseen = f"Seen with no other class in {IMAGES} images, so nothing can be said"
        for names, what in ((open_ones, "Shown to lean on no other class, even on these images"), (few, unseen)):
            lines += [f"- {what}: {markdown_text(', '.join(names))}."] if names else []
        tested = [r for r in pairs if r["images"] >= IMAGES]
        whose = "labelled" if self.settings.measure.truth else "predicted"
        less = sum(r["excess_verdict"] == f"{LESS} on these images" for r in pairs)
        note = (
            "Mean fall of a class's logit at its visible pixels when another class is hidden (all patches with more "
            f"than {100 * self.settings.measure.least:g} % of pixels {whose} so), less the fall when as many pixels "
            "are hidden at random places, with its interval over images. Shown of "
            f"{count(len(tested), 'pair')} that {IMAGES} images or more can tell of: those that cost more than that, "
            'and those that certainly cost less. "On these images": not certain enough for so many pairs (Holm\'s '
            f"correction); {less} more cost less only so. All are in matrix.csv."
        )
        return Section("Which context decides", lines, note)

    def verdict(self, results: Results) -> str:
        pairs = _pairs(results.tables["matrix"])
        tested = [r for r in pairs if r["images"] >= IMAGES]
        if not tested:
            return f"Too few images to say which class leans on which: no two are seen together in {IMAGES}."
        found = sorted((r for r in pairs if r["excess_verdict"] == MORE), key=lambda r: -r["excess"])
        named = [f"{markdown_text(r['class'])} on {markdown_text(r['hidden'])}" for r in found[:4]]
        text = ", ".join(named) + (f" and {len(found) - 4} more pairs" if len(found) > 4 else "")
        begin = f"Of {count(len(tested), 'pair')} of classes, {len(found) or 'none'} for certain"
        return f"{begin}{' leans' if len(found) < 2 else ' lean'} on the other" + (f": {text}." if found else ".")

    def charts(self, results: Results) -> Iterator[Figure]:
        whose = "true" if self.settings.measure.truth else "predicted"
        for network, name in ((TRAINED, "matrix"), (RANDOM, "matrix_random")):
            matrix = PooledMatrix(results.measured[self.name], network)
            if matrix.pixels.any():
                about = f"{self.subject}, {network}, {len(results.images)} images ({whose} classes)"
                ends = torch.full((2, *matrix.pixels.shape), torch.nan, dtype=torch.float64)
                certain = torch.zeros(matrix.pixels.shape, dtype=torch.bool)
                for row in (r for r in results.tables["matrix"] if r["network"] == network):
                    c, k = (self.images.classes.index(row[name]) for name in ("class", "hidden"))
                    ends[:, c, k] = torch.tensor([row["excess_low"], row["excess_high"]], dtype=torch.float64)
                    certain[c, k] = row.get("excess_verdict") in (MORE, LESS)
                figure = class_matrix_chart(
                    torch.from_numpy(matrix.loss),
                    torch.from_numpy(matrix.pixels),
                    classes=self.images.classes,
                    control=torch.from_numpy(matrix.control),
                    intervals=(ends[0], ends[1]),
                    marked=certain,
                    title=f"Which class leans on which? {about}",
                )
                yield name, figure, f"the class-context matrix of the network, {network}, less its control"


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

    excess: logit_fall - logit_fall_at_random, with interval over images and, for pairs of classes, a verdict (a table
    per network); minus_random_weights: less that of the networks with random weights.
    """
    matrices, result = {network: PooledMatrix(rows, network) for network in (TRAINED, RANDOM)}, Rows()
    for network, matrix in matrices.items():
        for c, k in np.argwhere(matrix.pixels > 0).tolist():
            images, seen = len(matrix.sums), int((matrix.counts[:, 0, c, k] > 0).sum())
            row = {"network": network, "class": names[c], "hidden": names[k], "images": seen}
            row |= {"pixels": int(matrix.pixels[c, k])}
            row |= {"logit_fall": float(matrix.loss[c, k]), "logit_fall_at_random": float(matrix.control[c, k])}
            row |= with_interval("excess", matrix.excess(c, k), images, seen, settings, tested=True)
            if network == TRAINED:
                statistic = difference(matrix.excess(c, k), matrices[RANDOM].excess(c, k))
                row |= with_interval("minus_random_weights", statistic, images, seen, settings)
            result.append(row)
    for network in matrices:
        add_verdicts(_pairs(result, network), "excess", level=settings.level, more=MORE, less=LESS)
    return result


def _pairs(rows: Rows, network: str = TRAINED) -> Rows:
    """Rows of a network about two different classes."""
    return [r for r in rows if r["network"] == network and r["class"] != r["hidden"]]
