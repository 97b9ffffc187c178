"""Influence on networks of every make: how they end, how they come, and from which library."""

from collections.abc import Callable

import pytest
import torch
from influence_cases import FINDS, LOSES, SIZE, assert_near, hidden_logits, images_of, occlusion
from torch import Tensor, nn
from torch.nn import functional as F

from perpixel.attribution.captum.target import RegionTarget
from perpixel.attribution.influence.influence import influence


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


@pytest.mark.parametrize("score", ["logit", "margin"])
@pytest.mark.parametrize("times", [1, 2], ids=["region like the images", "region like the output"])
def test_a_full_size_grid_that_the_model_upsamples_further(times: int, score: str) -> None:
    torch.manual_seed(1)
    layers = [nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1)]
    model, images = nn.Sequential(*layers, nn.Upsample(scale_factor=2, mode="bilinear")).double(), images_of(2, SIZE)
    images = images.double()
    found = influence(model, images, patch=(9, 10), baselines=0.5)
    assert found.logits.shape[-2:] == SIZE
    assert found.upsampling.output == (42, 52)
    size = (times * SIZE[0], times * SIZE[1])
    region = torch.rand(2, *size) > 0.7
    grid = found.logits.clone().requires_grad_()
    (found.upsampling(grid, size) * region[:, None]).sum().backward()
    torch.testing.assert_close(found.upsampling.weights(region), grid.grad[:, 3])

    def scores(x: Tensor) -> Tensor:
        logits = F.interpolate(model(x), size=size, mode="bilinear")
        own = logits[:, 1] - (logits[:, [0, 2, 3]].amax(1) if score == "margin" else 0)
        return (own * region).sum((1, 2))

    effect = found.of(1, region, score).flatten(1)
    for number, (top, left, bottom, right) in enumerate(found.boxes.tolist()):
        hidden = images.clone()
        hidden[:, :, top:bottom, left:right] = 0.5
        torch.testing.assert_close(effect[:, number], scores(images) - scores(hidden))


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
    torch.testing.assert_close(found.upsampling(found.values[0]), before - after[0], rtol=1e-4, atol=1e-5)
    assert matrix.values.shape == (4, 4)


def _torchvision(name: str, **options: bool) -> nn.Module:
    from torchvision.models import segmentation

    return getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=4, **options)


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
    "torchvision DeepLab": (lambda: _torchvision("deeplabv3_mobilenet_v3_large", aux_loss=True), (4, 4)),
    "torchvision LRASPP": (lambda: _torchvision("lraspp_mobilenet_v3_large"), (8, 8)),
    "Segformer": (_segformer, (16, 16)),  # quarter-size output
    "DeepLabV3Plus": (lambda: _smp("DeepLabV3Plus"), (16, 16)),
    "Unet": (lambda: _smp("Unet"), (64, 64)),  # the output is made at full size
}


@pytest.mark.parametrize("name", LIBRARIES)
def test_networks_of_the_libraries(name: str) -> None:
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
