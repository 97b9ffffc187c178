"""predictions.png and maps.png of a run folder."""

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from perpixel.report import MapPanel, prediction_sheet, signed_panels
from recipes.image_labels.maps import Rule
from recipes.image_labels.settings import ARMS, WeakSettings
from recipes.kit.images import Images
from recipes.kit.run_folder import save_figure
from recipes.kit.summary import subject

Maps = Callable[[Tensor], tuple[Tensor, Tensor]]


def draw_arms(
    folder: Path, images: Images, arms: Mapping[str, Maps], rule: Rule, settings: WeakSettings
) -> dict[str, str]:
    """Labels of every arm, and the map of the largest object's class, for evenly spread evaluation images.

    Names of the files and what they show.
    """
    count = min(settings.evaluation.pictures, images.evaluated)
    if not count:
        return {}
    chosen = [i * images.evaluated // count for i in range(count)]
    shown, truths, panels = [], [], []
    predictions: dict[str, list[Tensor]] = {arm: [] for arm in ARMS}
    for index in chosen:
        _, batch, labels, _ = next(iter(images.evaluation(batch_size=1, far=0.0, only=[index])))
        shown.append(images.displayed(batch[0]))
        truths.append(labels[0])
        sizes = [0 if c == rule.background else int((labels == c).sum()) for c in range(images.num_classes)]
        largest = max(range(len(sizes)), key=sizes.__getitem__)
        own, name = labels[0] == largest, images.classes[largest]
        panels.append(MapPanel(f"image {index}", picture=shown[-1].permute(1, 2, 0).numpy(), region=own))
        for arm, maps_of in arms.items():
            maps, scores = maps_of(batch)
            predictions[arm].append(rule.labels(maps, scores > 0)[0])
            said = f"score of the image {float(scores[0, largest]):+.1f}"
            panels.append(MapPanel(f"{arm}: {name}", maps[0, largest], region=own, note=said))
    seed = settings.seeds[0]
    title = f"{settings.name}: {subject(settings)}, seed {seed}"
    sheet = prediction_sheet(
        shown,
        truths,
        predictions,
        classes=images.classes,
        colors=images.colors,
        captions=[f"image {index}" for index in chosen],
        ignore_index=images.ignore_index,
        title=title,
    )
    save_figure(folder / "predictions.png", sheet)
    meaning = "for the class: above 0"
    figure = signed_panels(panels, columns=1 + len(ARMS), title=title, meaning=meaning)
    save_figure(folder / "maps.png", figure)
    return {
        "predictions.png": "labels of the arms, learned without any mask, evenly spread images",
        "maps.png": "the maps of the class that covers most of each image (outlined), each with its own scale",
    }
