"""Figures: what they refuse, and that they show what they are given."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text

from perpixel.report import (
    CurvePanel,
    MapPanel,
    PointPanel,
    class_matrix_chart,
    count_chart,
    interval_chart,
    picture_bytes,
    point_sheet,
    prediction_sheet,
    profile_chart,
    removal_chart,
    signed_panels,
    training_curves,
)
from perpixel.report.charts.salient_parts import salient_sheet

NAN = math.nan
ROWS = [{"epoch": 1, "miou": 0.5}, {"epoch": 2, "miou": None}, {"epoch": 3, "miou": 0.7, "other": NAN}]


def names(figure: Figure) -> list[str]:
    """What the legend names."""
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_curves_show_every_finite_value_and_no_empty_panel() -> None:
    figure = training_curves({"control": ROWS, "loss": ROWS[:1]}, {"miou": "mIoU", "other": "Other"}, title="run")
    shown = [axis for axis in figure.axes if axis.get_visible()]
    assert [axis.get_title(loc="left") for axis in shown] == ["mIoU"]
    assert [line.get_xydata().tolist() for line in shown[0].lines] == [[[1, 0.5], [3, 0.7]], [[1, 0.5]]]
    assert names(figure) == ["control", "loss"]
    with pytest.raises(ValueError, match="histories: expected rows with any of"):
        training_curves({"control": []}, {"miou": "mIoU"})


def test_seeds_of_an_arm_share_a_colour_and_a_legend_entry() -> None:
    figure = training_curves({"a": ROWS, "a, seed 1": ROWS}, {"miou": "mIoU"}, colors={"a": 0, "a, seed 1": 0})
    first, second = figure.axes[0].lines
    assert first.get_color() == second.get_color()
    assert names(figure) == ["a"]


def test_sheet_paints_truth_prediction_and_error_and_names_the_classes_that_occur() -> None:
    labels = torch.tensor([[0, 0, 255], [1, 1, 255]])
    prediction = torch.tensor([[0, 1, 0], [1, 1, 1]])
    colors = torch.tensor([[0, 0, 0], [0, 255, 0], [0, 0, 255]], dtype=torch.uint8)
    shown = {"classes": ["ground", "grass", "sky"], "colors": colors}
    figure = prediction_sheet([torch.rand(3, 2, 3)], [labels], {"control": [prediction]}, captions=["typical"], **shown)
    _, truth, found, error = (axis.images[0].get_array() for axis in figure.axes)
    assert np.allclose(truth[1, 0], (0, 1, 0))
    assert np.allclose(truth[0, 2], found[0, 2])  # void hides what is predicted in it
    assert np.allclose(found[0, 1], (0, 1, 0))
    assert error[0, 1][0] > 0.7 > error[0, 1][1]  # red where wrong
    assert error[0, 0].min() > 0.9  # pale where right
    assert [axis.get_title() for axis in figure.axes] == ["image", "truth", "control", "control: 75.0 % right"]
    assert figure.axes[0].get_ylabel() == "typical"
    assert names(figure) == ["ground", "grass", "void", "wrong"]
    with pytest.raises(ValueError, match="1 images, 0 labels, 1"):
        prediction_sheet([torch.rand(3, 2, 3)], [], {"control": [prediction]}, **shown)


def test_interval_chart_shows_dots_intervals_and_marks() -> None:
    series = {"one": [(1.0, 0.5, 2.0), (NAN, NAN, NAN)], "two": [(3.0, 2.0, 4.0), (1.0, NAN, NAN)]}
    figure = interval_chart(["a", "b"], series, marks={"chance": [0.1, 0.2]}, xlabel="share", log=True, line=1.0)
    (axis,) = figure.axes
    assert axis.get_xscale() == "log"
    assert [text.get_text() for text in axis.get_yticklabels()] == ["a", "b"]
    dots = {line.get_label(): list(line.get_xdata()) for line in axis.lines}
    assert dots["two"] == [3.0, 1.0]
    assert dots["chance"] == [0.1, 0.2]
    first = axis.collections[0].get_segments()
    assert first[0][:, 0].tolist() == [0.5, 2.0]
    with pytest.raises(ValueError, match=r"one.*expected 2 values"):
        interval_chart(["a", "b"], {"one": series["one"][:1]}, xlabel="share")


def test_count_chart_has_a_line_per_share_and_a_panel_per_way_and_no_empty_panel() -> None:
    lines = {"10 %": [(1.0, 1.0, 2.0), (2.0, 1.0, 3.0)], "50 %": [(5.0, 4.0, 6.0), (9.0, 8.0, 12.0)]}
    figure = count_chart(["stem", "head"], dict.fromkeys(("channels", "elements", "places"), lines), title="K")
    *panels, empty = figure.axes
    assert [axis.get_title(loc="left") for axis in panels] == ["channels", "elements", "places"]
    assert [line.get_ydata().tolist() for line in panels[1].lines] == [[1.0, 2.0], [5.0, 9.0]]
    assert not empty.get_visible()
    figure.draw_without_rendering()
    named = [[label.get_text() for label in axis.get_xticklabels() if label.get_visible()] for axis in panels]
    assert named == [[], ["stem", "head"], ["stem", "head"]]  # under the last panel of a column
    assert names(figure) == ["10 %", "50 %"]
    with pytest.raises(ValueError, match="layers, panels"):
        count_chart([], {})


def test_a_single_epoch_can_be_seen() -> None:
    figure = training_curves({"control": ROWS[:1], "loss": ROWS}, {"miou": "mIoU"})
    (axis,) = figure.axes
    alone, line = axis.lines
    assert alone.get_markersize() > 2 * line.get_markersize()
    (axis,) = training_curves({"control": ROWS[:1]}, {"miou": "mIoU"}).axes
    low, high = axis.get_xlim()
    assert low < 1 < high
    assert [t for t in axis.get_xticks() if low <= t <= high] == [1]


LONG = "a name of a class, a network or a data set that goes on and on, with_a_word_that_does_not_end_where_a_line_does"
WORDY = [f"{LONG} {i}" for i in range(3)]
SMALL = torch.eye(3)


def one_of_each_chart() -> dict[str, Figure]:
    """Every chart of the library, with texts that are too long for it."""
    counts = torch.full((3, 3), 1234567)
    intervals = [(1.0, 0.5, 2.0)] * 3
    line = torch.linspace(0, 1, 5)
    points = PointPanel(LONG, np.ones((6, 8, 3)), torch.arange(3), torch.arange(3.0), torch.arange(3.0), torch.ones(3))
    palette = torch.tensor([[0, 0, 0], [0, 255, 0], [0, 0, 255]], dtype=torch.uint8)
    labels, image = torch.tensor([[0, 1, 2]] * 3), torch.rand(3, 3, 3)
    said: dict[str, Any] = {"title": 3 * LONG, "note": 3 * LONG}
    removal = CurvePanel(LONG, line, line, line, line, line, {LONG: line}, gain=0.5, xlabel=LONG, ylabel=LONG)
    part = {"label": 0.0, "held": 1.0, "lost": 1.0, "iou_before": 0.5, "iou_after": 0.4}
    mask = SMALL[None] > 0
    maps = [MapPanel(LONG, -1e-5 * SMALL, note=LONG, meaning=LONG)] * 3
    named = {"classes": WORDY, "colors": palette}
    return {
        "curves": training_curves({LONG: ROWS, WORDY[1]: ROWS}, {"miou": LONG, "other": LONG}, title=3 * LONG),
        "intervals": interval_chart(WORDY, {LONG: intervals}, marks={WORDY[0]: [1.0] * 3}, xlabel=LONG, title=3 * LONG),
        "counts": count_chart(["stem", LONG], {LONG: {LONG: intervals[:2]}}, title=3 * LONG),
        "matrix": class_matrix_chart(
            SMALL, counts, classes=WORDY, control=0.5 * SMALL, intervals=(SMALL, SMALL), **said
        ),
        "profile": profile_chart(torch.arange(6.0), {LONG: line}, line, ylabel=LONG, r50={LONG: 1.0}, **said),
        "removal": removal_chart([removal] * 2, **said),
        "maps": signed_panels(maps, **said),
        "points": point_sheet([points, replace(points, heat=torch.rand(6, 8))], **named, **said),
        "predictions": prediction_sheet([image], [labels], {LONG: [labels]}, captions=[LONG], title=3 * LONG, **named),
        "parts": salient_sheet(
            image[None], mask, [labels[None]] * 2, SMALL[None], mask, rows=[part], title=LONG, **named
        ),
    }


def texts_of(figure: Figure) -> Iterator[Text]:
    """What is written in the figure: ticks beyond the ends of their axis are not."""
    axes = [axis for axis in figure.axes if axis.get_visible()]
    ticks = [text for axis in axes for of in (axis.xaxis, axis.yaxis) for text in of.get_ticklabels(which="both")]
    drawn = [tick.label1 for axis in axes for of in (axis.xaxis, axis.yaxis) for tick in of._update_ticks()]
    unseen = {id(text) for text in ticks} - {id(text) for text in drawn}
    for text in figure.findobj(Text):
        hidden = text.axes is not None and not text.axes.get_visible()
        if text.get_visible() and text.get_text().strip() and not hidden and id(text) not in unseen:
            yield text


def test_no_text_is_cut_off_or_over_another() -> None:
    for name, figure in one_of_each_chart().items():
        picture_bytes(figure)
        boxes = {id(text): text.get_window_extent().padded(-1) for text in texts_of(figure)}
        for text in texts_of(figure):
            box, whole = boxes[id(text)], figure.bbox
            inside = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= whole.x1 and box.y1 <= whole.y1
            assert inside, f"{name}: {text.get_text()!r} at {box} of {whole}"
        heads = [t for axis in figure.axes for t in (axis.title, axis._left_title, axis._right_title)]
        for one, other in itertools.combinations([text for text in heads if id(text) in boxes], 2):
            over = one.axes is not other.axes and boxes[id(one)].overlaps(boxes[id(other)])
            assert not over, f"{name}: {one.get_text()!r} over {other.get_text()!r}"


def test_a_dollar_in_a_name_is_no_formula() -> None:
    figure = training_curves({r"$\nothing$": ROWS}, {"miou": "a$b$"}, title="$x")
    powers = figure.axes[0]
    powers.set_yscale("log")
    picture_bytes(figure)
    assert not [text for text in figure.legends[0].get_texts() if text.get_parse_math()]
    assert all(text.get_parse_math() for text in powers.get_yticklabels() if "mathdefault" in text.get_text())
