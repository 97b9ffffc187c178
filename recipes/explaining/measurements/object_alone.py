"""Does the object keep its label with everything else hidden? (alone.csv, alone_means.csv)"""

from perpixel.attribution import object_alone
from recipes.explaining.maps import RANDOM, TRAINED, Explanation
from recipes.explaining.measurements.measurement import Measurement, Results, Rows, Section, Tables
from recipes.explaining.statistics import ALL, Means, count, interval_text, labels_in, of_network, with_interval
from recipes.kit.tables import markdown_text

QUANTITIES = ("kept_before", "kept", "kept_elsewhere", "logit_drop", "margin_drop")


class ObjectAlone(Measurement):
    """How much of every region keeps its label when all else is hidden."""

    name = "alone"

    def measure(self, explanation: Explanation) -> Rows:
        rows = Rows()
        for region in explanation.image.regions:
            found = object_alone(
                explanation.network,
                self.explainer.batch(explanation.image),
                region.label,
                region.mask[None].to(self.explainer.device),
                baselines=self.settings.maps.baselines,
                seeds=self.settings.measure.controls,
            )
            shares = (found.kept_before, found.kept, found.kept_elsewhere.nanmean())
            values = [*(100 * float(s) for s in shares), float(found.logit_drop), float(found.margin_drop)]
            rows.append({**self.columns(explanation, region), **dict(zip(QUANTITIES, values))})
        return rows

    def tables(self, results: Results) -> Tables:
        means, rows = Means(results.measured[self.name], results.images), Rows()
        for label in labels_in(means.rows):
            wanted = {} if label == ALL else {"label": label}
            regions, seen = means.seen(wanted)
            for network in (TRAINED, RANDOM):
                row = {"label": label, "network": network, "questions": regions, "images": seen}
                for name in QUANTITIES:
                    statistic = means.of(name, {**wanted, "network": network})
                    row |= with_interval(name, statistic, means.images, seen, self.settings.measure)
                rows.append(row)
        what = "a row per region: how much of it keeps the label with all else hidden"
        return {
            "alone": (results.all_rows(self.name), what),
            "alone_means": (rows, "means of alone.csv over the measured images, with intervals"),
        }

    def section(self, results: Results) -> Section:
        rows, lines = results.tables["alone_means"], []
        random = of_network(rows, RANDOM, "label")
        for row in rows:
            if row["network"] != TRAINED or row["questions"] == 0:
                continue
            name = "All labels" if row["label"] == ALL else f"**{markdown_text(row['label'])}**"
            text = f"- {name} ({count(row['questions'], 'region')}, {count(row['images'], 'image')}): "
            whose = "their" if row["questions"] > 1 else "its"
            text += f"{interval_text(row, 'kept', ' %')} of {whose} pixels keep the label with everything else hidden"
            if row["kept_elsewhere"] == row["kept_elsewhere"]:
                elsewhere = interval_text(row, "kept_elsewhere", " %")
                text += f"; with a piece of the same shape elsewhere shown in place, {elsewhere}"
            text += f". The margin falls by {interval_text(row, 'margin_drop')} per pixel"
            lines.append(f"{text} (random weights: by {interval_text(random[row['label'],], 'margin_drop')}).")
        return Section("Does the object keep its label alone?", lines)
