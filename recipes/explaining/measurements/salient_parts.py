"""The drawn objects without the part that decides most: what becomes of the rest? (salient.csv, salient-IMAGE.png)"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from perpixel import SalientParts, salient_parts
from recipes.explaining.maps import RANDOM, TRAINED, Explanation
from recipes.explaining.measurements.measurement import Figure, Measurement, Results, Rows, Tables
from recipes.explaining.statistics import of_network
from recipes.kit.summary import Section
from recipes.kit.tables import markdown_table

# columns of salient.csv of what `SalientParts.rows` names
COLUMNS = {
    "region_pixels": "hidden_pixels",
    "rest_pixels": "rest_pixels",
    "held": "rest_logit_before",
    "lost": "rest_logit_lost",
    "gained": "logit_gained_elsewhere",
    "kept": "rest_keeps_label_percent",
    "iou_before": "iou_before_percent",
    "iou_after": "iou_after_percent",
}
OF_OBJECTS = ("image", "label", "region", "rest", "segmentation", "without", "before", "after", "pictures", "hidden")


class ObjectsWithoutSalientParts(Measurement):
    """Objects are the regions, the same for all networks; the tenth with the most class activation is hidden."""

    name = "salient"
    drawn_only = True

    def measure(self, explanation: Explanation) -> Rows:
        rows = Rows()
        for row in (row for parts in self._parts(explanation) for row in parts.rows()):
            values = {new: row[old] * (100 if new.endswith("percent") else 1) for old, new in COLUMNS.items()}
            label = self.images.classes[int(row["label"])]
            named = {"image": explanation.image.name, "label": label, "network": explanation.network_name}
            rows.append({**named, **values})
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
            what = f"{image.name}: objects without the part that decides most"
            yield f"salient-{image.file_name}", figure, what

    def tables(self, results: Results) -> Tables:
        what = "a row per drawn object: what the rest of it keeps and loses without the part that decides most"
        return {"salient": (results.drawn[self.name], what)}

    def section(self, results: Results) -> Section:
        own, random = (of_network(results.drawn[self.name], name, "image", "label") for name in (TRAINED, RANDOM))
        body = []
        for key, row in own.items():
            held, lost, kept = (row[f"rest_{name}"] for name in ("logit_before", "logit_lost", "keeps_label_percent"))
            if lost == lost:
                before, less = (random[key][f"rest_logit_{name}"] for name in ("before", "lost"))
                texts = [f"{held:.2f} → {held - lost:.2f}", f"{before:.2f} → {before - less:.2f}"]
                body.append([f"{row['label']}, {row['image']}", f"{kept:.0f}", *texts])
        head = ("object", "the rest keeps its label (%)", "its mean logit", "random weights")
        note = "The tenth of each drawn object with the most activation is hidden: what becomes of the rest of it? On "
        note += "these images: there are too few of them for more."
        return Section("Without the part that decides most", markdown_table(head, body) if body else [], note)
