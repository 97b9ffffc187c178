"""summary.md: what the measurements found, in plain words, each beside its control, and what they cannot show."""

from collections.abc import Mapping, Sequence

from recipes.explaining.measurements import Results, Section
from recipes.explaining.settings import ExplainSettings
from recipes.explaining.statistics import count
from recipes.kit.tables import markdown_text


def summary(
    settings: ExplainSettings,
    results: Results,
    sections: Sequence[Section],
    warnings: Sequence[str],
    files: Mapping[str, str],
) -> str:
    """The whole text; files: what they show."""
    patch = settings.maps.patch
    labels = markdown_text(", ".join(results.labels)) if len(results.labels) < 5 else "the labels"
    lines = [
        f"# {markdown_text(settings.name)}: what decides {labels}?",
        "",
        f"{settings.model.name} on {settings.data.name}, weights from {markdown_text(results.weights)}. Measured on "
        f"{count(len(results.images), 'image')}; drawn: {markdown_text(', '.join(results.drawn_images))}. Patches: "
        f"{f'{patch} pixels' if patch else 'an eighth of the shorter side'}. A region is where the network predicts "
        "the label.",
    ]
    for section in (
        *sections,
        Section("Warnings", [f"- {markdown_text(warning)}" for warning in warnings]),
        Section("What this does not say", [f"- {limit}" for limit in limits(settings, len(results.images))]),
        Section("Files", [f"- `{name}`: {markdown_text(what)}" for name, what in files.items()]),
    ):
        if section.lines:
            lines += ["", f"## {section.title}", "", *([section.note, ""] if section.note else []), *section.lines]
    return "\n".join(lines) + "\n"


def limits(settings: ExplainSettings, images: int) -> list[str]:
    """What cannot be said."""
    score = "its margin over the best other class" if settings.ask.score == "margin" else "its logit"
    draws = count(len(settings.measure.random_seeds), "draw")
    few = [f"{count(images, 'image')}: too few for intervals that can be trusted."] if images < 8 else []
    return [
        *few,
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
