"""Pictures of attributions: signs and scales kept, counts shown, bands where the numbers are; what they refuse."""

import io
import math

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor

from perpixel.report import CurvePanel, MapPanel, class_matrix_chart, profile_chart, removal_chart, signed_panels


def drawn(figure: Figure) -> Figure:
    """The figure after it was rendered: what can go wrong there, did."""
    figure.savefig(io.BytesIO(), format="png")
    return figure


def region(height: int = 6, width: int = 8) -> Tensor:
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[0:3, 2:5] = True
    return mask


def test_maps_keep_sign_and_scale() -> None:
    values = torch.linspace(-1, 3, 48).view(6, 8)
    figure = drawn(signed_panels([MapPanel("a", values, region=region()), MapPanel("b", -2 * values)], clip=1.0))
    first, second = (next(a for a in figure.axes if a.get_title() == name).images[0] for name in "ab")
    assert np.allclose(first.get_array(), values)
    assert first.get_clim() == (-3.0, 3.0)
    assert second.get_clim() == (-6.0, 6.0)
    for value, against in ((3.0, False), (-3.0, True)):
        red, _, blue, _ = first.cmap(first.norm(value))
        assert (blue > red) == against
    assert min(first.cmap(first.norm(0.0))) > 0.95
    bar = next(axis for axis in figure.axes if axis.get_xlim() == (-3.0, 3.0))
    assert [t.get_text() for t in bar.get_xticklabels()] == ["-3", "0", "3"]


def test_a_shared_scale_is_that_of_the_largest_map_and_outliers_are_shown_as_such() -> None:
    small, large = torch.randn(20, 20), torch.randn(20, 20)
    large[3, 3] = 1e3
    figure = signed_panels([MapPanel("a", small), MapPanel("b", large)], shared=True, clip=0.99)
    limits = {axis.images[0].get_clim() for axis in figure.axes if axis.images}
    assert limits == {(-limit, limit) for _, limit in limits}
    assert len(limits) == 1
    assert next(iter(limits))[1] == pytest.approx(float(np.quantile(large.abs().double().numpy(), 0.99)))
    bars = [axis._colorbar for axis in figure.axes if hasattr(axis, "_colorbar")]
    assert [bar.extend for bar in bars][1] in ("both", "max")
    assert len(bars) == 2


def test_coarse_maps_cover_the_picture_and_the_grid_is_drawn() -> None:
    picture = torch.rand(6, 8, 3).numpy()
    panels = [
        MapPanel("image", picture=picture, region=region(), marks=[(region().flip(0), "#1f6fd0")], note="small print"),
        MapPanel("patches", torch.tensor([[1.0, -1.0], [0.0, 2.0]]), patch=(3, 4), meaning="loss of the logit"),
        MapPanel("zeros", torch.zeros(6, 8)),
    ]
    figure = drawn(signed_panels(panels, columns=2, title="title", note="note", meaning="logit"))
    assert [a.get_xlabel() for a in figure.axes if hasattr(a, "_colorbar")] == ["loss of the logit", "logit"]
    shown = {axis.get_title(): axis for axis in figure.axes}
    assert shown["patches"].images[0].get_extent() == [-0.5, 7.5, 5.5, -0.5]
    lines = [segment for c in shown["patches"].collections for segment in c.get_segments()]
    assert sorted({tuple(map(tuple, s)) for s in lines}) == [((-0.5, 2.5), (7.5, 2.5)), ((3.5, -0.5), (3.5, 5.5))]
    assert len(shown["image"].collections) == 4  # two outlines, each with a white border
    assert shown["image"].get_xlabel() == "small print"
    assert math.isfinite(shown["zeros"].images[0].get_clim()[1])
    assert sum(axis.get_visible() for axis in figure.axes if axis.images) == 3


def test_outlines_run_on_the_borders_of_the_pixels() -> None:
    figure = signed_panels([MapPanel("a", torch.zeros(6, 8), region=region())])
    paths = [p for c in next(a for a in figure.axes if a.get_title() == "a").collections for p in c.get_paths()]
    corners = np.concatenate([p.vertices for p in paths])
    assert corners.min(0).tolist() == [1.5, -0.5]
    assert corners.max(0).tolist() == [4.5, 2.5]


@pytest.mark.parametrize(
    ("panels", "message"),
    [
        ([], "panels: expected at least one panel"),
        ([MapPanel("a")], "panels: expected a map or a picture"),
        ([MapPanel("a", torch.zeros(2, 3, 4))], r"values: expected a tensor \(H, W\)"),
        ([MapPanel("a", torch.full((2, 2), torch.nan))], "values: expected finite values"),
        ([MapPanel("a", torch.zeros(6, 8)), MapPanel("b", marks=[(region(4, 8), "k")])], "region: expected shape"),
    ],
)
def test_maps_that_cannot_be_drawn_are_refused(panels: list[MapPanel], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        signed_panels(panels)


def matrix() -> tuple[Tensor, Tensor]:
    values = torch.tensor([[math.nan, 1.5, 0.0], [-3.0, math.nan, math.nan], [math.nan] * 3])
    return values, torch.tensor([[0, 1500, 7], [42, 0, 0], [0, 0, 0]])


def test_matrix_shows_values_counts_in_words_and_gaps() -> None:
    values, counts = matrix()
    classes = ["sky", "<road>", "tree"]
    figure = drawn(class_matrix_chart(values, counts, classes=classes, few=50, title="who leans on whom"))
    axis = figure.axes[0]
    texts = [t.get_text() for t in axis.texts]
    expected = ["–", "1.50", "1,500 pixels", "0", "7 pixels", "-3.00", "42 pixels", "–", "–", "–", "–", "–"]
    assert texts == expected
    assert [t.get_text() for t in axis.get_yticklabels()] == classes
    behind, cells = axis.images
    assert behind.get_array()[0, 0].max() < 0.9  # grey
    assert np.isnan(cells.get_array().filled(np.nan)[0, 0])
    assert cells.get_clim() == (-1.5, 1.5)  # of the cells that are not from few pixels
    alpha = cells.get_alpha()
    assert alpha[0, 1] == 1
    assert 0 < alpha[1, 0] == alpha[0, 2] < 0.5  # faint
    assert alpha[2, 2] == 0
    assert "faint: fewer than 50 pixels" in figure._supxlabel.get_text()


def test_matrix_shows_the_excess_over_its_control_with_a_dot_where_the_interval_excludes_zero() -> None:
    values, counts = matrix()
    wider, more = torch.full((4, 4), math.nan), torch.zeros(4, 4, dtype=torch.int64)
    wider[1:3, 1:3], more[1:3, 1:3] = values[:2, :2], counts[:2, :2]
    control = torch.full((4, 4), 0.5)
    low, high = wider - control - 1.2, wider - control + 1.2
    low[1, 2] = 0.1
    given = {"classes": list("abcd"), "control": control, "few": 1}
    figure = class_matrix_chart(wider, more, intervals=(low, high), **given)
    axis = figure.axes[0]
    assert [t.get_text() for t in axis.get_yticklabels()] == ["b", "c"]
    shown = axis.images[1].get_array().filled(np.nan)
    assert shown[0, 1] == 1.0
    assert shown[1, 0] == -3.5
    dots = [(round(line.get_ydata()[0]), round(line.get_xdata()[0])) for line in axis.lines]
    assert dots == [(0, 1), (1, 0)]
    assert "0.10 to 2.20" in [t.get_text() for t in axis.texts]
    low[1, 2] = -0.1
    assert len(class_matrix_chart(wider, more, intervals=(low, high), **given).axes[0].lines) == 1
    marked = torch.zeros(4, 4, dtype=torch.bool)
    assert not class_matrix_chart(wider, more, intervals=(low, high), marked=marked, **given).axes[0].lines
    with pytest.raises(ValueError, match="low: expected shape"):
        class_matrix_chart(wider, more, intervals=(low[:2], high), **given)


def test_matrix_refuses_what_does_not_fit() -> None:
    values, counts = matrix()
    with pytest.raises(ValueError, match=r"values: expected shape \(2, 2\)"):
        class_matrix_chart(values, counts, classes=["a", "b"])
    with pytest.raises(ValueError, match="control: expected shape"):
        class_matrix_chart(values, counts, classes=list("abc"), control=torch.zeros(2, 2))
    with pytest.raises(ValueError, match="counts: expected at least one pixel"):
        class_matrix_chart(values, counts * 0, classes=list("abc"))
    bare = class_matrix_chart(torch.full((2, 2), math.nan), torch.ones(2, 2, dtype=torch.int64), classes=list("ab"))
    assert len(drawn(bare).axes[0].texts) == 4


def test_profiles_show_mean_range_and_what_the_area_would_give() -> None:
    edges, area = torch.tensor([0.0, 5.0, 10.0]), torch.tensor([0.25, 0.75])
    rows = torch.tensor([[0.8, 0.2], [0.4, 0.6], [math.nan, math.nan]])
    series = {"trained": rows, "random": torch.tensor([0.3, 0.7]), "nothing": rows[2:]}
    figure = drawn(profile_chart(edges, series, area, r50={"trained": 3.0, "random": math.nan}))
    axis = figure.axes[0]
    steps = {p.get_label(): p.get_data() for p in axis.patches if p.get_label()}
    assert np.allclose(steps["share of the pixels"].values, area)
    assert np.allclose(steps["trained, mean and range"].values, [0.6, 0.4])
    assert np.allclose(steps["random"].values, [0.3, 0.7])
    assert "nothing" not in steps
    band = next(p.get_data() for p in axis.patches if not p.get_label())
    assert np.allclose(band.values, [0.8, 0.6])
    assert np.allclose(band.baseline, [0.4, 0.2])
    assert [line.get_xdata().tolist() for line in axis.lines] == [[3.0]]
    with pytest.raises(ValueError, match="series: expected a value per bin"):
        profile_chart(edges, {"a": torch.zeros(3)}, area)


def test_curves_lie_where_the_numbers_are_and_say_who_wins() -> None:
    x = torch.linspace(0, 1, 5)
    panel = CurvePanel("deletion", x, 1 - x, 1 - x / 2, 1 - x, 1 - x / 4, {"nearest first": 1 - x**2}, gain=0.25)
    other = CurvePanel("insertion", x, x, x, x, x, {"reset network": x}, gain=-0.1)
    flat = CurvePanel("flat", x, x, x, x, x, gain=math.nan)
    figure = drawn(removal_chart([panel, other, flat, panel], columns=3, title="t", note="n"))
    axis = figure.axes[0]
    for line, expected in zip(axis.lines, (1 - x / 2, 1 - x**2, 1 - x), strict=True):
        assert np.allclose(line.get_ydata(), expected)
    band = axis.collections[0].get_paths()[0].vertices
    assert band.min(0).tolist() == [0.0, 0.0]
    assert [float(y) for y in sorted(band[band[:, 0] == 1][:, 1])][-1] == 0.75
    verdicts = [a.get_title(loc="right") for a in figure.axes[:3]]
    assert verdicts == ["+0.25, better than random", "-0.1, worse than random", ""]
    (legend,) = figure.legends
    assert legend.get_title().get_text() == "n"
    assert [text.get_text() for text in legend.get_texts()] == [
        "attribution",
        "random orders: mean, range",
        "nearest first",
        "reset network",
    ]
    assert sum(a.get_visible() for a in figure.axes) == 4
    with pytest.raises(ValueError, match="panels: expected at least one curve"):
        removal_chart([])
