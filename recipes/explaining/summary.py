"""summary.md: what the numbers show, in plain words, each beside its control, and what they cannot show."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from recipes.explaining.maps import TRAINED, Row
from recipes.explaining.numbers import ALL, FEWEST, RANDOM
from recipes.explaining.questions import EVIDENCE
from recipes.explaining.settings import INFLUENCE, ExplainSettings

TELLING = 3  # classes named per label
_SALIENT_NOTE = "The tenth of each drawn object with the most activation is hidden; what becomes of the rest of it?"


@dataclass
class Tables:
    """Everything the summary speaks of; `curves`: a row per drawn question, method, kind of curve and score."""

    about: str
    measured: int
    drawn: Sequence[str]
    asked: Sequence[str]
    means: Sequence[Row]
    alone: Sequence[Row]
    matrix: Sequence[Row]
    curves: Sequence[Row] = ()
    salient: Sequence[Row] = ()
    warnings: Sequence[str] = ()
    random_seeds: Sequence[int] = (0,)
    files: Mapping[str, str] = field(default_factory=dict)


def count(number: int, what: str) -> str:
    """ "1 image", "2 images"."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def span(row: Row, name: str, unit: str = "", sign: bool = False) -> str:
    """Value and interval of a row: "1.20 [0.90, 1.51]"; without ends where there are none."""
    if row[name] != row[name]:
        return "undefined"
    form = "{:+.2f}" if sign else "{:.1f}" if unit else "{:.2f}"
    value = form.format(row[name]) + unit
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    if low != low:
        return value
    return f"{value} [{form.format(low)}, {form.format(high)}]"


def verdict(row: Row, name: str, more: str, less: str) -> str:
    """`more` or `less` where the interval excludes zero, else "undecided"."""
    if row[name] != row[name]:
        return "undefined"
    if row[f"{name}_low"] != row[f"{name}_low"]:
        return f"fewer than {FEWEST} images: no interval"
    return more if row[f"{name}_low"] > 0 else less if row[f"{name}_high"] < 0 else "undecided"


def context_words(tables: Tables, level: float) -> list[str]:
    """Per label asked about: the classes whose hiding costs it the most beyond as much hidden at random."""
    own = [r for r in tables.matrix if r["network"] == TRAINED and r["class"] != r["hidden"]]
    random = {(r["class"], r["hidden"]): r for r in tables.matrix if r["network"] == RANDOM}
    words = []
    for label in tables.asked:
        rows = [r for r in own if r["class"] == label and r["excess"] == r["excess"]]
        certain = [r for r in rows if r["excess_low"] > 0]
        certain.sort(key=lambda r: -r["excess"])
        told = []
        for row in certain[:TELLING]:
            control = random.get((row["class"], row["hidden"]))
            beside = "" if control is None else f"; random weights {span(control, 'excess', sign=True)}"
            told.append(
                f"**{row['hidden']}** {span(row, 'excess', sign=True)}, {count(row['images'], 'image')}{beside}"
            )
        against = sorted((r for r in rows if r["excess_high"] < 0), key=lambda r: r["excess"])[:TELLING]
        known = [r for r in rows if r["excess_low"] == r["excess_low"]]
        if told:
            text = f"- **{label}** leans on " + "; ".join(told) + "."
        elif not known:
            seen = max((r["images"] for r in rows), default=0)
            text = f"- **{label}**: too few images to say (with any one other class in at most {seen})."
        else:
            text = f"- **{label}**: no class whose hiding costs it certainly more than as much hidden at random."
        if against:
            named = ", ".join(f"{r['hidden']} {span(r, 'excess', sign=True)}" for r in against)
            text += f" Hiding these costs it less than hiding as much at random: {named}."
        words.append(text)
    entries = [r for r in own if r["excess_low"] == r["excess_low"]]
    if entries:
        expected = len(entries) * (1 - level) / 2
        outside = sum(r["excess_low"] > 0 for r in entries)
        have = "has" if outside == 1 else "have"
        words.append(
            f"\nOf {len(entries)} pairs of different classes, {outside} {have} an interval above zero; about "
            f"{expected:.1f} would by luck alone, if every interval held what it says and nothing leaned on anything."
        )
    return words


def alone_words(tables: Tables) -> list[str]:
    """Per label: what remains of it with all context hidden."""
    words = []
    random = {r["label"]: r for r in tables.alone if r["network"] == RANDOM}
    for row in tables.alone:
        if row["network"] != TRAINED or row["questions"] == 0:
            continue
        name = "All labels" if row["label"] == ALL else f"**{row['label']}**"
        text = f"- {name} ({count(row['questions'], 'region')}, {count(row['images'], 'image')}): "
        whose = "their" if row["questions"] > 1 else "its"
        text += f"{span(row, 'kept', ' %')} of {whose} pixels keep the label with everything else hidden"
        if row["kept_elsewhere"] == row["kept_elsewhere"]:
            text += f"; with a piece of the same shape elsewhere shown in place, {span(row, 'kept_elsewhere', ' %')}"
        text += f". The margin falls by {span(row, 'margin_drop')} per pixel"
        other = random.get(row["label"])
        if other is not None:
            text += f" (random weights: by {span(other, 'margin_drop')})"
        words.append(text + ".")
    return words


def share_words(tables: Tables) -> list[str]:
    """Context share and reach of the maps, beside the random weights' on the same regions."""
    words = []
    for row in tables.means:
        if row["kind"] != "label" or row["label"] != ALL or row["network"] != TRAINED:
            continue
        other = _same(tables.means, row, RANDOM)
        if row["quantity"] == "context_share":
            difference = verdict(row, "minus_random", "more than random weights", "less than random weights")
            words.append(
                f"- {row['method']}: {span(row, 'value', ' %')} of the absolute values lie outside the region "
                f"(evenly spread: {row['chance']:.1f} %; random weights: {span(other, 'value', ' %')}); difference to "
                f"random weights {span(row, 'minus_random', sign=True)} points: {difference}."
            )
        else:
            words.append(
                f"  Half of what lies outside is within {span(row, 'value')} pixels of it (evenly spread: "
                f"{row['chance']:.1f}; random weights: {span(other, 'value')})."
            )
    return words


def _same(rows: Sequence[Row], row: Row, network: str) -> Row:
    keys = ("kind", "label", "method", "quantity")
    return next(r for r in rows if r["network"] == network and all(r[k] == row[k] for k in keys))


def evidence_words(tables: Tables) -> list[str]:
    """Synthetic data: do the maps find what decides?"""
    words = []
    for kind, what in EVIDENCE.items():
        rows = [r for r in tables.means if r["kind"] == kind and r["network"] == TRAINED]
        if not rows:
            continue
        asked = f"{count(rows[0]['questions'], 'region')}, {count(rows[0]['images'], 'image')}"
        words.append(f"- *{kind}* (evidence: {what}; {asked}):")
        for row in rows:
            if row["quantity"] != "evidence":
                continue
            other = _same(tables.means, row, RANDOM)
            hit = next(r for r in rows if r["method"] == row["method"] and r["quantity"] == "pointing")
            told = verdict(row, "minus_random", "above random weights", "below random weights")
            words.append(
                f"  - {row['method']}: {span(row, 'value', ' %')} of the positive values on the evidence (chance "
                f"{row['chance']:.1f} %, random weights {span(other, 'value', ' %')}: {told}); the highest value lies "
                f"there in {span(hit, 'value', ' %')} (chance {hit['chance']:.1f} %, random weights "
                f"{span(_same(tables.means, hit, RANDOM), 'value', ' %')})."
            )
    return words


def curve_words(tables: Tables) -> list[str]:
    """Deletion and insertion of the drawn questions, against random orders."""
    words = []
    rows = [r for r in tables.curves if r["score"] == "margin"] or list(tables.curves)
    for method in dict.fromkeys(r["method"] for r in rows):
        for kind in ("deletion", "insertion"):
            mine = [r for r in rows if r["method"] == method and r["curve"] == kind]
            better = sum(r["gain"] > 0 for r in mine)
            beaten = sum(r["beaten"] for r in mine) / len(mine)
            nearest = sum(r["gain_nearest"] > 0 for r in mine if r["gain_nearest"] == r["gain_nearest"])
            words.append(
                f"- {method}, {kind}: better than random order in {better} of {len(mine)} drawn regions "
                f"(beats {100 * beaten:.0f} % of the random orders), better than nearest-first in {nearest}."
            )
        alike = [r["correlation_reset"] for r in rows if r["method"] == method]
        alike = [value for value in alike if value == value]
        if alike:
            words.append(
                f"- {method}: with all layers reset, the map's rank correlation with the first is "
                f"{sum(alike) / len(alike):+.2f} (near 1 would mean that it does not show what was learnt)."
            )
    return words


def salient_words(tables: Tables) -> list[str]:
    """The drawn objects without their discriminative region."""
    words = []
    random = {(r["image"], r["label"]): r for r in tables.salient if r["network"] != TRAINED}
    for row in tables.salient:
        if row["network"] != TRAINED or row["lost"] != row["lost"]:
            continue
        text = f"- {row['label']}, {row['image']}: the rest keeps its label on {row['kept']:.0f} % of its pixels"
        text += f"; its mean logit goes from {row['held']:.2f} to {row['held'] - row['lost']:.2f}"
        other = random.get((row["image"], row["label"]))
        if other is not None:
            text += f" (random weights: from {other['held']:.2f} to {other['held'] - other['lost']:.2f})"
        words.append(text + ".")
    return words


def limits(settings: ExplainSettings, tables: Tables) -> list[str]:
    """What cannot be said."""
    score = "its margin over the best other class" if settings.ask.score == "margin" else "its logit"
    draws = count(len(tables.random_seeds), "draw")
    words = [
        "Hiding makes pictures that the network never saw; what it says of them is not what it would say had the thing "
        f"not been there. Hidden parts are replaced by baseline '{settings.maps.baselines}'; another gives other maps.",
        f"Maps explain {score}; the class-context matrix speaks of logits: that a logit falls does not mean that the "
        "label changes.",
        "Each patch is hidden alone: of two that stand in for each other, neither shows. The matrix hides whole "
        "classes, with the patches they touch, so a part of the neighbours is hidden with them.",
        "A random choice of as many pixels also hides parts of the object itself, which hiding another class does "
        "less: the control is strict, and an excess below zero does not mean that the class speaks against the label.",
        f"Intervals ({100 * settings.measure.level:g} %) are over images, for this one network: another training may "
        "lean on other things. Several regions of an image, and images of one sequence, resemble each other, so the "
        "intervals are rather too narrow.",
        f"The control network has random weights ({draws}) and the statistics of these images "
        "in its normalisation layers. Where it shows what the trained one shows, that comes of the architecture and "
        "the data, not of what was learnt.",
    ]
    if tables.measured < 8:
        words.insert(0, f"{count(tables.measured, 'image')}: too few for intervals that can be trusted.")
    return words


def summary(settings: ExplainSettings, tables: Tables) -> str:
    """The whole text."""
    patch = settings.maps.patch
    told = f"{patch} pixels" if patch else "an eighth of the shorter side"
    lines = [
        f"# {settings.name}: what decides {', '.join(tables.asked) if len(tables.asked) < 5 else 'the labels'}?",
        "",
        f"{settings.model.name} on {settings.data.name}, weights from {tables.about}. Measured on "
        f"{count(tables.measured, 'image')}; drawn: {', '.join(tables.drawn)}. Patches: {told}. A region is where the "
        "network predicts the label.",
    ]
    sections = [
        ("Which context decides", _context_note(settings), context_words(tables, settings.measure.level)),
        ("Does the object keep its label alone?", "", alone_words(tables)),
        ("How much lies outside the region", _share_note(settings), share_words(tables)),
        ("Do the maps find what decides?", "", evidence_words(tables)),
        ("Deletion and insertion", _curve_note(settings), curve_words(tables)),
        ("Without the discriminative region", _SALIENT_NOTE, salient_words(tables)),
        ("Warnings", "", [f"- {w}" for w in tables.warnings]),
        ("What this does not say", "", [f"- {w}" for w in limits(settings, tables)]),
        ("Files", "", [f"- `{name}`: {what}" for name, what in tables.files.items()]),
    ]
    for title, note, words in sections:
        if words:
            lines += ["", f"## {title}", ""] + ([note, ""] if note else []) + list(words)
    return "\n".join(lines) + "\n"


def _context_note(settings: ExplainSettings) -> str:
    whose, least = "labelled" if settings.measure.truth else "predicted", 100 * settings.measure.least
    return (
        "Mean fall of a class's logit at its visible pixels when another class is hidden (all patches with more than "
        f"{least:g} % of pixels {whose} so), less the fall when as many pixels are hidden at random places, with its "
        f"interval over images (from {FEWEST} images on)."
    )


def _share_note(settings: ExplainSettings) -> str:
    named = f"the maps of {INFLUENCE} are as coarse as its patches"
    return (
        "The context share alone cannot tell a trained from a random network; it only means something as a difference "
        f"to it. The border of the region is left out ({named})."
    )


def _curve_note(settings: ExplainSettings) -> str:
    return (
        "The object stays; patches of context are removed (deletion) or put back (insertion) in the order of the map, "
        f"and the margin of the region is read. Control: {settings.curves.seeds} random orders, and nearest first."
    )
