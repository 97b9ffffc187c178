"""Figures: what they refuse, and that they show what they are given."""

import math

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from perpixel.report import count_chart, interval_chart, picture_bytes, prediction_sheet, training_curves

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


def test_a_dollar_in_a_name_is_no_formula() -> None:
    figure = training_curves({r"$\nothing$": ROWS}, {"miou": "a$b$"}, title="$x")
    powers = figure.axes[0]
    powers.set_yscale("log")
    picture_bytes(figure)
    assert not [text for text in figure.legends[0].get_texts() if text.get_parse_math()]
    assert all(text.get_parse_math() for text in powers.get_yticklabels() if "mathdefault" in text.get_text())
