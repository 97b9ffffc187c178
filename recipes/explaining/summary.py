"""What the measurements of an explanation cannot show, in plain words."""

from perpixel.evaluation import IMAGES
from recipes.explaining.settings import ExplainSettings
from recipes.explaining.statistics import count


def limits(settings: ExplainSettings, images: int) -> list[str]:
    """What cannot be said."""
    score = "its margin over the best other class" if settings.ask.score == "margin" else "its logit"
    draws = count(len(settings.measure.random_seeds), "draw")
    few = [f"{count(images, 'image')}: too few for intervals; all that is said is of these images."]
    return [
        *(few if images < IMAGES else []),
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
