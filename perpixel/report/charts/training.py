"""Training curves and prediction sheets as matplotlib figures, without touching matplotlib's global state."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from perpixel.checks import check_tensor, complain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VOID_COLOR = (0.80, 0.80, 0.80)
RIGHT_COLOR, WRONG_COLOR = (0.97, 0.97, 0.95), (0.80, 0.15, 0.18)
_LINES = ("#4c566a", "#c8553d", "#2a7f62", "#8a5fa8", "#c08a1e", "#3b7ea1")


def _figure(width: float, height: float) -> "Figure":
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('figures need matplotlib: pip install "perpixel[recipes]"') from error
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def training_curves(
    histories: Mapping[str, Sequence[Mapping[str, Any]]],
    panels: Mapping[str, str],
    *,
    x: str = "epoch",
    title: str = "",
    colors: Mapping[str, int] | None = None,
) -> "Figure":
    """One panel per quantity, one line per history.

    histories: name -> rows, each with `x` and whatever quantities it has (missing, None and NaN leave a gap out).
    panels: key of the rows -> title of its panel; a panel without any value is left out. colors: name -> number of a
    line colour, so that several lines (seeds of one arm) share one; the first of them is named in the legend.
    """
    kept = {
        key: shown
        for key, shown in panels.items()
        if any(_finite(row.get(key)) for rows in histories.values() for row in rows)
    }
    if not kept:
        raise ValueError(complain("histories", f"rows with any of {list(panels)}", "none", "Train for an epoch first."))
    columns = min(3, len(kept))
    lines = -(-len(kept) // columns)
    figure = _figure(4.2 * columns, 3.1 * lines + 0.5)
    axes = figure.subplots(lines, columns, squeeze=False).flatten()
    numbers = {name: (colors or {}).get(name, i) for i, name in enumerate(histories)}
    handles: dict[int, Any] = {}
    for axis, (key, shown) in zip(axes, kept.items()):
        for name, rows in histories.items():
            points = [(row[x], row[key]) for row in rows if _finite(row.get(key))]
            if points:
                color = _LINES[numbers[name] % len(_LINES)]
                (line,) = axis.plot(*zip(*points), color=color, marker="o", markersize=3, linewidth=1.6, alpha=0.9)
                handles.setdefault(numbers[name], (line, name))
        axis.set_title(shown, fontsize=11, loc="left")
        axis.set_xlabel(x)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(color="#e6e6e6", linewidth=0.8)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[len(kept) :]:
        axis.set_visible(False)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    shown_lines, names = zip(*handles.values())
    figure.legend(shown_lines, names, loc="outside lower left", ncols=len(names), frameon=False)
    return figure


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and bool(np.isfinite(value))


def _paint(labels: Tensor, colors: Tensor, ignore_index: int) -> Any:
    """(H, W) labels -> (H, W, 3) in [0, 1]."""
    void = labels == ignore_index
    painted = colors.double()[labels.masked_fill(void, 0).long()] / 255
    painted[void] = torch.tensor(VOID_COLOR, dtype=torch.float64)
    return painted.numpy()


def prediction_sheet(
    images: Sequence[Tensor],
    labels: Sequence[Tensor],
    predictions: Mapping[str, Sequence[Tensor]],
    *,
    classes: Sequence[str],
    colors: Tensor,
    captions: Sequence[str] = (),
    ignore_index: int = 255,
    title: str = "",
) -> "Figure":
    """A row per image: image, truth, then prediction and error of every model; the legend names the classes shown.

    images: float (3, H, W) in [0, 1]; labels and predictions: integer (H, W); colors: uint8 (C, 3) by class.
    An error picture is red where the prediction is wrong, and names the share of valid pixels that are right.
    """
    if not images or any(len(rows) != len(images) for rows in (labels, *predictions.values())):
        came = f"{len(images)} images, {len(labels)} labels, " + ", ".join(str(len(r)) for r in predictions.values())
        raise ValueError(complain("images, labels, predictions", "equally many, at least one", came, "Match them."))
    for image in images:
        check_tensor("images", image, ndim=3, shape="(3, H, W)", floating=True)
    columns = 2 + 2 * len(predictions)
    height, width = images[0].shape[1:]
    cell = 2.5
    row_height = cell * height / width + 0.36
    figure = _figure(cell * columns, row_height * len(images) + 1.3)
    axes = figure.subplots(len(images), columns, squeeze=False)
    seen: set[int] = set()
    for row, (image, truth) in enumerate(zip(images, labels)):
        pictures = [
            ("image", image.permute(1, 2, 0).clamp(0, 1).numpy()),
            ("truth", _paint(truth, colors, ignore_index)),
        ]
        valid = truth != ignore_index
        seen.update(truth[valid].unique().tolist())
        for name, found in predictions.items():
            shown = found[row].masked_fill(~valid, ignore_index)
            seen.update(shown[valid].unique().tolist())
            wrong = valid & (found[row] != truth)
            error = np.array([VOID_COLOR, RIGHT_COLOR, WRONG_COLOR])[(valid.long() + wrong.long()).numpy()]
            share = 100 * (1 - float(wrong.sum()) / max(int(valid.sum()), 1))
            pictures += [(name, _paint(shown, colors, ignore_index)), (f"{name}: {share:.1f} % right", error)]
        for column, (name, picture) in enumerate(pictures):
            axis = axes[row, column]
            axis.imshow(picture, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_color("#bbbbbb")
            if row == 0 or "right" in name:
                axis.set_title(name, fontsize=9.5)
        if row < len(captions):
            axes[row, 0].set_ylabel(captions[row], fontsize=9.5)
    _legend(figure, sorted(seen), classes, colors, any(bool((truth == ignore_index).any()) for truth in labels))
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    return figure


def _legend(figure: "Figure", shown: Sequence[int], classes: Sequence[str], colors: Tensor, with_void: bool) -> None:
    from matplotlib.patches import Patch

    patches = [Patch(facecolor=colors[c].double().numpy() / 255, edgecolor="#888888", label=classes[c]) for c in shown]
    if with_void:
        patches.append(Patch(facecolor=VOID_COLOR, edgecolor="#888888", label="void"))
    patches.append(Patch(facecolor=WRONG_COLOR, edgecolor="#888888", label="wrong"))
    figure.legend(handles=patches, loc="outside lower left", ncols=8, frameon=False, fontsize=9.5)
