"""Figures: what they refuse, and that they show what they are given."""

import math

import numpy as np
import pytest
import torch

from perpixel.report import prediction_sheet, training_curves

ROWS = [{"epoch": 1, "miou": 0.5}, {"epoch": 2, "miou": None}, {"epoch": 3, "miou": 0.7, "other": math.nan}]


def test_curves_show_every_finite_value_and_no_empty_panel() -> None:
    figure = training_curves({"control": ROWS, "loss": ROWS[:1]}, {"miou": "mIoU", "other": "Other"}, title="run")
    shown = [axis for axis in figure.axes if axis.get_visible()]
    assert [axis.get_title(loc="left") for axis in shown] == ["mIoU"]
    assert [line.get_xydata().tolist() for line in shown[0].lines] == [[[1, 0.5], [3, 0.7]], [[1, 0.5]]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["control", "loss"]


def test_seeds_of_an_arm_share_a_colour_and_a_legend_entry() -> None:
    figure = training_curves({"a": ROWS, "a, seed 1": ROWS}, {"miou": "mIoU"}, colors={"a": 0, "a, seed 1": 0})
    first, second = figure.axes[0].lines
    assert first.get_color() == second.get_color()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a"]


def test_curves_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="histories: expected rows with any of"):
        training_curves({"control": []}, {"miou": "mIoU"})


def sheet():
    labels = torch.tensor([[0, 0, 255], [1, 1, 255]])
    prediction = torch.tensor([[0, 1, 0], [1, 1, 1]])
    colors = torch.tensor([[0, 0, 0], [0, 255, 0], [0, 0, 255]], dtype=torch.uint8)
    names = ["ground", "grass", "sky"]
    figure = prediction_sheet(
        [torch.rand(3, 2, 3)], [labels], {"control": [prediction]}, classes=names, colors=colors, captions=["typical"]
    )
    return figure, [axis.images[0].get_array() for axis in figure.axes]


def test_sheet_paints_truth_prediction_and_error() -> None:
    figure, (_, truth, found, error) = sheet()
    assert np.allclose(truth[1, 0], (0, 1, 0))
    assert np.allclose(truth[0, 2], found[0, 2])  # void hides what is predicted in it
    assert np.allclose(found[0, 1], (0, 1, 0))
    assert error[0, 1][0] > 0.7 > error[0, 1][1]  # red where wrong
    assert error[0, 0].min() > 0.9  # pale where right
    assert [axis.get_title() for axis in figure.axes] == ["image", "truth", "control", "control: 75.0 % right"]
    assert figure.axes[0].get_ylabel() == "typical"


def test_legend_names_the_classes_that_occur() -> None:
    figure, _ = sheet()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ground", "grass", "void", "wrong"]


def test_sheet_refuses_lists_of_different_length() -> None:
    with pytest.raises(ValueError, match="1 images, 0 labels, 1"):
        prediction_sheet(
            [torch.rand(3, 2, 2)],
            [],
            {"control": [torch.zeros(2, 2, dtype=torch.int64)]},
            classes=["a"],
            colors=torch.zeros(1, 3, dtype=torch.uint8),
        )
