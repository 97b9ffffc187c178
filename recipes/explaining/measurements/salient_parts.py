"""The drawn objects without their discriminative region: what becomes of the rest? (salient.csv, salient-IMAGE.png)"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from perpixel import SalientParts, salient_parts
from recipes.explaining.maps import RANDOM, TRAINED, Explanation
from recipes.explaining.measurements.measurement import Figure, Measurement, Results, Rows, Section, Tables
from recipes.explaining.statistics import of_network
from recipes.kit.tables import markdown_text

OF_OBJECTS = ("image", "label", "region", "rest", "segmentation", "without", "before", "after", "pictures", "hidden")


class ObjectsWithoutSalientParts(Measurement):
    """Objects are the regions, the same for all networks; the tenth with the most class activation is hidden."""

    name = "salient"
    drawn_only = True

    def measure(self, explanation: Explanation) -> Rows:
        rows = Rows()
        for row in (row for parts in self._parts(explanation) for row in parts.rows()):
            shares = {key: 100 * row[key] for key in ("kept", "iou_before", "iou_after")}
            label = self.images.classes[int(row["label"])]
            named = {"image": explanation.image.name, "label": label, "network": explanation.network_name}
            rows.append({**row, **shares, **named})
        return rows

    def _parts(self, explanation: Explanation) -> list[SalientParts]:
        image, device = explanation.image, self.explainer.device
        batch, labels = self.explainer.batch(image), image.predicted[None].to(device)
        regions = [region for region in image.regions if bool(region.mask.any())]
        return [salient_parts(explanation.network, batch, labels, label=region.label) for region in regions]

    def figures(self, explanations: Sequence[Explanation], rows: Mapping[str, Rows]) -> Iterator[Figure]:
        parts, image = self._parts(explanations[0]), explanations[0].image
        if parts:
            joined = {name: torch.cat([getattr(part, name) for part in parts]).cpu() for name in OF_OBJECTS}
            objects = replace(parts[0], labels=parts[0].labels.cpu(), **joined)  # type: ignore[arg-type]
            figure = objects.figure(
                classes=self.images.classes,
                colors=self.images.colors,
                pictures=torch.from_numpy(self.backdrop(image)).permute(2, 0, 1).float()[None],
                title=f"{image.name}: objects with and without the tenth of them that has the most activation",
            )
            what = f"{image.name}: objects without their discriminative region"
            yield f"salient-{image.file_name}", figure, what

    def tables(self, results: Results) -> Tables:
        what = "a row per drawn object: what the rest of it keeps and loses without its discriminative region"
        return {"salient": (results.drawn[self.name], what)}

    def section(self, results: Results) -> Section:
        own, random = (of_network(results.drawn[self.name], name, "image", "label") for name in (TRAINED, RANDOM))
        lines = []
        for key, row in own.items():
            if row["lost"] == row["lost"]:
                course, beside = (f"from {r['held']:.2f} to {r['held'] - r['lost']:.2f}" for r in (row, random[key]))
                where = markdown_text(f"{row['label']}, {row['image']}")
                lines.append(
                    f"- {where}: the rest keeps its label on {row['kept']:.0f} % of its pixels; its "
                    f"mean logit goes {course} (random weights: {beside})."
                )
        note = "The tenth of each drawn object with the most activation is hidden; what becomes of the rest of it?"
        return Section("Without the discriminative region", lines, note)
