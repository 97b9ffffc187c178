"""Influence against captum's Occlusion and against hiding patch by patch, on networks of every make."""

from collections.abc import Callable

import pytest
import torch
from captum.attr import FeatureAblation, Occlusion
from influence_cases import FINDS, LOSES, Net, hidden_logits, images_of, small
from torch import Tensor, nn
from torch.nn import functional as F

from perpixel.attribution.baselines import baseline_images
from perpixel.attribution.captum.target import RegionTarget
from perpixel.attribution.influence import result
from perpixel.attribution.influence.influence import influence
from perpixel.attribution.influence.patches import connected_segments

SIZE = (21, 26)


def occlusion(
    target: nn.Module, images: Tensor, patch: tuple[int, int], stride: tuple[int, int], baselines: object
) -> Tensor:
    """captum's map (N, H, W), the same for every channel."""
    channels = images.shape[1]
    found = Occlusion(target).attribute(
        images,
        sliding_window_shapes=(channels, *patch),
        strides=(channels, *stride),
        baselines=baseline_images(baselines, images),  # type: ignore[arg-type]
        perturbations_per_eval=3,
    )
    assert (found == found[:, :1]).all()
    return found[:, 0].to(images.dtype)  # float32, whatever the images are


def assert_near(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


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
    model, images = small(double=True), images_of(2, SIZE).double()
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
    model, images = small(), images_of(2, SIZE)
    found = influence(model, images, patch=8)
    label = int(found.predictions.flatten(1).mode().values[0])
    expected = occlusion(RegionTarget(model, label, None, score), images, (8, 8), (8, 8), None)
    mine = found.of(label, score=score, pixels=True)
    assert mine.dtype == expected.dtype
    torch.testing.assert_close(mine, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert torch.equal(found.predictions, model(images).argmax(1))


@pytest.mark.parametrize("name", [*FINDS, *LOSES])
def test_full_size_logits_follow_from_the_grid_whatever_the_network_ends_with(name: str) -> None:
    torch.manual_seed(1)
    model = (FINDS | LOSES)[name]().double().eval()
    images = images_of(2, SIZE).double()
    found = influence(model, images, patch=(9, 10), baselines=0.5, batch_size=4)
    before, after = hidden_logits(model, images, found.boxes, 0.5)
    assert found.values.shape[-2:] == found.logits.shape[-2:]
    small_grid = found.logits.shape[-2:] == (6, 7)
    assert small_grid == (name in FINDS), "the grid before the upsampling is kept, where there is one"
    torch.testing.assert_close(found.passes.upsampling(found.logits), before)
    for y, x in ((0, 0), (20, 25), (10, 3), (5, 17)):
        torch.testing.assert_close(found.on_pixel(y, x, 2).flatten(1), (before[:, None] - after)[:, :, 2, y, x])
    label = before[:, :, 10, 3].argmax(1)
    torch.testing.assert_close(found.on_pixel(10, 3), found.on_pixel(10, 3, label))
    region = torch.rand(2, *SIZE) > 0.7
    expected = ((before[:, None] - after)[:, :, 1] * region[:, None]).sum((2, 3))
    torch.testing.assert_close(found.of(1, region).flatten(1), expected)


def test_margin_of_a_pixel_compares_with_the_best_other_class_of_each_pass() -> None:
    model, images = small(double=True), images_of(2, SIZE).double()
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
    model, images = small(double=True), images_of(3, SIZE).double()
    found = influence(model, images, patch=10)
    one = torch.rand(3, *SIZE) > 0.5
    torch.testing.assert_close(found.of(1, one) + found.of(1, ~one), found.of(1, torch.ones_like(one)))
    for n in range(3):
        alone = influence(model, images[n : n + 1], patch=10, batch_size=1)
        torch.testing.assert_close(alone.values[0], found.values[n])
        torch.testing.assert_close(alone.on_pixel(7, 9)[0], found.on_pixel(7, 9)[n])


@pytest.mark.parametrize("small_and_chunk", [(0, 1 << 22), (0, 1), (1 << 18, 300)])
def test_large_ones_are_read_in_parts(small_and_chunk: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = small(double=True), images_of(2, SIZE).double()
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


def test_what_a_network_does_not_see_has_no_influence() -> None:
    class Blind(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.interpolate(F.avg_pool2d(x[..., :13], 4), size=x.shape[-2:], mode="bilinear").repeat(1, 2, 1, 1)

    found = influence(Blind(), images_of(1, SIZE), patch=(21, 13))
    effect = found.of(0, torch.ones(1, *SIZE, dtype=torch.bool))
    assert effect[0, 0, 0] != 0
    assert effect[0, 0, 1] == 0


class Depthwise(nn.Module):
    """Large enough batches of it run channels-last, unless it looks at its channels one after the other."""

    def __init__(self, views: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1, stride=2), nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.Conv2d(6, 4, 1)
        )
        self.views = views
        self.orders: list[bool] = []

    def forward(self, images: Tensor) -> Tensor:
        self.orders.append(images.is_contiguous())
        logits = self.layers(images)
        if self.views:
            logits = logits.view(len(logits), -1).view_as(logits)
        return F.interpolate(logits, size=images.shape[-2:], mode="bilinear")


@pytest.mark.parametrize("views", [False, True])
def test_depthwise_networks_run_channels_last_where_they_can(views: bool) -> None:
    torch.manual_seed(0)
    model, images = Depthwise(views).eval(), torch.rand(1, 3, 96, 112)
    labels = torch.randint(0, 4, (1, 96, 112))
    found = influence(model, images, patch=(48, 56), baselines="zero", batch_size=2)
    assert model.orders[-1] == views
    matrix = found.class_matrix(labels)
    assert model.orders[-1] == views
    assert images.is_contiguous()
    before, after = hidden_logits(model, images, found.boxes, 0.0)
    expected = torch.stack([before[0] - hidden for hidden in after[0]])
    torch.testing.assert_close(found.upsampling(found.values[0]), expected, rtol=1e-4, atol=1e-5)
    assert matrix.values.shape == (4, 4)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 7, 100])
def test_the_batch_size_changes_nothing(batch_size: int) -> None:
    model, images = small(double=True), images_of(3, SIZE).double()
    expected = influence(model, images, patch=8, baselines="blur").values
    torch.testing.assert_close(
        influence(model, images, patch=8, baselines="blur", batch_size=batch_size).values, expected
    )


def test_inpainting_fills_each_patch_from_around_it() -> None:
    from perpixel.attribution.baselines import fill

    model, images = small(double=True), images_of(1, SIZE).double()
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
    model, images = small(double=True), images_of(2, SIZE).double()
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
    model, images = small(), images_of(2, SIZE)
    found = influence(model, images, by="segments")
    given = influence(model, images, by="segments", segments=connected_segments(found.predictions))
    torch.testing.assert_close(found.values, given.values, equal_nan=True)


def _flood(labels: list[list[int]]) -> list[list[int]]:
    """Connected regions by flooding, numbered by their first pixel within each label, labels rising."""
    numbers = [[-1] * len(row) for row in labels]
    count = 0
    for label in sorted({v for row in labels for v in row if 0 <= v != 255}):
        for y, row in enumerate(labels):
            for x, value in enumerate(row):
                if value != label or numbers[y][x] >= 0:
                    continue
                todo = [(y, x)]
                while todo:
                    v, u = todo.pop()
                    inside = 0 <= v < len(labels) and 0 <= u < len(row)
                    if inside and labels[v][u] == label and numbers[v][u] < 0:
                        numbers[v][u] = count
                        todo += [(v + 1, u), (v - 1, u), (v, u + 1), (v, u - 1)]
                count += 1
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


def test_one_class_is_predicted_where_its_logit_is_positive() -> None:
    torch.manual_seed(1)
    model, images = Net(classes=1).double().eval(), images_of(1, SIZE).double()
    found = influence(model, images, patch=8)
    assert torch.equal(found.predictions == 0, model(images)[:, 0] > 0)
    expected = occlusion(RegionTarget(model, 0), images, (8, 8), (8, 8), None)
    assert_near(found.of(0, pixels=True), expected)
    assert found.on_pixel(0, 0).shape == found.on_pixel(0, 0, 0).shape == (1, *found.grid)
    with pytest.raises(ValueError, match="score: expected 'logit' for a network of one class"):
        found.of(0, score="margin")


@pytest.mark.parametrize("make", [lambda: "deeplabv3_mobilenet_v3_large", lambda: "lraspp_mobilenet_v3_large"])
def test_torchvision_networks(make: Callable[[], str]) -> None:
    from torchvision.models import segmentation

    kwargs = {"aux_loss": True} if make().startswith("deeplab") else {}
    model = getattr(segmentation, make())(weights=None, weights_backbone=None, num_classes=4, **kwargs).double()
    images = images_of(1, (48, 64)).double()
    found = influence(model, images, patch=32)
    assert found.logits.shape[-1] < 64
    region = torch.zeros(1, 48, 64, dtype=torch.bool)
    region[:, 10:30, 20:50] = True
    expected = occlusion(RegionTarget(model, 2, region), images, (32, 32), (32, 32), None)
    assert_near(found.of(2, region, pixels=True), expected)


def _segformer() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 8], num_attention_heads=[1, 1],
        patch_sizes=[7, 3], strides=[4, 2], mlp_ratios=[2, 2], decoder_hidden_size=8, num_labels=4,
    )  # fmt: skip
    return transformers.SegformerForSemanticSegmentation(config)


def _smp(name: str) -> nn.Module:
    smp = pytest.importorskip("segmentation_models_pytorch")
    return getattr(smp, name)("resnet18", encoder_weights=None, classes=4)


LIBRARIES: dict[str, tuple[Callable[[], nn.Module], tuple[int, int]]] = {
    "Segformer": (_segformer, (16, 16)),  # quarter-size output
    "DeepLabV3Plus": (lambda: _smp("DeepLabV3Plus"), (16, 16)),
    "FPN": (lambda: _smp("FPN"), (16, 16)),
    "Unet": (lambda: _smp("Unet"), (64, 64)),  # the output is made at full size
}


@pytest.mark.parametrize("name", LIBRARIES)
def test_networks_of_other_libraries(name: str) -> None:
    torch.manual_seed(1)
    build, grid = LIBRARIES[name]
    model, images = build().double().eval(), images_of(1, (64, 64)).double()
    found = influence(model, images, patch=32, baselines="mean")
    assert found.logits.shape[-2:] == grid
    region = torch.zeros(64, 64, dtype=torch.bool)
    region[10:30, 20:50] = True
    for score in ("logit", "margin"):
        expected = occlusion(RegionTarget(model, 2, region, score), images, (32, 32), (32, 32), "mean")
        assert_near(found.of(2, region, score, pixels=True), expected)
