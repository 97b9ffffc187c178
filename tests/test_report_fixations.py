"""Pictures of fixations: what they refuse, and that they show what they are given."""

import io
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from perpixel.report import PointPanel, animation_bytes, fixation_backdrop, on_backdrop, picture_bytes, point_sheet

COLORS = torch.tensor([[0, 0, 0], [0, 255, 0], [0, 0, 255]], dtype=torch.uint8)
sheet = partial(point_sheet, classes=["ground", "grass", "sky"], colors=COLORS)
LABELS = torch.tensor([[0, 0, 1, 1]] * 3)


def panel(title: str = "a", masses: tuple[float, ...] = (4.0, 1.0), **more: object) -> PointPanel:
    places = torch.arange(len(masses), dtype=torch.float64)
    mass = torch.tensor(masses, dtype=torch.float64)
    return PointPanel(title, np.ones((3, 4, 3)), places.long() + 1, places, places + 1, mass, **more)  # type: ignore[arg-type]


def test_backdrops_fade_and_only_the_photograph_depends_on_the_image() -> None:
    image, other = torch.rand(3, 3, 4), torch.rand(3, 3, 4)
    shown = fixation_backdrop(image, LABELS, COLORS)
    assert shown.shape == (3, 4, 3)
    assert np.allclose(1 - shown, (1 - image.permute(1, 2, 0).numpy()) * (1 - shown[0, 0, 0]) / (1 - image[0, 0, 0]))
    assert (shown >= image.permute(1, 2, 0).numpy()).all()
    for style in ("labels", "outlines"):
        drawn = fixation_backdrop(image, LABELS, COLORS, style=style)
        assert np.array_equal(drawn, fixation_backdrop(other, LABELS, COLORS, style=style))
        assert np.array_equal(drawn, fixation_backdrop(None, LABELS, COLORS, style=style))
        assert np.allclose(drawn[:, 2], 0.5)  # the border between the two labels
    pale = fixation_backdrop(None, LABELS, COLORS, style="labels")
    assert pale[0, 3, 1] == 1 > pale[0, 3, 0] > 0.5  # grass, pale green
    assert np.allclose(fixation_backdrop(None, LABELS, COLORS, style="outlines")[:, 0], 1)
    void = torch.full((2, 2), 255)
    assert np.isfinite(fixation_backdrop(None, void, COLORS, style="labels")).all()


def test_backdrops_refuse_what_does_not_fit() -> None:
    for image in (None, torch.rand(3, 5, 5)):
        with pytest.raises(ValueError, match="image: expected shape"):
            fixation_backdrop(image, LABELS, COLORS)
    with pytest.raises(ValueError, match="style: expected"):
        fixation_backdrop(None, LABELS, COLORS, style="sepia")
    with pytest.raises(ValueError, match="labels: expected"):
        fixation_backdrop(None, LABELS[None], COLORS, style="labels")


def test_a_sheet_puts_every_point_in_its_place_and_colour() -> None:
    figure = sheet([panel(), panel("b", ())], title="sheet", note="small print")
    first, second = figure.axes
    (dots,) = first.collections
    dark, white, own = dots.get_sizes().reshape(-1, 3).T  # two rings: dots are seen on their own colour
    assert (dark > white).all()
    assert (white > own).all()
    places, inks = dots.get_offsets()[2::3].tolist(), dots.get_facecolors()[2::3].tolist()
    placed = {tuple(p): tuple(c[:3]) for p, c in zip(places, inks)}
    assert placed == {(1.0, 0.0): (0.0, 1.0, 0.0), (2.0, 1.0): (0.0, 0.0, 1.0)}
    areas = dict(zip(map(tuple, places), own))
    assert areas[1.0, 0.0] - 1.5 == pytest.approx(2 * (areas[2.0, 1.0] - 1.5))  # root of the mass
    assert not second.collections
    assert [axis.get_title() for axis in figure.axes] == ["a", "b"]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["grass", "sky"]
    assert legend.get_title().get_text() == "small print"
    assert first.get_ylim() == (2.5, -0.5)


def test_dots_of_several_sheets_can_share_a_scale() -> None:
    axes = [sheet([panel(masses=(mass,))], heaviest=100.0).axes[0] for mass in (1.0, 100.0)]
    light, heavy = (axis.collections[-1].get_sizes()[2] for axis in axes)
    assert (heavy - 1.5) / (light - 1.5) == pytest.approx(10)


def test_heat_and_outlines_are_drawn_and_legends_left_out() -> None:
    mask = torch.zeros(3, 4, dtype=torch.bool)
    mask[1, 1] = True
    heat = torch.zeros(3, 4)
    heat[2, 3] = 5.0
    shown = panel(heat=heat, outlines=[(mask, "#ff0000"), (~mask & mask, "#000000")])
    figure = sheet([shown], legend=False)
    assert not figure.legends
    axis, bar = figure.axes
    warm = axis.images[1].get_array()
    assert warm[2, 3] == warm.sum() == 5
    assert bar.get_xlim() == (0, 5)  # the scale says how much
    assert "pixels that rest on a pixel" in bar.get_xlabel()
    assert len(axis.collections) == 2  # one contour, the empty mask has none; and the dots
    assert sheet([panel("b", ())], note="small print")._supxlabel.get_text() == "small print"  # without a legend too
    cold = sheet([panel(heat=torch.zeros(3, 4))])
    assert cold.axes[0].images[1].get_alpha().max() == 0


def test_sheets_and_animations_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="panels: expected at least one"):
        sheet([])
    with pytest.raises(ValueError, match="figures: expected at least one"):
        animation_bytes([], 100)
    with pytest.raises(ValueError, match="milliseconds"):
        animation_bytes([sheet([panel()])], 1)


def test_pictures_can_be_read_back() -> None:
    figures = [sheet([panel(masses=(m, 1.0))], heaviest=9.0) for m in (1, 5, 9)]
    still = Image.open(io.BytesIO(picture_bytes(figures[0])))
    assert still.format == "PNG"
    assert np.asarray(still)[0, 0].tolist() == [255, 255, 255]
    moving = Image.open(io.BytesIO(animation_bytes(figures, 200)))
    assert (moving.format, moving.n_frames, moving.info["loop"]) == ("GIF", 3, 0)
    times = []
    for number in range(3):
        moving.seek(number)
        times.append(moving.info["duration"])
        shown = np.asarray(moving.convert("RGB"), int)
        truth = np.asarray(Image.open(io.BytesIO(picture_bytes(figures[number]))).convert("RGB"), int)
        assert np.abs(shown - truth).mean() < 3
    assert times == [200, 200, 600]


def test_units_sit_at_their_centres() -> None:
    assert on_backdrop(torch.arange(4), 4, 4).tolist() == [0, 1, 2, 3]
    assert on_backdrop(torch.arange(2), 2, 8).tolist() == [1.5, 5.5]
    assert on_backdrop(torch.tensor([0]), 1, 9).tolist() == [4]
