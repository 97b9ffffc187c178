"""curves.png of a run folder, and the images of its predictions.png."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from perpixel.evaluation import SegmentationScores, pixel_accuracy
from perpixel.report import training_curves
from recipes.kit.run_folder import save_figure

PERCENT = {
    "miou": "mIoU (%)",
    "pixel_accuracy": "pixel accuracy (%)",
    "boundary_f": "boundary F (%)",
    "accuracy_far_from_head": "accuracy far from the head (%)",
}


def draw_curves(
    path: Path,
    histories: Mapping[str, Mapping[int, Sequence[Mapping[str, Any]]]],
    starts: Mapping[int, SegmentationScores],
    title: str,
) -> None:
    """Metrics per epoch of every arm (arm -> seed -> rows), seeds of one arm in one colour.

    Epoch 0 is the start they share: that of the seed, or the only one.
    """
    lines, colors = {}, {}
    for number, (arm, by_seed) in enumerate(histories.items()):
        for seed, epochs in by_seed.items():
            start = starts.get(seed, next(iter(starts.values())))
            rows = [{"epoch": 0, **start.row()}, *map(dict, epochs)]
            for row in rows:
                row.update({key: 100 * row[key] for key in PERCENT if row.get(key) is not None})
            name = arm if seed == next(iter(by_seed)) else f"{arm}, seed {seed}"
            lines[name], colors[name] = rows, number
    terms = dict.fromkeys(key for rows in lines.values() for row in rows for key in row if key.startswith("train/"))
    panels = {key: f"{key.removeprefix('train/').replace('_', ' ')} in training" for key in terms}
    panels.pop("train/total", None)
    panels["train/base"] = "cross-entropy in training"
    save_figure(path, training_curves(lines, {**panels, **PERCENT}, title=title, colors=colors))


def select_examples(control: SegmentationScores, loss: SegmentationScores, count: int) -> list[tuple[int, str]]:
    """Evaluation images that show what changed, with the reason, chosen by the change of pixel accuracy.

    In turns: the largest gain, the largest loss, the median; so that good and bad news get the same room. A gain is
    called so only if it is one.
    """
    before, after = pixel_accuracy(control.confusion), pixel_accuracy(loss.confusion)
    change = after - before
    known = change.isfinite().nonzero().flatten()
    order = known[change[known].argsort(stable=True)].tolist()
    examples: dict[int, str] = {}
    turns = ((-1, -1), (0, 1), (len(order) // 2, 1))
    for number in range(min(count, len(order))):
        turn, again = number % 3, number // 3
        place, step = turns[turn]
        index = order[(place + step * again) % len(order)]
        gain = float(change[index])
        reason = "gain" if gain > 0 else "loss" if gain < 0 else "no change"
        if turn == 2:
            reason = f"typical: {reason}"
        elif gain and not again and len(order) > 1:  # where all have lost, the first is the smallest loss
            reason = f"{'largest' if (turn == 0) == (gain > 0) else 'smallest'} {reason}"
        examples.setdefault(index, f"{reason}\n{_change(float(before[index]), float(after[index]))}")
    return list(examples.items())


def _change(before: float, after: float) -> str:
    """Two shares such as "8.8 → 8.5 %", with as many digits as tell them apart, up to four."""
    for digits in range(1, 5):
        texts = [f"{100 * share:.{digits}f}" for share in (before, after)]
        if texts[0] != texts[1]:
            return f"{texts[0]} → {texts[1]} %"
    return f"{100 * before:.1f} → {100 * after:.1f} %"
