"""One skip from any node: where the units of a node lie, what is refused, and networks that everything follows."""

import copy
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, fx, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import perpixel
from perpixel.models import FeatureMap, SkipNetwork, build, feature_maps, single_skip
from perpixel.models.learnable_upsampling import Cells
from perpixel.models.nodes import cut_backbone, inspected
from perpixel.models.skips import upsample


def slow_upsample(maps: Tensor, size: tuple[int, int], stride: int, offset: float) -> Tensor:
    """The bilinear value at (y - offset) / stride, a place outside the grid brought to its rim."""

    def between(cells: int, pixel: int) -> tuple[int, int, float]:
        place = min(max((pixel - offset) / stride, 0.0), cells - 1.0)
        low = min(int(place), max(cells - 2, 0))
        return low, min(low + 1, cells - 1), place - low

    result = maps.new_zeros(*maps.shape[:2], *size)
    for y in range(size[0]):
        for x in range(size[1]):
            top, bottom, down = between(maps.shape[2], y)
            left, right, along = between(maps.shape[3], x)
            upper = maps[..., top, left] * (1 - along) + maps[..., top, right] * along
            lower = maps[..., bottom, left] * (1 - along) + maps[..., bottom, right] * along
            result[..., y, x] = upper * (1 - down) + lower * down
    return result


@pytest.mark.parametrize(
    ("grid", "size", "stride", "offset"),
    [
        ((3, 4), (40, 51), 16, 0.0),  # as of ResNet: windows of odd sizes
        ((3, 4), (40, 51), 16, 7.5),  # as of VGG: half-pixel centres
        ((3, 4), (40, 51), 16, 14.0),  # as of networks without padding
        ((2, 2), (30, 30), 8, 37.0),  # a grid that begins behind the image
        ((4, 4), (17, 18), 4, -3.0),
        ((1, 1), (5, 6), 4, 1.5),
        ((4, 5), (6, 9), 1, 2.0),
    ],
)
def test_upsampling_reads_the_grid_where_it_lies(
    grid: tuple[int, int], size: tuple[int, int], stride: int, offset: float
) -> None:
    maps = torch.randn(2, 3, *grid, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(upsample(maps, size, Cells(stride, offset)), slow_upsample(maps, size, stride, offset))


@pytest.mark.parametrize(
    ("backbone", "layer", "cells"),
    [
        ("resnet18", "layer2", 3),
        ("vgg11", "features.10", 3),
        ("squeezenet1_1", "features.5", 3),  # no padding, and a last window that begins inside the image
        ("shufflenet_v2_x0_5", "stage2", 3),
    ],
)
@torch.no_grad()
def test_units_lie_where_they_are_said_to(backbone: str, layer: str, cells: int) -> None:
    """Where the first and the last of some units are as far from the image's two ends, a mirrored image gives the
    mirrored map, if all windows are mirrored themselves."""
    found = inspected(backbone).find(layer)
    network = cut_backbone(backbone, None, [found.name])
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data + module.weight.data.flip(2, 3)
    side = int(2 * found.offset) + found.stride * (cells - 1) + 1
    image = torch.rand(1, 3, side, side, dtype=torch.float64)
    network.double().eval()
    (straight,), (mirrored,) = network(image).values(), network(image.flip(2, 3)).values()
    assert straight.shape[1:] == (found.channels, cells, cells)
    torch.testing.assert_close(mirrored.flip(2, 3), straight)
    assert float(straight.std()) > 0


def test_nodes_are_those_of_torchvision_and_only_maps() -> None:
    maps = feature_maps("resnet18")
    names = get_graph_node_names(torchvision.models.resnet18())[1]
    assert [name for name in names if name in maps] == list(maps)
    assert {"x", "avgpool", "flatten", "fc"} == set(names) - set(maps)
    ends = [name for name, one in maps.items() if one.ends_block]
    blocks = [f"layer{stage}.{block}.relu_1" for stage in (1, 2, 3, 4) for block in (0, 1)]
    assert ends == ["relu", "maxpool", *blocks]
    assert maps["layer3.1.relu_1"] == FeatureMap("layer3.1.relu_1", 256, 16, 0.0, 13, True)
    assert list(feature_maps("resnet18", ["layer3", "conv1"])) == ["conv1", "layer3.1.relu_1"]


def test_maps_that_are_turned_on_the_way() -> None:
    known = inspected("convnext_tiny")  # whose blocks are channels-last inside
    ends = [one for one in known.maps.values() if one.ends_block]
    assert [(one.stride, one.offset, one.depth) for one in ends][-3:] == [(16, 7.5, 18), (32, 15.5, 19), (32, 15.5, 22)]
    with pytest.raises(ValueError, match=r"layer: .* gives a map .* gives \(1, 96, 144, 96\) for"):
        known.find("features.1.0.block.1")


def test_networks_of_one_size_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = {"image_size": 32, "patch_size": 16, "num_layers": 1, "num_heads": 1, "hidden_dim": 8, "mlp_dim": 8}
    transformer = torchvision.models.VisionTransformer(**tiny)
    monkeypatch.setattr("perpixel.models.nodes.classification_network", lambda *_: transformer)
    with pytest.raises(ValueError, match=r"backbone: expected a network for images of any size, got vit_b_16"):
        single_skip(3, backbone="vit_b_16")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "resnet19"}, "backbone: expected a classification network of torchvision: alexnet, convnext_"),
        ({"layer": "layer9"}, "layer: expected a node of resnet18, got 'layer9'. .*relu, maxpool, layer1.0.relu_1"),
        ({"layer": "layer1.0.relu_2"}, "Did you mean layer1.0.relu_1"),
        ({"layer": "avgpool"}, r"gives a map .* \(1, 512, 1, 1\) for .* The nearest that do: layer4.1.relu_1, layer4"),
        ({"layer": ("layer1", "fc")}, r"gives a map .*'fc', which gives \(1, 1000\)"),
        ({"layer": 3}, "layer: expected the name of a node"),
        ({"weights": "NONE"}, "weights: expected None or one of IMAGENET1K_V1"),
    ],
)
def test_what_cannot_be_is_refused_with_the_choices(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        single_skip(3, **options)


NETWORKS = [
    ("resnet18", "layer2"),
    ("vgg11", ("features.10", "features.15")),
    ("mobilenet_v3_small", "features.3"),
    ("squeezenet1_1", "features.4"),
]


@pytest.fixture(scope="module", params=NETWORKS, ids=lambda one: one[0])
def network(request: pytest.FixtureRequest) -> SkipNetwork:
    """With scores of skips that are no longer zero."""
    torch.manual_seed(0)
    made: Any = build("single_skip", 4, backbone=request.param[0], layer=request.param[1])
    assert not any(bool(parameter.any()) for parameter in made.head.skips.parameters())
    for parameter in made.head.skips.parameters():
        nn.init.normal_(parameter, std=0.1)
    return made.eval()


def test_logits_of_any_size(network: SkipNetwork) -> None:
    for size in ((64, 97), (33, 50)):
        images = torch.randn(2, 3, *size)
        logits = network(images)
        assert logits.shape == (2, 4, *size)
        torch.testing.assert_close(network(images[:1]), logits[:1], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(network(images.to(memory_format=torch.channels_last)), logits, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match=rf"images: expected .* at least {network.minimum}"):
        network(torch.rand(1, 3, network.minimum - 1, 64))
    network(torch.rand(1, 3, network.minimum, 64))


def test_traced_copied_and_loaded(network: SkipNetwork) -> None:
    images = torch.randn(1, 3, 40, 51)
    logits = network(images)
    assert torch.equal(fx.symbolic_trace(network)(images), logits)
    copied = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert not torch.equal(copied(images), logits)
    copied.load_state_dict(network.state_dict())
    assert torch.equal(copied(images), logits)


def test_attached_followed_and_trained(network: SkipNetwork) -> None:
    trained, images = copy.deepcopy(network).train(), torch.randn(2, 3, 70, 96)
    with perpixel.attach(trained, perpixel.TemplateSimilarityLoss(weight=0.1)) as criterion:
        criterion(trained(images), torch.randint(0, 4, (2, 70, 96))).backward()
        assert criterion.terms["template_similarity"] != 0
    assert [name for name, parameter in trained.named_parameters() if parameter.grad is None] == []
    fix = perpixel.fixations(network, images[:1], strict=True, record=True)
    assert float(fix.mass.sum()) + fix.dropped == fix.started == 70 * 96
    assert float(fix.on("head.skips.0").mass.sum()) > 0


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:`torch.jit.trace")
def test_compiled_and_exported() -> None:
    network, images = single_skip(2, layer="layer3").eval(), torch.randn(1, 3, 33, 40)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), network(images))
    exported = torch.jit.trace(network, images)
    torch.testing.assert_close(exported(images), network(images))


def test_the_last_layer_itself_is_no_skip() -> None:
    for layer in (None, "layer4"):
        plain = single_skip(3, layer=layer)
        assert len(plain.head.skips) == 0
        assert plain.head.maps[0].name == "layer4.1.relu_1"
    both = single_skip(3, layer=["layer2", "layer3", "layer2.1.relu_1"])
    assert [one.stride for one in both.head.maps] == [32, 16, 8]
    assert [(c.in_channels, c.out_channels) for c in both.head.skips] == [(256, 3), (128, 3)]
    assert build("single_skip", 1, layer="layer1")(torch.rand(2, 3, 32, 32)).shape == (2, 1, 32, 32)


@pytest.mark.parametrize("training", [False, True])
def test_features_are_those_of_torchvision_with_its_weights(training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    original = torchvision.models.mobilenet_v3_small()
    monkeypatch.setattr("torchvision.models._api.WeightsEnum.get_state_dict", lambda *_, **__: original.state_dict())
    network = single_skip(3, backbone="mobilenet_v3_small", layer="features.3", weights="DEFAULT").train(training)
    theirs = create_feature_extractor(original.train(training), ["features.3.add", "features.12"])
    images = torch.randn(2, 3, 64, 64)
    for name, expected in theirs(images).items():
        torch.testing.assert_close(network.backbone(images)[name], expected)
