"""curves.png and predictions.png of a run folder."""

import io
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from perpixel.evaluation import SegmentationScores, pixel_accuracy, predict_labels
from perpixel.report import prediction_sheet, training_curves
from recipes.kit.images import Images
from recipes.kit.run_folder import write_atomically
from recipes.training.history import read_json_lines

PANELS = {
    "train/base": "cross-entropy in training",
    "train/template_similarity": "template similarity in training",
    "miou": "mIoU (%)",
    "pixel_accuracy": "pixel accuracy (%)",
    "boundary_f": "boundary F (%)",
    "far_body": "far-body accuracy (%)",
}


def draw_curves(
    folders: Mapping[str, Mapping[int, Path]], starts: Mapping[int, SegmentationScores], path: Path, title: str
) -> None:
    """curves.png: metrics per epoch of every arm (arm -> seed -> its folder), seeds of one arm in one colour.

    Epoch 0 is the start they share: that of the seed, or the only one.
    """
    histories, colors = {}, {}
    for number, (arm, by_seed) in enumerate(folders.items()):
        for seed, folder in by_seed.items():
            start = starts.get(seed, next(iter(starts.values())))
            rows = [{"epoch": 0, **start.row([])}, *read_json_lines(folder / "metrics.jsonl")]
            for row in rows:
                row.update({k: 100 * row[k] for k in PANELS if not k.startswith("train/") and row.get(k) is not None})
            name = arm if seed == next(iter(by_seed)) else f"{arm}, seed {seed}"
            histories[name], colors[name] = rows, number
    terms = dict.fromkeys(key for rows in histories.values() for row in rows for key in row if key.startswith("train/"))
    others = {key: f"{key.removeprefix('train/')} in training" for key in terms if key != "train/total"}
    if histories:
        _save(training_curves(histories, {**others, **PANELS}, title=title, colors=colors), path)


def telling_images(control: SegmentationScores, loss: SegmentationScores, count: int) -> list[tuple[int, str]]:
    """Evaluation images that show what changed, with the reason, chosen by the change of pixel accuracy.

    In turns: the largest gain, the largest loss, the median; so that good and bad news get the same room.
    """
    change = pixel_accuracy(loss.confusion) - pixel_accuracy(control.confusion)
    known = change.isfinite().nonzero().flatten()
    order = known[change[known].argsort(stable=True)].tolist()
    picks: dict[int, str] = {}
    ways = (("largest gain", -1, -1), ("largest loss", 0, 1), ("typical", len(order) // 2, 1))
    for number in range(min(count, len(order))):
        name, place, step = ways[number % 3]
        index = order[(place + step * (number // 3)) % len(order)]
        picks.setdefault(index, name if number < 3 else name.replace("largest", "large"))
    return list(picks.items())


@torch.no_grad()
def draw_predictions(
    networks: Mapping[str, nn.Module], images: Images, picks: list[tuple[int, str]], path: Path, title: str
) -> None:
    """predictions.png: image, truth, and prediction and error of every network."""
    if not picks:
        return
    shown, truths = [], []
    found: dict[str, list[torch.Tensor]] = {name: [] for name in networks}
    for index, _ in picks:
        _, batch, labels, _ = next(iter(images.evaluation(batch_size=1, far=0.0, only=[index])))
        shown.append(images.displayed(batch[0]))
        truths.append(labels[0])
        for name, network in networks.items():
            found[name].append(predict_labels(network.eval(), batch, labels.shape[-2:])[0])
    figure = prediction_sheet(
        shown,
        truths,
        found,
        classes=images.classes,
        colors=images.colors,
        captions=[f"{reason}\n(image {index})" for index, reason in picks],
        ignore_index=images.ignore_index,
        title=title,
    )
    _save(figure, path)


def _save(figure: object, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")  # type: ignore[attr-defined]
    write_atomically(path, buffer.getvalue())
