"""Influence against captum's Occlusion and FeatureAblation, and against hiding patch by patch."""

import pytest
import torch
from captum.attr import FeatureAblation
from influence_cases import SIZE, Net, assert_near, hidden_logits, images_of, occlusion, small_case
from torch.nn import functional as F

from perpixel.attribution.baselines import fill
from perpixel.attribution.captum.target import RegionTarget
from perpixel.attribution.influence import result
from perpixel.attribution.influence.influence import influence
from perpixel.attribution.influence.patches import connected_segments


@pytest.mark.parametrize("score", ["logit", "margin"])
@pytest.mark.parametrize(
    ("patch", "stride", "baselines"),
    [
        ((8, 8), (8, 8), None),
        ((7, 13), (7, 13), "blur"),
        ((6, 9), (4, 5), "mean"),
        ((21, 5), (3, 5), 0.3),
        ((21, 26), (21, 26), None),
        ((20, 25), (1, 25), "zero"),
        ((5, 26), (2, 99), None),
        ((1, 26), (1, 26), "mean"),
    ],
)
def test_equals_captums_occlusion(
    patch: tuple[int, int], stride: tuple[int, int], baselines: object, score: str
) -> None:
    model, images = small_case()
    found = influence(model, images, patch=patch, stride=stride, baselines=baselines, batch_size=3)  # type: ignore[arg-type]
    region = torch.zeros(2, *SIZE, dtype=torch.bool)
    region[0, 3:17, 4:9] = True
    region[1, :2, 20:] = True
    labels = torch.tensor([1, 3])
    expected = occlusion(RegionTarget(model, labels, region, score), images, patch, stride, baselines)
    assert_near(found.of(labels, region, score, pixels=True), expected)
    assert float(expected.abs().max()) > 0
    if stride == patch:
        corners = expected[:, found.boxes[:, 0], found.boxes[:, 1]]
        assert_near(found.of(labels, region, score).flatten(1), corners)
        assert found.of(labels, region, score).shape == (2, *found.grid)


@pytest.mark.parametrize("score", ["logit", "margin"])
def test_the_predicted_region_is_the_default_as_for_region_target(score: str) -> None:
    model, images = small_case(dtype=torch.float32)
    found = influence(model, images, patch=8)
    label = int(found.predictions.flatten(1).mode().values[0])
    expected = occlusion(RegionTarget(model, label, None, score), images, (8, 8), (8, 8), None)
    mine = found.of(label, score=score, pixels=True)
    assert mine.dtype == expected.dtype
    torch.testing.assert_close(mine, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert torch.equal(found.predictions, model(images).argmax(1))


def test_margin_of_a_pixel_compares_with_the_best_other_class_of_each_pass() -> None:
    model, images = small_case()
    found = influence(model, images, patch=9, baselines="mean")
    before, after = hidden_logits(model, images, found.boxes, images.mean((2, 3), keepdim=True))
    y, x = 11, 4
    for label in range(4):
        others = [k for k in range(4) if k != label]
        margin = before[:, label, y, x] - before[:, others, y, x].amax(1)
        hidden = after[:, :, label, y, x] - after[:, :, others, y, x].amax(2)
        torch.testing.assert_close(found.on_pixel(y, x, label, "margin").flatten(1), margin[:, None] - hidden)


def test_a_region_at_the_size_of_a_smaller_output() -> None:
    torch.manual_seed(1)
    model, images = Net(end=lambda z, x: F.interpolate(z, size=(11, 13), mode="bilinear")).double(), images_of(2, SIZE)
    images = images.double()
    region = torch.zeros(11, 13, dtype=torch.bool)
    region[2:9, 3:5] = True
    found = influence(model, images, patch=9)
    assert found.passes.upsampling.output == (11, 13)
    for at in (region, torch.zeros(SIZE, dtype=torch.bool).index_fill(0, torch.tensor([4]), True)):
        expected = occlusion(RegionTarget(model, 1, at), images, (9, 9), (9, 9), None)
        assert_near(found.of(1, at, pixels=True), expected)


def test_regions_add_up_and_images_do_not_mix() -> None:
    model, images = small_case(3)
    found = influence(model, images, patch=10)
    one = torch.rand(3, *SIZE) > 0.5
    torch.testing.assert_close(found.of(1, one) + found.of(1, ~one), found.of(1, torch.ones_like(one)))
    for n in range(3):
        alone = influence(model, images[n : n + 1], patch=10, batch_size=1)
        torch.testing.assert_close(alone.values[0], found.values[n])
        torch.testing.assert_close(alone.on_pixel(7, 9)[0], found.on_pixel(7, 9)[n])


@pytest.mark.parametrize("small_and_chunk", [(0, 1 << 22), (0, 1), (1 << 18, 300)])
def test_large_ones_are_read_in_parts(small_and_chunk: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = small_case()
    region = torch.zeros(2, *SIZE, dtype=torch.bool)
    region[0, 3:9, 5:7] = True
    region[1, 20:, :3] = True
    found = influence(model, images, patch=8)
    whole = {score: found.of(torch.tensor([1, 2]), region, score) for score in ("logit", "margin")}
    pixel = found.on_pixel(9, 9)
    found = influence(model, images, patch=8)
    for name, value in zip(("_SMALL", "_CHUNK"), small_and_chunk):
        monkeypatch.setattr(result, name, value)
    for score, effect in whole.items():
        torch.testing.assert_close(found.of(torch.tensor([1, 2]), region, score), effect)
    torch.testing.assert_close(found.on_pixel(9, 9), pixel)


def test_the_batch_size_changes_nothing() -> None:
    model, images = small_case(3)
    expected = influence(model, images, patch=8, baselines="blur").values
    for size in (1, 2, 5, 7, 100):
        found = influence(model, images, patch=8, baselines="blur", batch_size=size).values
        torch.testing.assert_close(found, expected)


def test_inpainting_fills_each_patch_from_around_it() -> None:
    model, images = small_case(1)
    found = influence(model, images, patch=8, baselines="inpaint")
    before = model(images)
    for number, (top, left, bottom, right) in enumerate(found.boxes.tolist()):
        mask = torch.zeros(SIZE, dtype=torch.bool)
        mask[top:bottom, left:right] = True
        expected = (before - model(fill(images, mask)))[:, 1].sum()
        torch.testing.assert_close(found.of(1, torch.ones(SIZE, dtype=torch.bool)).flatten()[number], expected)
    flat = torch.full_like(images, 0.7)
    assert influence(model, flat, patch=8, baselines="inpaint").values.abs().max() < 1e-6


def test_segments_equal_captums_feature_ablation() -> None:
    model, images = small_case()
    segments = torch.zeros(2, *SIZE, dtype=torch.int64)
    segments[:, :, 9:] = 1
    segments[0, 12:, :7] = 40
    segments[1, 2:5, 2:5] = -1
    found = influence(model, images, by="segments", segments=segments, baselines="mean", batch_size=2)
    assert found.grid == (3,)
    assert found.boxes.tolist() == [
        [[0, 0, 21, 9], [0, 9, 21, 26], [12, 0, 21, 7]],
        [[0, 0, 21, 9], [0, 9, 21, 26], [0, 0, 0, 0]],
    ]
    region = torch.rand(2, *SIZE) > 0.5
    effect = found.of(2, region)
    assert effect.shape == (2, 3)
    assert bool(effect[1, 2].isnan())
    pixels = found.of(2, region, pixels=True)
    for n in range(2):
        ablation = FeatureAblation(RegionTarget(model, 2, region[n : n + 1]))
        base = images[n : n + 1].mean((2, 3), keepdim=True).expand(1, -1, *SIZE)
        mask = torch.where(segments[n] < 0, 99, segments[n])[None, None]
        expected = ablation.attribute(images[n : n + 1], baselines=base, feature_mask=mask)[0, 0]
        assert_near(pixels[n], torch.where(segments[n] < 0, 0.0, expected.double()))


def test_segments_default_to_the_connected_regions_of_the_prediction() -> None:
    model, images = small_case(dtype=torch.float32)
    found = influence(model, images, by="segments")
    given = influence(model, images, by="segments", segments=connected_segments(found.predictions))
    torch.testing.assert_close(found.values, given.values, equal_nan=True)


def _flood(labels: list[list[int]]) -> list[list[int]]:
    """Connected regions by flooding, numbered by their first pixel within each label, labels rising."""
    numbers = [[-1] * len(row) for row in labels]
    pixels = [(y, x) for y in range(len(labels)) for x in range(len(labels[0])) if 0 <= labels[y][x] != 255]
    count = 0
    for y, x in sorted(pixels, key=lambda place: labels[place[0]][place[1]]):
        todo = [(y, x)] if numbers[y][x] < 0 else []
        count += len(todo)
        while todo:
            v, u = todo.pop()
            if (v, u) in pixels and labels[v][u] == labels[y][x] and numbers[v][u] < 0:
                numbers[v][u] = count - 1
                todo += [(v + 1, u), (v - 1, u), (v, u + 1), (v, u - 1)]
    return numbers


def test_connected_segments_are_those_of_flooding() -> None:
    labels = torch.randint(0, 3, (3, 9, 11))
    labels[0, 2, 3] = 255
    labels[1, :2] = -1
    expected = torch.tensor([_flood(image.tolist()) for image in labels])
    assert torch.equal(connected_segments(labels), expected)
    large = connected_segments(labels, least=4)
    for image in range(3):
        sizes = torch.bincount(expected[image][expected[image] >= 0])
        kept = large[image] >= 0
        assert torch.equal(kept, (expected[image] >= 0) & (sizes[expected[image].clamp(min=0)] >= 4))
        assert large[image][kept].unique().tolist() == list(range(int((sizes >= 4).sum())))
