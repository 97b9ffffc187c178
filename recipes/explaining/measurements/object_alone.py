"""Does the object keep its label with everything else hidden? (alone.csv, alone_means.csv)"""

from perpixel.attribution import object_alone
from perpixel.evaluation import IMAGES
from recipes.explaining.maps import RANDOM, TRAINED, Explanation
from recipes.explaining.measurements.measurement import Measurement, Results, Rows, Tables
from recipes.explaining.statistics import ALL, Means, interval_text, labels_in, of_network, with_interval
from recipes.kit.summary import Section
from recipes.kit.tables import markdown_table

# percent of the region's pixels with the label: in the whole image, shown alone, a piece of its shape shown elsewhere
QUANTITIES = ("whole_percent", "alone_percent", "elsewhere_percent", "logit_fall", "margin_fall")
HEAD = ("label", "keeps it alone (%)", "a piece elsewhere gets it (%)", "margin falls by", "random weights")


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
                row = {"label": label, "network": network, "regions": regions, "images": seen}
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
        rows = results.tables["alone_means"]
        random, body = of_network(rows, RANDOM, "label"), []
        for row in rows:
            if row["network"] == TRAINED and row["regions"]:
                shares = [interval_text(row, name, 1) for name in QUANTITIES[1:3]]
                falls = [interval_text(of, "margin_fall") for of in (row, random[row["label"],])]
                body.append([row["label"], *shares, *falls, str(row["regions"]), str(row["images"])])
        note = (
            "Everything but the object is hidden: how many of its pixels keep the label, and how far the margin falls, "
            "per pixel. Beside it, a piece of the same shape from elsewhere in the image, asked for the same label. "
            f"Intervals over images where there are {IMAGES} or more."
        )
        table = markdown_table((*HEAD, "regions", "images"), body)
        return Section("Does the object keep its label alone?", table if body else [], note)
