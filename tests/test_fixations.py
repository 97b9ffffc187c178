"""What `fixations` returns: masses, K, recorded layers, maps, the cap; and what it refuses."""

import math

import numpy as np
import pytest
import torch
from fixation_oracles import slow_outliers
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from perpixel.fixations import FixationRules, Fixations, Rule, Share, Step, Units, fixations


def small(classes: int = 4) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2),
        nn.Hardswish(),
        nn.AvgPool2d(3, 1, 1),
        nn.Conv2d(8, classes, 1),
        nn.Upsample(scale_factor=2, mode="bilinear"),
    )


IMAGES = torch.randn(2, 3, 12, 10, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("k", [1, 3, Share(0.1), Share(1.0), "resolution", {"0": 2, "4": Share(0.5)}])
@pytest.mark.parametrize("rules", ["modern", "seg-unravel", FixationRules(select="element")])
def test_mass_is_conserved_and_points_are_unique_and_sorted(k: object, rules: object) -> None:
    fix = fixations(small(), IMAGES, k=k, rules=rules)
    assert fix.started == 2 * 12 * 10
    assert float(fix.mass.sum()) + fix.dropped == pytest.approx(fix.started, rel=1e-9)
    rows = [tuple(row) for row in fix.points.tolist()]
    assert rows == sorted(set(rows))
    assert fix.points.dtype == torch.int64
    assert fix.mass.dtype == torch.float64
    assert bool((fix.mass > 0).all())


def test_start_is_the_argmax_by_default() -> None:
    model = small().eval()
    one, other = fixations(model, IMAGES), fixations(model, IMAGES, start=model(IMAGES).argmax(1))
    same(one, other)


def test_a_batch_gives_what_single_images_give() -> None:
    model = small()
    both = fixations(model, IMAGES, k=2)
    for n in range(2):
        one = fixations(model, IMAGES[n : n + 1], k=2)
        of_both = both.points[:, 0] == n
        assert torch.equal(both.points[of_both][:, 1:], one.points[:, 1:])
        assert torch.allclose(both.mass[of_both], one.mass)


def test_pixels_that_are_not_traced_start_nothing() -> None:
    model = small().eval()
    labels = model(IMAGES).argmax(1)
    left, right = labels.clone(), labels.clone()
    left[:, :, 5:], right[:, :, :5] = 255, -3
    parts = [fixations(model, IMAGES, start=start) for start in (left, right)]
    whole = fixations(model, IMAGES, start=labels)
    assert sum(part.started for part in parts) == whole.started
    assert torch.equal(dense(parts[0]) + dense(parts[1]), dense(whole))


def test_an_empty_start_gives_no_points() -> None:
    fix = fixations(small(), IMAGES, start=torch.full((2, 12, 10), 255), record=True)
    assert fix.points.shape == (0, 5)
    assert fix.started == fix.dropped == 0
    assert fix.density().sum() == 0
    assert fix.inside(torch.zeros(2, 12, 10, dtype=torch.int64)).isnan().all()


def test_several_inputs_share_the_mass_by_contribution() -> None:
    model = nn.Conv2d(2, 2, (1, 2), bias=False).double()
    model.weight.data = torch.tensor([[[[1.0, 2.0]], [[3.0, -1.0]]], [[[0.0, 0.0]], [[0.0, 0.0]]]]).double()
    image, start = torch.ones(1, 2, 1, 2, dtype=torch.float64), torch.zeros(1, 1, 1, dtype=torch.int64)

    def found(select: str, k: object) -> dict[tuple[int, ...], float]:
        fix = fixations(model, image, start=start, k=k, rules=FixationRules(select=select))
        return {tuple(p[2:]): m for p, m in zip(fix.points.tolist(), fix.mass.tolist())}

    assert found("element", 3) == pytest.approx({(0, 0, 0): 1 / 6, (0, 0, 1): 2 / 6, (1, 0, 0): 3 / 6})
    assert found("element", 9) == found("element", 3)  # what gives less than nothing gets none
    assert found("element", Share(0.6)) == {(1, 0, 0): 1.0}  # 3 of 5
    assert found("element", Share(0.61)) == pytest.approx({(0, 0, 1): 2 / 5, (1, 0, 0): 3 / 5})
    assert found("channel", 2) == pytest.approx({(0, 0, 1): 3 / 5, (1, 0, 0): 2 / 5})


def test_k_follows_the_resolution() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 2, stride=2), nn.Conv2d(6, 2, 1))
    image, start = torch.rand(1, 3, 8, 8), torch.full((1, 4, 4), 255)
    start[0, 1, 1] = 0
    model[0].weight.data.abs_()
    model[1].weight.data.abs_()
    rules = FixationRules(select="element")
    fix = fixations(model, image, start=start, k="resolution", rules=rules)
    same(fix, fixations(model, image, start=start, k={"0": 4}, rules=rules))
    assert len(fix.points) == 4


def test_points_beyond_the_cap_are_reported() -> None:
    model = small()
    with pytest.warns(UserWarning, match="max_points=40 cut"):
        fix = fixations(model, IMAGES, k=3, max_points=40)
    assert len(fix.points) <= 40
    assert sum(fix.capped.values()) > 0
    assert float(fix.mass.sum()) + fix.dropped == pytest.approx(fix.started)


def test_recorded_layers_hold_the_points_on_every_tensor() -> None:
    model = small()
    fix = fixations(model, IMAGES, record=True)
    assert list(fix.layers) == ["_8", "_7", "_6", "_5", "_4", "_3", "_2", "_1", "_0", "input_1"]
    assert torch.equal(fix.layers["input_1"].points, fix.points)
    assert fix.on("8").mass.sum() == fix.started
    assert fix.on("4") is fix.layers["_4"]
    assert fix.on("4").size == (6, 5)
    assert bool((fix.on("4").points[:, 2:] < torch.tensor([8, 6, 5])).all())
    same(fixations(model, IMAGES), fix)
    with pytest.raises(ValueError, match="layer: expected a node or layer that points pass, got"):
        fix.on("nowhere")
    with pytest.raises(ValueError, match="record=True"):
        fixations(model, IMAGES).on("4")


def test_shift_none_keeps_points_in_their_place_through_convolutions() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 5, padding=2), nn.ReLU(), nn.Conv2d(6, 3, 3, padding=4, dilation=4))
    places = {shift: dense(fixations(model, IMAGES, shift=shift)).sum((1, 2)) for shift in ("full", "partial", "none")}
    assert bool((places["none"] == 1).all())
    assert not torch.equal(places["partial"], places["full"])
    assert not bool((places["partial"] == 1).all())


def test_signs_say_what_was_asked() -> None:
    """A class that is high because an input is low."""
    model = nn.Conv2d(1, 2, 1, bias=False)
    model.weight.data = torch.tensor([1.0, -1.0]).view(2, 1, 1, 1)
    fix = fixations(model, torch.tensor([[[[-2.0, 3.0]]]]))
    assert fix.points.tolist() == [[0, 0, 0, 0, 1], [0, 1, 0, 0, 0]]
    assert fix.sign.tolist() == [1, -1]


def test_classifiers_start_from_their_unit() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(20, 4))
    fix = fixations(model, IMAGES, start=torch.tensor([2, 255]), record=True)
    assert fix.points[:, :2].tolist() == [[0, 2]]
    assert fix.on("4").points.tolist() == [[0, 2, 2, 0, 0]]
    assert fixations(model, IMAGES).started == 2


@pytest.mark.parametrize("join", ["gate", "sum"])
def test_a_value_per_channel_is_that_of_the_own_image(join: str) -> None:
    """A gate that turns signs over, and a branch that wins or loses, differ from image to image."""

    class PerChannel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.pooled, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.inner(x)
            value = self.pooled(x.mean((2, 3), keepdim=True))
            return self.head(x * value if join == "gate" else x + value)

    torch.manual_seed(0)
    model = PerChannel().double()
    images = torch.randn(4, 3, 5, 6, dtype=torch.float64) + torch.tensor([3.0, -3, 0, 1]).view(4, 1, 1, 1)
    with torch.no_grad():
        values = model.pooled(model.inner(images).mean((2, 3), keepdim=True))
    assert bool((values > 0).any(0).logical_and((values < 0).any(0)).any())
    for k in (1, 2):
        batch = fixations(model, images, k=k)
        for n in range(4):
            alone, own = fixations(model, images[n : n + 1], k=k), batch.points[:, 0] == n
            assert torch.equal(batch.points[own, 1:], alone.points[:, 1:])
            assert torch.equal(batch.sign[own], alone.sign)
            torch.testing.assert_close(batch.mass[own], alone.mass)


def test_255_is_a_class_where_there_are_more_and_void_elsewhere() -> None:
    for classes, traced in ((300, 2), (256, 2), (255, 1)):
        start = torch.full((1, 2, 2), -1)
        start[0, 0, 0], start[0, 1, 1] = 255, 3
        fix = fixations(nn.Conv2d(3, classes, 1), torch.randn(1, 3, 2, 2), start=start)
        assert fix.started == traced
        assert set(fix.points[:, 1].tolist()) == {3, 255} - ({255} if traced == 1 else set())


def test_density_sums_to_the_mass_and_is_highest_at_the_heaviest_point() -> None:
    fix = fixations(small(), IMAGES)
    maps = fix.density(sigma=0.4, drop_outliers=False)
    assert maps.shape == (2, 4, 12, 10)
    assert torch.allclose(maps.sum((2, 3)).double(), dense(fix).sum((2, 3, 4)), atol=1e-4)
    top = fix.points[fix.mass.argmax()]
    of_label = maps[top[0], top[1]]
    assert divmod(int(of_label.argmax()), 10) == (int(top[3]), int(top[4]))
    smooth = fix.density()
    assert bool((smooth.sum((2, 3)) <= maps.sum((2, 3)) + 1e-4).all())


@given(st.integers(0, 10**6), st.sampled_from([(50, 60), (120, 90), (7, 200)]))
def test_outliers_equal_the_definition(seed: int, size: tuple[int, int]) -> None:
    from perpixel.fixations.density import outliers

    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(80, 2, generator=generator) ** 2 * torch.tensor(size)
    yx = centres.long()
    group = torch.randint(3, (80,), generator=generator) * 5
    found = outliers(group, yx[:, 0], yx[:, 1], size)
    for label in (0, 5, 10):
        points = [tuple(p) for p in yx[group == label].tolist()]
        assert found[group == label].tolist() == slow_outliers(points, size)


def test_inside_is_the_share_of_mass_on_the_own_label() -> None:
    fix = fixations(small(), IMAGES)
    labels = torch.randint(0, 4, (2, 12, 10))
    shares = fix.inside(labels)
    for n in range(2):
        for c in range(4):
            rows = [i for i, p in enumerate(fix.points.tolist()) if p[:2] == [n, c]]
            if not rows:
                assert math.isnan(shares[n, c])
                continue
            hit = sum(float(fix.mass[i]) for i in rows if labels[n, fix.points[i, 3], fix.points[i, 4]] == c)
            assert float(shares[n, c]) == pytest.approx(hit / float(fix.mass[rows].sum()))
    with pytest.raises(ValueError, match="labels: expected shape"):
        fix.inside(labels[:, :5])


def test_a_users_rule_is_taken_first() -> None:
    class Shifted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.from_numpy(np.roll(x.numpy(), 1, -1))

    def left(units: Units, step: Step) -> list:
        pixel = np.where(units.pixel % step.shape()[-1] > 0, units.pixel - 1, units.pixel)
        return [(step.operands[0], units.at(pixel, units.channel))]

    model = nn.Sequential(nn.Conv2d(3, 2, 1), Shifted())
    with pytest.raises(TypeError, match="that TorchScript, numpy or an extension made"):
        fixations(model, IMAGES)
    fix = fixations(model, IMAGES, rules=FixationRules(extra={Shifted: Rule(left)}))
    assert int(fix.points[:, 4].max()) == 8
    same(fix, fixations(model, IMAGES, rules=FixationRules(extra={Shifted: left})))


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"shift": "half"}, ValueError, "shift: expected one of 'full', 'partial', 'none'"),
        ({"rules": "old"}, ValueError, "rules: expected one of 'modern', 'seg-unravel'"),
        ({"rules": 3}, TypeError, "rules"),
        ({"k": 0}, ValueError, "k: expected an integer >= 1"),
        ({"k": 1.5}, TypeError, "k"),
        ({"k": "all"}, ValueError, "k: expected an integer, a Share or 'resolution'"),
        ({"k": {"layer": 2}}, ValueError, "k: expected names of layers or nodes as keys"),
        ({"record": 1}, TypeError, "record"),
        ({"start": torch.zeros(2, 6, 5, dtype=torch.int64)}, ValueError, r"start: expected shape \(2, 12, 10\)"),
        (
            {"start": torch.full((2, 12, 10), 4)},
            ValueError,
            r"start: expected values below 4.*4 at position",
        ),
        ({"start": torch.zeros(2, 12, 10)}, TypeError, "start: expected an integer dtype"),
        ({"images": IMAGES.double()}, TypeError, "images: expected the model's dtype torch.float32"),
        ({"images": IMAGES.to("meta")}, ValueError, "one common device"),
        ({"images": IMAGES[0]}, ValueError, "images: expected shape"),
        ({"images": IMAGES[:0]}, ValueError, "images: expected at least one image"),
        ({"model": torch.relu}, TypeError, "model: expected a torch.nn.Module"),
        ({"images": IMAGES.index_fill(3, torch.tensor([4]), math.nan)}, ValueError, "node 'input_1'.*NaN"),
    ],
)
def test_unfit_arguments_are_refused(change: dict, error: type[Exception], match: str) -> None:
    given = {"model": small(), "images": IMAGES, **change}
    with pytest.raises(error, match=match):
        fixations(given.pop("model"), given.pop("images"), **given)


def test_nan_names_the_layer_it_comes_from() -> None:
    model = small()
    model[4].weight.data[0, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match="node '_4': expected numbers as activations, got NaN"):
        fixations(model, IMAGES)


@pytest.mark.parametrize("settings", [{"base": "new"}, {"select": "pixel"}, {"extra": [1]}, {"extra": {nn.ReLU: 1}}])
def test_unfit_rules_are_refused(settings: dict) -> None:
    with pytest.raises((TypeError, ValueError)):
        FixationRules(**settings)


def test_an_operation_without_a_rule_is_named() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cumsum(self.conv(x), 1)

    with pytest.raises(NotImplementedError, match=r"node 'cumsum'.*FixationRules"):
        fixations(Odd(), IMAGES)


def same(one: Fixations, other: Fixations) -> None:
    assert torch.equal(one.points, other.points)
    assert torch.allclose(one.mass, other.mass)


def dense(fix: Fixations) -> Tensor:
    """Masses as a tensor (N, label, channel, y, x)."""
    result = torch.zeros(fix.images, fix.classes, 3, *fix.size, dtype=torch.float64)
    result[tuple(fix.points.unbind(1))] = fix.mass
    return result
