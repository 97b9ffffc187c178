"""The numbers on where an attribution lies, against loops over pixels; and what stands in for hidden pixels."""

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from perpixel.attribution import Attribution, baseline_images, context_share, density_ratio, fill, radial_profile
from perpixel.attribution.baselines import blur
from perpixel.attribution.measures.context import distances

H, W = 9, 11
PIXELS = list(itertools.product(range(H), range(W)))


def values(channels: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(2, channels, H, W, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def region() -> Tensor:
    found = torch.zeros(2, H, W, dtype=torch.bool)
    found[0, 2:5, 3:6] = True
    found[1, 7, 1] = found[1, 0, 9] = True
    return found


def slow_distance(mask: Tensor) -> list[list[float]]:
    inside = mask.nonzero().tolist()
    return [[min(math.dist((y, x), p) for p in inside) for x in range(mask.shape[1])] for y in range(mask.shape[0])]


def slow_mass(v: Tensor, y: int, x: int, part: str) -> float:
    held = [float(value) for value in v[:, y, x]]
    sign = {"absolute": abs, "positive": lambda a: max(a, 0.0), "negative": lambda a: max(-a, 0.0)}[part]
    return sum(sign(value) for value in held)


def slow_sides(v: Tensor, mask: Tensor, border: float, part: str) -> tuple[list[float], list[float]]:
    away = slow_distance(mask)
    near = [slow_mass(v, y, x, part) for y, x in PIXELS if mask[y, x]]
    return near, [slow_mass(v, y, x, part) for y, x in PIXELS if not mask[y, x] and away[y][x] > border]


def attribution(v: Tensor, mask: Tensor, **other: Any) -> Attribution:
    return Attribution(v, mask, 1, "Saliency", **other)


@pytest.mark.parametrize("part", ["absolute", "positive", "negative"])
@pytest.mark.parametrize("border", [0, 1, 1.5, 3])
def test_share_and_density_equal_the_loop(border: float, part: str) -> None:
    v, mask = values(), region()
    found = attribution(v, mask)
    for n in range(2):
        near, far = slow_sides(v[n], mask[n], border, part)
        share = sum(far) / (sum(near) + sum(far))
        assert float(found.context_share(border, part)[n]) == pytest.approx(share, rel=1e-12)
        ratio = (sum(far) / len(far)) / (sum(near) / len(near))
        assert float(found.density_ratio(border, part)[n]) == pytest.approx(ratio, rel=1e-12)


def test_distances_equal_the_loop() -> None:
    torch.testing.assert_close(
        distances(region()), torch.tensor([slow_distance(mask) for mask in region()], dtype=torch.float64)
    )
    assert distances(torch.zeros(1, 3, 3, dtype=torch.bool)).isinf().all()


@pytest.mark.parametrize("bins", [1, 4, 10, [0.0, 1.0, 2.5, 4.0, 40.0], [1.5, 3.0]])
def test_radial_profile_equals_the_loop(bins: Any) -> None:
    v, mask = values(), region()
    profile = attribution(v, mask).radial_profile(bins)
    for n in range(2):
        away = slow_distance(mask[n])
        rows = [(away[y][x], slow_mass(v[n], y, x, "absolute")) for y, x in PIXELS if not mask[n, y, x]]
        total, farthest = sum(m for _, m in rows), max(d for d, _ in rows)
        edges = [farthest * b / bins for b in range(bins + 1)] if isinstance(bins, int) else bins
        torch.testing.assert_close(profile.edges[n], torch.tensor(edges, dtype=torch.float64))
        for b in range(len(edges) - 1):
            high = edges[b + 1] + (1e-9 if isinstance(bins, int) and b == bins - 1 else 0)
            inside = [(d, m) for d, m in rows if edges[b] < d <= high]
            assert float(profile.share[n, b]) == pytest.approx(sum(m for _, m in inside) / total, rel=1e-9)
            assert float(profile.area[n, b]) == pytest.approx(len(inside) / len(rows), rel=1e-9)
            assert float(profile.distances[n, b]) == pytest.approx((edges[b] + edges[b + 1]) / 2)
        half = min(d for d, _ in rows if sum(m for e, m in rows if e <= d) >= total / 2)
        assert float(profile.r50[n]) == pytest.approx(half)
        half = min(d for d, _ in rows if sum(1 for e, _ in rows if e <= d) >= len(rows) / 2)
        assert float(profile.r50_area[n]) == pytest.approx(half)
    if isinstance(bins, int):
        torch.testing.assert_close(profile.cumulative[:, -1], torch.ones(2, dtype=torch.float64))


def test_all_mass_inside_or_outside() -> None:
    v, mask = values(), region()
    inside, outside = attribution(v * mask[:, None], mask), attribution(v * ~mask[:, None], mask)
    assert inside.context_share().tolist() == inside.density_ratio().tolist() == [0, 0]
    profile = inside.radial_profile(3)
    assert profile.r50.isnan().all()
    assert profile.share.isnan().all()
    assert profile.area.isfinite().all()
    assert outside.context_share().tolist() == [1, 1]
    assert outside.density_ratio().isinf().all()


def test_nothing_at_all_and_nothing_outside() -> None:
    v, mask = values(), region()
    nothing = attribution(v * 0, mask)
    assert nothing.context_share().isnan().all()
    assert nothing.density_ratio().isnan().all()
    everywhere = attribution(v, torch.ones_like(mask))
    assert everywhere.context_share().tolist() == [0, 0]
    assert everywhere.density_ratio().isnan().all()
    profile = everywhere.radial_profile(3)
    assert profile.r50.isnan().all()
    assert profile.area.isnan().all()
    nowhere = attribution(v, torch.zeros_like(mask))
    assert nowhere.radial_profile(3).share.isnan().all()
    assert nowhere.context_share().tolist() == [1, 1]


def test_even_mass_is_spread_as_the_area() -> None:
    mask = region()
    profile = radial_profile(torch.ones(2, H, W), mask, 5)
    torch.testing.assert_close(profile.share, profile.area)
    torch.testing.assert_close(profile.r50, profile.r50_area)
    torch.testing.assert_close(density_ratio(torch.ones(2, H, W), mask), torch.ones(2, dtype=torch.float64))


@given(scale=st.floats(1e-6, 1e6), seed=st.integers(0, 50))
def test_scale_sign_and_batch_do_not_matter(scale: float, seed: int) -> None:
    v, mask = values(seed=seed), region()
    whole = context_share(v, mask, exclude_border=2)
    torch.testing.assert_close(context_share(v * scale, mask, exclude_border=2), whole)
    torch.testing.assert_close(context_share(-v, mask, part="negative"), context_share(v, mask, part="positive"))
    assert bool(((whole >= 0) & (whole <= 1)).all())
    for n in range(2):
        alone = radial_profile(v[n : n + 1], mask[n : n + 1], 4)
        torch.testing.assert_close(alone.share[0], radial_profile(v, mask, 4).share[n])
        torch.testing.assert_close(context_share(v[n : n + 1], mask[n : n + 1], exclude_border=2)[0], whole[n])


def test_maps_without_channels_and_regions_of_another_size() -> None:
    v, mask = values(1), region()
    torch.testing.assert_close(context_share(v[:, 0], mask), context_share(v, mask))
    fine = mask.repeat_interleave(2, 1).repeat_interleave(2, 2)
    torch.testing.assert_close(context_share(v, fine), context_share(v, mask))
    low = context_share(v.bfloat16(), mask)
    assert low.dtype == torch.float64


def test_parts_and_pixels() -> None:
    v = values()
    found = attribution(v, region())
    torch.testing.assert_close(found.positive + found.negative, v)
    assert bool((found.positive >= 0).all())
    assert bool((found.negative <= 0).all())
    torch.testing.assert_close(found.pixels, v.sum(1))
    torch.testing.assert_close(attribution(v, region(), layer="features").pixels, v[:, 0])
    assert found.size == (H, W)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"part": "both"}, ValueError, "part"),
        ({"exclude_border": -1}, ValueError, "exclude_border"),
        ({"exclude_border": math.nan}, ValueError, "exclude_border"),
        ({"exclude_border": "1"}, TypeError, "exclude_border"),
        ({"values": torch.zeros(2, H, W, dtype=torch.long)}, TypeError, "values"),
        ({"values": torch.zeros(H, W)}, ValueError, "values"),
        ({"region": torch.ones(2, H, W)}, TypeError, "region"),
        ({"region": torch.ones(H, W, dtype=torch.bool)}, ValueError, "region"),
        ({"region": torch.ones(3, H, W, dtype=torch.bool)}, ValueError, "region"),
    ],
)
def test_bad_arguments(wrong: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {"values": values(), "region": region(), **wrong}
    with pytest.raises(error, match=message):
        context_share(**arguments)


@pytest.mark.parametrize("bins", [0, -1, [], [1.0], [2.0, 1.0], [-1.0, 3.0], [[0.0, 1.0]], [0.0, math.nan]])
def test_bad_bins(bins: Any) -> None:
    with pytest.raises(ValueError, match="bins"):
        radial_profile(values(), region(), bins)
    with pytest.raises(TypeError, match="bins"):
        radial_profile(values(), region(), "many")  # type: ignore[arg-type]


def test_baselines_by_name() -> None:
    x = values()
    colour = torch.tensor([1.0, 2.0, 3.0])[:, None, None]
    forms: list[tuple[Any, Tensor]] = [(None, x * 0), ("zero", x * 0), (2, x * 0 + 2), (colour, x * 0 + colour)]
    for form, expected in [*forms, (lambda given: given * 2, x * 2)]:
        assert torch.equal(baseline_images(form, x), expected)
    for n, c in itertools.product(range(2), range(3)):
        mean = sum(x[n, c].flatten().tolist()) / (H * W)
        torch.testing.assert_close(baseline_images("mean", x)[n, c], torch.full((H, W), mean, dtype=torch.float64))
    assert baseline_images("blur", x.bfloat16()).dtype == torch.bfloat16


def test_blur_equals_the_loop() -> None:
    x, sigma = values()[:1, :1], 1.3
    found = blur(x, sigma)
    for y, c in PIXELS:
        weights = [math.exp(-((y - v) ** 2 + (c - u) ** 2) / (2 * sigma**2)) for v, u in PIXELS]
        expected = sum(w * p for w, p in zip(weights, x.flatten().tolist())) / sum(weights)
        assert float(found[0, 0, y, c]) == pytest.approx(expected, rel=1e-9)
    torch.testing.assert_close(blur(torch.ones_like(x), 2.0), torch.ones_like(x))


@pytest.mark.parametrize("ring", [1, 2])
def test_fill_equals_the_loop(ring: int) -> None:
    x = values()
    hidden = torch.zeros(H, W, dtype=torch.bool)
    hidden[3:6, 4:8] = hidden[0, 0] = True
    filled = fill(x, hidden, ring=ring)
    inside = hidden.nonzero().tolist()
    near = {(y, c) for y, c in PIXELS for v, u in inside if max(abs(y - v), abs(c - u)) <= ring}
    around = [(y, c) for y, c in sorted(near) if not hidden[y, c]]
    for v, u in inside:
        weights = [1 / ((v - y) ** 2 + (u - c) ** 2) for y, c in around]
        expected = sum(w * x[0, :, y, c] for w, (y, c) in zip(weights, around)) / sum(weights)
        torch.testing.assert_close(filled[0, :, v, u], expected)
    assert torch.equal(filled[:, :, ~hidden], x[:, :, ~hidden])


def test_fill_by_image_by_parts_and_at_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    x, mask = values(), region()
    filled = fill(x, mask)
    for n in range(2):
        torch.testing.assert_close(filled[n : n + 1], fill(x[n : n + 1], mask[n]))
    assert torch.equal(fill(x, torch.zeros_like(mask)), x)
    torch.testing.assert_close(fill(x, torch.ones(H, W, dtype=torch.bool)), baseline_images("mean", x).contiguous())
    constant = torch.full_like(x, 3.0)
    torch.testing.assert_close(fill(constant, mask), constant)
    monkeypatch.setattr("perpixel.attribution.baselines._PAIRS", 7)
    torch.testing.assert_close(fill(x, mask), filled)
    for wrong in (torch.ones(3, 3, dtype=torch.bool), torch.ones(H, W)):
        with pytest.raises(ValueError, match="mask"):
            fill(x, wrong)


def test_fill_on_a_disc_is_harmonic() -> None:
    side = 41
    place = torch.arange(side, dtype=torch.float64) - side // 2
    rows, columns = torch.meshgrid(place, place, indexing="ij")
    disc = rows**2 + columns**2 <= 15**2
    harmonic = (rows**2 - columns**2)[None, None]
    filled = fill(harmonic, disc, ring=1)
    assert float((filled - harmonic)[0, 0][disc].abs().max()) < 0.1 * float(harmonic[0, 0][disc].abs().max())
