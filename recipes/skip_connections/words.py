"""What a study found, in words and tables: which skip to take, and why."""

from collections.abc import Mapping, Sequence
from statistics import mean

import numpy as np

from perpixel.evaluation import IMAGES, SEEDS, BootstrapInterval, ScoreDifference
from recipes.kit.settings import Schedule
from recipes.kit.summary import Section, Summary
from recipes.kit.tables import format_ends, format_interval, format_number, markdown_table, markdown_text
from recipes.skip_connections.landing import NEAR, PLACES
from recipes.skip_connections.layers import BOTH, NONE
from recipes.skip_connections.results import CLAIMED, OF_SIZE, TESTED, Results


def summarise(
    results: Results,
    subject: str,
    source: str,
    schedule: Schedule,
    pictures: Mapping[str, Mapping[str, str]],
    files: Mapping[str, str],
) -> Summary:
    """pictures: by section, "gains", "character" and "predictions"."""
    count = f"{len(results.seeds)} seeds" if len(results.seeds) > 1 else "1 seed"
    about = (
        f"{subject}. Backbone: {source}. {len(results.single)} single skips, {results.images} images, {count}. "
        "Percent; gains in points over the same network without a skip, means over the seeds."
    )
    sections = [
        Section("Which skip helps?", [*_skip_table(results), "", *_skip_lines(results)], pictures=pictures["gains"]),
        Section(
            "Outline or meaning?", [*_gain_table(results), "", *_character_lines()], pictures=pictures["character"]
        ),
        Section("Where the labels rest", _landing_lines(results)),
        Section("Objects by size", _size_table(results), "Mean IoU of objects, which are connected pieces of a class."),
        Section("What is predicted", [], pictures=pictures["predictions"]),
        Section("IoU per class", _class_table(results)),
        Section("What it cost", _cost_lines(results, schedule)),
        Section("What this cannot say", _limits(results)),
    ]
    return Summary(f"Which skip helps {subject}?", markdown_text(about), verdict(results), sections, files)


def verdict(results: Results) -> str:
    """Which single skip to take, why, and whether FCN-8s' own two are better."""
    best, (_, skip) = results.best, results.arms[results.best]
    gain, name = results.gains[best]["mIoU"], markdown_text(best)
    reached = f"{gain.treatment:.1f} mIoU, {_points(gain.interval)} over no skip"
    where = f"stride {skip.stride}, {skip.channels} channels, after {skip.depth} convolutions"
    if gain.verdict in CLAIMED and gain.interval.value > 0:
        text = f"Take the skip from {name} ({where}): {reached}."
    elif gain.interval.value > 0:
        text = f"No single skip is shown to help. The best here is from {name} ({where}): {reached}: {gain.verdict}."
    else:
        text = f"Take none: the best single skip, from {name} ({where}), reaches {reached}: {gain.verdict}."
    outline, meaning = (results.gains[best][metric].interval for metric in TESTED[1:])
    brought = results.character(best)
    what = "What it brings is not shown" if brought == "neither shown" else f"It brings {brought}"
    text += f" {what}: boundary F {_points(outline)}, interior accuracy {_points(meaning)}."
    equals = [arm for arm, one in results.behind.items() if one.verdict not in CLAIMED]
    if equals:
        text += f" Not told apart from it: {markdown_text(', '.join(equals))}."
    if (both := results.against_both) is not None:
        text += f" FCN-8s' own two skips against this one: {_points(both.interval)} mIoU: {_word(both)}."
    return text


def _points(interval: BootstrapInterval, digits: int = 1) -> str:
    return f"{format_interval(interval.value, interval.low, interval.high, digits, sign=True)}"


def _word(difference: ScoreDifference) -> str:
    return {"helped": "better", "hurt": "worse"}.get(difference.verdict, difference.verdict)


def _skip_table(results: Results) -> list[str]:
    head = ("skip from", "stride", "channels", "convolutions", "parameters", *("mIoU", "gain", "interval", "verdict"))
    rows = []
    for arm, (_, *skips) in results.arms.items():
        one = results.gains[arm]["mIoU"] if arm in results.gains else None
        rank = results.ranks.get(arm)
        numbers = [" + ".join(str(getattr(s, of)) for s in skips) for of in ("stride", "channels", "depth")]
        cells = [arm, *numbers, f"{results.parameters(arm):,}", format_number(results.score(arm, "mIoU"))]
        if one is not None:
            low, high = one.interval.low, one.interval.high
            cells += [format_number(one.interval.value, sign=True), format_ends(low, high, sign=True), one.verdict]
        else:
            cells += ["", "", ""]
        cells += [f"{rank.value} [{rank.low}, {rank.high}]" if rank else "", f"{results.seconds(arm):.1f}"]
        rows.append(cells)
    return markdown_table((*head, "rank", "s"), rows, left=(0, 8))


def _skip_lines(results: Results) -> list[str]:
    level = 100 * results.evaluation.level
    second = min(results.behind, key=lambda arm: results.behind[arm].interval.value, default=None)
    lines = []
    if second is not None:
        one = results.behind[second]
        by = f"; by seed {', '.join(f'{value:+.2f}' for value in one.per_seed)}" if len(one.per_seed) > 1 else ""
        lines.append(
            f"- The best against the next, {markdown_text(second)}: {_points(one.interval, 2)} points: {_word(one)}"
            f"{by}."
        )
    told = [arm for arm, one in results.behind.items() if one.verdict in CLAIMED]
    if results.behind:
        lines.append(
            f"- The best is told apart from {len(told)} of the {len(results.behind)} other single skips (a table of "
            "its own). It was chosen on these same images, which flatters it."
        )
    if (both := results.against_both) is not None:
        names = " and ".join(markdown_text(one.name) for one in results.arms[BOTH][1:])
        lines.append(
            f"- FCN-8s' own, {names} together, less the best: {_points(both.interval, 2)} points: {_word(both)}."
        )
    lines.append(
        f"- Rank: place by mIoU among the single skips; its ends hold {level:g} % of the places on draws of images and "
        "seeds, both drawn with replacement."
    )
    return lines


def _gain_table(results: Results) -> list[str]:
    head = ["skip from"]
    for metric in TESTED[1:]:
        head += [f"{metric} gain", "verdict"]
    rows = []
    for arm, some in results.gains.items():
        cells = [arm]
        for metric in TESTED[1:]:
            cells += [_points(some[metric].interval, 2), some[metric].verdict]
        rows.append([*cells, results.character(arm)])
    return markdown_table((*head, "brings"), rows, left=(0, 2, 4, 5))


def _character_lines() -> list[str]:
    return [
        "- Outline is shown where boundary F gains, meaning where interior accuracy does: the share of pixels farther "
        "from every labelled boundary than the tolerance of that score that are labelled right."
    ]


def _landing_lines(results: Results) -> list[str]:
    if not results.landing:
        return []
    head = ["network"]
    for place in PLACES[:2]:
        head += [place, "less no skip"]
    rows = []
    for arm, one in results.landing.items():
        cells = [arm]
        for place in PLACES[:2]:
            cells += [format_number(one.percent[place], 1)]
            cells += [_points(results.landed[arm][place]) if arm in results.landed else ""]
        rows.append([*cells, format_number(one.percent[PLACES[2]], 1) if arm != NONE else ""])
    images = len(results.landing[NONE].mass)
    return [
        *markdown_table([*head, PLACES[2]], rows),
        "",
        f"- Percent of the mass of the fixations of the predicted labels of {images} images, first seed: on the object "
        f"of their label; within {100 * NEAR:g} % of the image diagonal of a labelled boundary; by way of a skip.",
        "- Intervals are over these images, for these trained networks; nothing is claimed from one seed.",
    ]


def _size_table(results: Results) -> list[str]:
    rows = [(arm, *(format_number(results.score(arm, of)) for of in OF_SIZE)) for arm in results.arms]
    return markdown_table(("network", *(of.removeprefix("IoU of ").removesuffix(" objects") for of in OF_SIZE)), rows)


def _class_table(results: Results) -> list[str]:
    rows = results.rows()
    names = [f"IoU of {name}" for name in results.classes]
    cells = [(row["network"], *(format_number(row[name], 1) for name in names)) for row in rows]
    return markdown_table(("network", *results.classes), cells)


def _cost_lines(results: Results, schedule: Schedule) -> list[str]:
    each = mean(results.seconds(arm) for arm in results.arms)
    networks = len(results.arms) * len(results.seeds)
    if (cost := results.cost) is None:
        return [f"- End to end: {each:.1f} s of training steps a network, {networks} networks."]
    lines = [
        f"- Cached features: {cost.bytes / 1e6:.0f} MB, computed once in {cost.seconds:.1f} s; then {each:.2f} s a "
        f"network, {networks} networks."
    ]
    if not np.isnan(cost.whole_step):
        share = each + cost.seconds / networks
        whole = cost.whole_step * cost.steps
        lines.append(
            f"- End to end the same {cost.steps} steps of {schedule.batch_size} images would take {whole:.0f} s "
            f"({cost.whole_step:.2f} s a step, measured in this run): {whole / share:.0f} times as long as on cached "
            "features, their computation shared among all networks."
        )
    return lines


def _limits(results: Results) -> list[str]:
    level = 100 * results.evaluation.level
    lines = [
        f"- Intervals ({level:g} %) are over images. An effect is claimed (helped, hurt) from {IMAGES} images and "
        f"{SEEDS} seeds on, where both intervals exclude zero and Holm's correction for all rows and the three scores "
        "leaves it.",
        "- Seeds are those of the order of images and of the first weights; the backbone is one and the same: "
        "another training of it may tell another story.",
    ]
    if results.cost is not None:
        lines.append(
            "- The backbone is frozen and was not trained with the skip: what a layer could learn to give for it, only "
            "--study.end_to_end true tells."
        )
    return lines


def findings(results: Results) -> Sequence[str]:
    """For results.json."""
    return [verdict(results), *_skip_lines(results)]
