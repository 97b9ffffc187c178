"""Synthetic data: do the maps find what decides? Columns of shares.csv; their means in sentences and as a chart."""

from collections.abc import Iterator

from perpixel.attribution import evidence_share, pointing
from perpixel.report import interval_chart
from recipes.explaining.images import EVIDENCE
from recipes.explaining.maps import RANDOM, TRAINED, SignedMap
from recipes.explaining.measurements.measurement import Figure, Measurement, Results, Section
from recipes.explaining.statistics import count, interval_text, of_network, verdict


def evidence_columns(found: SignedMap) -> dict[str, float]:
    """What lies on the known evidence of the region, beside chance, in percent; NaN where none is known."""
    names = ("evidence", "evidence_chance", "pointing", "pointing_chance")
    if found.region.evidence is None:
        return dict.fromkeys(names, float("nan"))
    evidence = found.region.evidence[None]
    on, hit = evidence_share(found.values[None], evidence, part="positive"), pointing(found.values[None], evidence)
    return {name: 100 * float(value) for name, value in zip(names, (on.share, on.chance, hit.hit, hit.chance))}


class EvidenceShares(Measurement):
    """Mean share of the positive values on known evidence; measured with the maps (`SignedMaps`)."""

    name = "evidence"

    def section(self, results: Results) -> Section:
        means, lines = results.tables["means"], list[str]()
        own, random = (of_network(means, name, "kind", "method", "quantity") for name in (TRAINED, RANDOM))
        for kind, what in EVIDENCE.items():
            rows = [row for (of, _, quantity), row in own.items() if of == kind and quantity == "evidence"]
            if rows:
                seen = f"{count(rows[0]['questions'], 'region')}, {count(rows[0]['images'], 'image')}"
                lines.append(f"- *{kind}* (evidence: {what}; {seen}):")
            for row in rows:
                method = row["method"]
                hit = own[kind, method, "pointing"]
                against = verdict(row, "minus_random", "above random weights", "below random weights")
                others = [interval_text(random[kind, method, q], "value", " %") for q in ("evidence", "pointing")]
                lines.append(
                    f"  - {method}: {interval_text(row, 'value', ' %')} of the positive values on the evidence (chance "
                    f"{row['chance']:.1f} %, random weights {others[0]}: {against}); the highest value lies "
                    f"there in {interval_text(hit, 'value', ' %')} (chance {hit['chance']:.1f} %, random weights "
                    f"{others[1]})."
                )
        return Section("Do the maps find what decides?", lines)

    def charts(self, results: Results) -> Iterator[Figure]:
        rows = [r for r in results.tables["means"] if r["quantity"] == "evidence"]
        own, random = (of_network(rows, name, "kind", "method") for name in (TRAINED, RANDOM))
        pairs = sorted(own, key=lambda pair: list(EVIDENCE).index(pair[0]))
        if pairs:
            ends = ("value", "value_low", "value_high")
            found = {TRAINED: own, RANDOM: random}
            series = {name: [tuple(of[pair][e] for e in ends) for pair in pairs] for name, of in found.items()}
            figure = interval_chart(
                [f"{kind}: {method}" for kind, method in pairs],
                series,
                marks={"chance: the evidence's share of the image": [random[pair]["chance"] for pair in pairs]},
                xlabel="share of the positive values on the evidence (%)",
                title=f"{self.subject}: do the maps find what decides?",
            )
            yield "evidence", figure, "share of the positive values on the known evidence, beside controls"
