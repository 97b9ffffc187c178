"""DeepLab: against slow loops and the papers' layers, its alignment, and all that must work with a network of ours."""

import copy
import io
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import vgg16
from torchvision.models.resnet import Bottleneck, ResNet

from benchmarks.zoo import FEATURES, Network, row
from perpixel import attach, fixations
from perpixel.models import DeepLab, build, deeplab, deeplab_largefov_vgg16, deeplab_v2_vgg16, parameter_groups
from perpixel.models.backbones import vgg_layers

CLASSES = 3
TINY: dict[str, Any] = {"width": 1 / 16, "fc_channels": 8}


def shallow(num_classes: int, **options: Any) -> DeepLab:
    """DeepLab-v2 on a ResNet of one narrow block per layer."""
    dilated = {"replace_stride_with_dilation": [False, True, True]}
    return deeplab.resnet_with_pyramid(
        ResNet(Bottleneck, [1] * 4, width_per_group=4, **dilated), num_classes, **options
    )


MAKERS: dict[str, Callable[..., DeepLab]] = {
    "largefov": lambda classes=CLASSES, **options: deeplab_largefov_vgg16(classes, **TINY, **options),
    "v2 vgg16": lambda classes=CLASSES, **options: deeplab_v2_vgg16(classes, **TINY, **options),
    "v2 resnet": lambda classes=CLASSES, **options: shallow(classes, **options),
}
EACH = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
EITHER_SCALES = pytest.mark.parametrize("multi_scale", [False, True])


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def of(output: Any) -> Tensor:
    return output["out"] if isinstance(output, dict) else output


# --- the layers of the papers


def test_largefov_is_the_stack_of_layers_of_the_paper() -> None:
    network = deeplab_largefov_vgg16(CLASSES, **TINY).eval()
    given = iter([p.detach() for p in network.parameters()])
    x = images = torch.randn(2, 3, 49, 57)  # 8k + 1, as in the paper
    for convolutions, dilation, stride in ((2, 1, 2), (2, 1, 2), (3, 1, 2), (3, 1, 1), (3, 2, 1)):
        for _ in range(convolutions):
            x = F.conv2d(x, next(given), next(given), padding=dilation, dilation=dilation).relu()
        x = F.max_pool2d(x, 3, stride, 1)
    x = F.conv2d(F.avg_pool2d(x, 3, 1, 1), next(given), next(given), padding=12, dilation=12).relu()
    x = F.conv2d(F.conv2d(x, next(given), next(given)).relu(), next(given), next(given))
    assert x.shape[-2:] == (7, 8)
    expected = F.interpolate(x, (49, 57), mode="bilinear", align_corners=True)
    torch.testing.assert_close(network(images), expected)
    assert next(given, None) is None


def test_branches_of_v2_on_vgg_are_summed() -> None:
    network: Any = deeplab_v2_vgg16(CLASSES, **TINY).eval()
    features = torch.randn(2, 32, 6, 5)
    total = network.classifier.bias.view(-1, 1, 1)
    for k, rate in enumerate((6, 12, 18, 24)):
        own = slice(8 * k, 8 * k + 8)
        fc6, fc7 = network.fc6.branches[k], network.fc7
        x = F.conv2d(features, fc6.weight, fc6.bias, padding=rate, dilation=rate).relu()
        x = F.conv2d(x, fc7.weight[own], fc7.bias[own]).relu()
        total = total + F.conv2d(x, network.classifier.weight[:, own])
    found = network.classifier(F.relu(network.fc7(F.relu(network.fc6(features)))))
    torch.testing.assert_close(found, total)
    assert not any(isinstance(layer, nn.AvgPool2d) for layer in network.modules())


def test_the_pyramid_sums_its_dilated_convolutions_tap_by_tap() -> None:
    pyramid: Any = deeplab.AtrousPyramid(4, 2)
    features = torch.randn(1, 4, 20, 20)
    for y, x in ((0, 0), (10, 7), (19, 19)):
        expected = sum(branch.bias for branch in pyramid.branches)
        for branch, rate in zip(pyramid.branches, (6, 12, 18, 24), strict=True):
            for a in range(3):
                for b in range(3):
                    at = y + rate * (a - 1), x + rate * (b - 1)
                    if min(at) >= 0 and max(at) < 20:
                        expected = expected + branch.weight[:, :, a, b] @ features[0, :, at[0], at[1]]
        torch.testing.assert_close(pyramid(features)[0, :, y, x], expected)


def test_sizes_of_the_published_networks() -> None:
    with torch.device("meta"):
        largefov, v2, resnet = (
            dict(build(f"deeplab_{name}", 21).named_parameters())
            for name in ("largefov_vgg16", "v2_vgg16", "v2_resnet101")
        )
    assert largefov["fc6.weight"].shape == (1024, 512, 3, 3)
    assert largefov["classifier.weight"].shape == (21, 1024, 1, 1)
    assert round(sum(p.numel() for p in largefov.values()) / 1e6, 1) == 20.5  # as published
    assert v2["fc6.branches.3.weight"].shape == (1024, 512, 3, 3)
    assert v2["fc7.weight"].shape == (4096, 1024, 1, 1)
    assert v2["classifier.weight"].shape == (21, 4096, 1, 1)
    assert resnet["classifier.branches.3.weight"].shape == (21, 2048, 3, 3)
    assert resnet["features.layer4.2.conv3.weight"].shape == (2048, 512, 1, 1)


def test_fully_connected_layers_are_sampled_alike_in_what_they_give_and_take(monkeypatch: Any) -> None:
    with torch.device("meta"):
        whole = dict(vgg16().named_parameters())
    assert whole["classifier.0.weight"].shape == (4096, 512 * 49)
    assert whole["classifier.3.weight"].shape == (4096, 4096)
    source: Any = nn.Module()  # the same with 32 channels
    source.features = vgg_layers("vgg16", width=1 / 16)
    source.classifier = nn.Sequential(nn.Linear(32 * 49, 4096), nn.ReLU(), nn.Dropout(), nn.Linear(4096, 4096))
    asked: list[Any] = []
    monkeypatch.setattr(deeplab, "classification_network", lambda *given: asked.append(given) or copy.copy(source))
    features = source.features
    for maker, branches, channels in ((deeplab_largefov_vgg16, 1, 1024), (deeplab_v2_vgg16, 4, 6)):
        source.features = copy.deepcopy(features)
        network: Any = maker(CLASSES, weights="DEFAULT", fc_channels=channels).requires_grad_(False)
        chosen = [i * 4096 // channels for i in range(channels)]
        assert len(set(chosen)) == channels
        if channels == 1024:
            assert chosen == list(range(0, 4096, 4))
        first, second = source.classifier.requires_grad_(False)[0], source.classifier[3]
        for k in range(branches):
            fc6 = network.fc6 if branches == 1 else network.fc6.branches[k]
            for o in (0, 1, 5, channels - 1):
                assert float(fc6.bias[o]) == float(first.bias[chosen[o]])
                assert float(network.fc7.bias[k * channels + o]) == float(second.bias[chosen[o]])
                for i in (0, 2, channels - 1):
                    assert float(network.fc7.weight[k * channels + o, i]) == float(second.weight[chosen[o], chosen[i]])
                for i in (0, 3, 31):
                    taps = [[float(first.weight[chosen[o], 49 * i + 7 * y + x]) for x in (0, 3, 6)] for y in (0, 3, 6)]
                    assert fc6.weight[o, i].tolist() == taps
        for name, value in features.state_dict().items():
            assert torch.equal(network.features.state_dict()[name], value)
    assert [given[0] for given in asked] == ["vgg16", "vgg16"]
    source.classifier[0].weight.fill_(torch.nan)  # as in weights of the features alone
    source.features = copy.deepcopy(features)
    network = deeplab_largefov_vgg16(CLASSES, weights="IMAGENET1K_FEATURES", fc_channels=4)
    assert all(bool(p.isfinite().all()) and bool(p.any()) for p in (network.fc6.weight, network.fc7.weight))


def test_the_backbone_of_v2_on_resnet_has_the_weights_asked_for(monkeypatch: Any) -> None:
    source = shallow(CLASSES).features
    source.add_module("fc", nn.Linear(64, 10))
    asked: list[Any] = []
    monkeypatch.setattr(deeplab, "classification_network", lambda *a, **b: asked.append((a, b)) or source)
    network = build("deeplab_v2_resnet101", CLASSES, weights="IMAGENET1K_V2", multi_scale=True)
    assert asked == [(("resnet101", "IMAGENET1K_V2"), {"replace_stride_with_dilation": [False, True, True]})]
    assert network.features.conv1 is source.conv1
    assert "features.fc.weight" not in network.state_dict()
    assert network.multi_scale


def test_what_is_drawn_and_dropped() -> None:
    network: Any = deeplab_largefov_vgg16(21, width=1 / 16, fc_channels=256, dropout=0.75)
    for layer, inputs in ((network.fc6, 9 * 32), (network.fc7, 256)):
        assert float(layer.weight.detach().std()) == pytest.approx((2 / inputs) ** 0.5, rel=0.05)
    assert float(network.classifier.weight.detach().std()) == pytest.approx(0.01, rel=0.05)
    assert not any(bool(layer.bias.any()) for layer in (network.fc6, network.fc7, network.classifier))
    given: list[Tensor] = []
    for layer in (network.fc7, network.classifier):
        layer.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0] == 0))
    for training, share in ((True, 0.875), (False, 0.5)):  # half is negative before
        network.train(training)(torch.randn(2, 3, 64, 64))
        assert [float(zeros.float().mean()) for zeros in given[-2:]] == pytest.approx([share] * 2, abs=0.08)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"width": 0.5, "weights": "DEFAULT"}, ValueError, r"width: expected 1 with weights, got float 0\.5"),
        ({"fc_channels": 5000, "weights": "DEFAULT"}, ValueError, "fc_channels: expected at most 4096 with weights"),
        ({"weights": "IMAGENET"}, ValueError, "weights: expected None or one of IMAGENET1K_V1"),
        ({"width": 0.0}, ValueError, "width: expected"),
        ({"fc_channels": 0}, ValueError, "fc_channels: expected an integer >= 1"),
        ({"dropout": 1.0}, ValueError, "dropout: expected"),
        ({"multi_scale": 1}, TypeError, "multi_scale: expected True or False"),
        ({"refine": "crf"}, TypeError, "refine: expected a function"),
        ({"scales": (1,)}, TypeError, "options: expected options of deeplab_largefov_vgg16 .width, fc_channels"),
    ],
)
def test_bad_options(options: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        build("deeplab_largefov_vgg16", CLASSES, **{**({} if "weights" in options else TINY), **options})


# --- where the logits lie


def test_a_ramp_comes_out_as_it_went_in_at_every_size() -> None:
    """Cell i is given pixel 8i: neither offset nor stretch, and the last cell's value beyond it."""
    pick = nn.Conv2d(3, 2, 1, stride=8, bias=False)
    pick.weight.data = torch.tensor([[1.0, 0, 0], [0, 1, 0]])[..., None, None]
    network = DeepLab(pick, nn.Identity())
    for height in range(33, 42):
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(29), indexing="ij")
        ramps = torch.stack([rows, columns, rows]).float()[None]
        last = torch.tensor([8 * ((height - 1) // 8), 24])
        torch.testing.assert_close(network(ramps)[0], torch.minimum(ramps[0, :2], last[:, None, None]))


@EACH
@EITHER_SCALES
def test_a_mirrored_network_sees_a_mirrored_image_mirrored(make: Any, multi_scale: bool) -> None:
    """So that nothing lies to one side of where it belongs."""
    network = make(multi_scale=multi_scale).eval()
    mirrored = copy.deepcopy(network)
    for layer in mirrored.modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight.data = layer.weight.flip(-1)
    images = torch.randn(1, 3, 40, 65)
    torch.testing.assert_close(of(mirrored(images.flip(-1))), of(network(images)).flip(-1), rtol=1e-3, atol=1e-5)


@EACH
def test_an_image_moved_by_a_cell_moves_the_logits_by_a_cell(make: Any) -> None:
    network = make().eval()
    patch, here = torch.randn(1, 3, 8, 8), torch.zeros(1, 3, 272, 272)  # what pool5 sees of it lies inside
    there = here.clone()
    here[..., 128:136, 128:136] = patch
    there[..., 136:144, 120:128] = patch
    moved, found = network(here)[..., :-16, 8:-8], network(there)[..., 8:-8, :-16]
    assert float(moved.detach().std()) > 0
    torch.testing.assert_close(found, moved)


# --- several scales


@EACH
def test_the_maximum_of_three_scales_pixel_by_pixel(make: Any) -> None:
    network = make(multi_scale=True).eval().requires_grad_(False)
    single = copy.deepcopy(network)
    single.multi_scale = False
    images = torch.randn(2, 3, 33, 41)
    found = network(images)
    assert list(found) == ["out", "scale_0.5", "scale_0.75", "scale_1"]
    for name, size in (("scale_0.5", (17, 21)), ("scale_0.75", (25, 31)), ("scale_1", (33, 41))):
        smaller = F.interpolate(images, size, mode="bilinear", align_corners=True)
        expected = F.interpolate(single(smaller), (33, 41), mode="bilinear", align_corners=True)
        torch.testing.assert_close(found[name], expected)
    for place in ((0, 0, 0, 0), (1, 2, 32, 40), (0, 1, 17, 5)):
        assert float(found["out"][place]) == max(float(found[name][place]) for name in list(found)[1:])
    torch.testing.assert_close(single(images), found["scale_1"])


class Heard:
    """A term that keeps what it is given."""

    weight = 0.0

    def __call__(self, features: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        self.given = features, logits, labels
        return features.sum()


@EACH
def test_every_scale_may_be_trained_and_terms_hear_the_images_own(make: Any) -> None:
    network, term = make(multi_scale=True), Heard()
    images, labels = torch.randn(2, 3, 43, 40), torch.randint(0, CLASSES, (2, 43, 40))
    own: list[tuple[Tensor, Tensor]] = []
    network.classifier.register_forward_hook(lambda _, given, gave: own.append((given[0], gave)))
    criterion = attach(network, term, aux=1.0)
    output = network(images)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss = criterion(output, labels)
    torch.testing.assert_close(loss, sum(F.cross_entropy(each, labels) for each in output.values()))
    assert list(criterion.terms) == ["base", "aux_scale_0.5", "aux_scale_0.75", "aux_scale_1", "Heard"]
    assert [tuple(gave.shape[-2:]) for _, gave in own[:3]] == [(3, 3), (4, 4), (6, 5)]
    assert torch.equal(term.given[0], own[2][0])
    assert torch.equal(term.given[1], own[2][1])
    expected = [[[labels[n, 8 * y, 8 * x] for x in range(5)] for y in range(6)] for n in range(2)]
    assert term.given[2].tolist() == expected
    with pytest.raises(ValueError, match="has no part in them"):
        criterion(network(images)["scale_0.5"], labels)
    with torch.no_grad(), pytest.raises(ValueError, match="head: expected"):
        criterion(network(images)["scale_0.5"], labels)
    with pytest.warns(UserWarning, match=r"\['scale_0.5', 'scale_0.75', 'scale_1'\].*add nothing"):
        attach(network, term)(network(images), labels)


# --- refinement


def flipped(images: Tensor, logits: Tensor) -> Tensor:
    return -logits + 0 * images[:, :1]


@EACH
@EITHER_SCALES
def test_refinement_is_for_evaluation_alone(make: Any, multi_scale: bool) -> None:
    network = make(multi_scale=multi_scale, refine=flipped, **({} if make is MAKERS["v2 resnet"] else {"dropout": 0.0}))
    images, plain = torch.randn(2, 3, 40, 40), copy.deepcopy(network)
    assert plain.refine is None
    assert network.state_dict().keys() == plain.state_dict().keys()
    for training in (True, False):
        out, without = (of(each.train(training)(images)) for each in (network, plain))
        torch.testing.assert_close(out, without if training else -without)
    stored = io.BytesIO()
    network.refine = lambda images, logits: logits  # which pickle would refuse
    torch.save(network, stored)
    stored.seek(0)
    assert torch.load(stored, weights_only=False).refine is None
    network.refine = nn.Identity()  # no layer of the network
    assert len([*network.modules()]) == len([*plain.modules()])
    network.refine = lambda images, logits: logits[:1]
    with pytest.raises(ValueError, match=r"refine: expected a function that gives logits \(2, 3, 40, 40\)"):
        network(images)
    with pytest.raises(TypeError, match="refine: expected a function"):
        network.refine = 1


def test_nothing_that_explains_the_network_refines() -> None:
    network = deeplab_largefov_vgg16(CLASSES, **TINY, refine=lambda *_: 1 / 0)
    images, labels = torch.randn(2, 3, 44, 44), torch.randint(0, CLASSES, (2, 44, 44))
    assert torch.equal(fixations(network, images).points, fixations(copy.deepcopy(network), images).points)
    assert torch.isfinite(attach(network, Heard())(network(images), labels))
    assert network.training
    with pytest.raises(ZeroDivisionError):
        network.eval()(images)


# --- what must work with every network


@EACH
@EITHER_SCALES
@pytest.mark.parametrize("classes", [1, CLASSES])
def test_sizes_of_images_and_a_batch_is_its_images(make: Any, multi_scale: bool, classes: int) -> None:
    network = make(classes, multi_scale=multi_scale).eval()
    smallest = 16 if multi_scale else 8
    for size in ((smallest, 37), (50, smallest + 1)):
        images = torch.randn(2, 3, *size)
        found = of(network(images))
        assert found.shape == (2, classes, *size)
        for k in range(2):
            torch.testing.assert_close(of(network(images[k : k + 1]))[0], found[k], rtol=1e-4, atol=1e-5)
    for bad in (torch.randn(2, 3, smallest - 1, 40), torch.randn(3, 40, 40), torch.randn(2, 1, 40, 40)):
        with pytest.raises(
            ValueError, match=rf"images: expected shape \(N, 3, H, W\) with H and W at least {smallest}"
        ):
            network(bad)


@EACH
@EITHER_SCALES
def test_every_parameter_learns(make: Any, multi_scale: bool) -> None:
    network = make(multi_scale=multi_scale)
    F.cross_entropy(of(network(torch.randn(2, 3, 65, 63))), torch.randint(0, CLASSES, (2, 65, 63))).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not bool(p.grad.any())] == []


@EACH
@EITHER_SCALES
def test_traced_copied_stored_compiled(make: Any, multi_scale: bool) -> None:
    network = make(multi_scale=multi_scale).eval()
    images = torch.randn(2, 3, 41, 37)
    expected = of(network(images))
    fresh, stored = make(multi_scale=multi_scale).eval(), io.BytesIO()
    torch.save(network.state_dict(), stored)
    stored.seek(0)
    fresh.load_state_dict(torch.load(stored, weights_only=True))
    ways = [fresh, copy.deepcopy(network), torch.fx.symbolic_trace(network)]
    if make is MAKERS["largefov"]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ways.append(torch.jit.trace(network, torch.randn(1, 3, 48, 48), strict=False))
        if not multi_scale:
            ways.append(torch.compile(network, backend="eager", fullgraph=True))
    for way in ways:
        torch.testing.assert_close(of(way(images)), expected)
    last = network.to(memory_format=torch.channels_last)
    torch.testing.assert_close(of(last(images.to(memory_format=torch.channels_last))), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:The maps")
@pytest.mark.parametrize(
    ("name", "options"), [*((name, {}) for name in MAKERS), ("v2 vgg16", {"multi_scale": True, "classes": 1})]
)
def test_attach_fixations_influence_and_explain(name: str, options: Any) -> None:
    assert row(name, Network(lambda: MAKERS[name](**options), 67)) == [name, *len(FEATURES) * ["✓"]]


# --- groups of parameters


def groups_of(model: nn.Module, groups: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    names = {p: name for name, p in model.named_parameters()}
    found = [(names[p], (group["lr"], group["weight_decay"])) for group in groups for p in group["params"]]
    assert len(found) == len(dict(found)) == sum(p.requires_grad for p in model.parameters())
    return dict(found)


def test_rates_of_largefov_entry_by_entry() -> None:
    network = deeplab_largefov_vgg16(CLASSES, **TINY)
    network.features[0].requires_grad_(False)
    groups = parameter_groups(network, lr=1e-3)
    found = groups_of(network, groups)
    for name, _ in network.named_parameters():
        if name.startswith("features.0."):
            assert name not in found
        else:
            rate = (10 if name.startswith("classifier") else 1) * (2 if name.endswith("bias") else 1) * 1e-3
            assert found[name] == (pytest.approx(rate), 0.0 if name.endswith("bias") else 5e-4), name
    optimizer = torch.optim.SGD(groups, lr=1e-3, momentum=0.9)
    before = network.classifier.bias.detach().clone()
    network(torch.randn(1, 3, 16, 16)).square().sum().backward()
    optimizer.step()
    torch.testing.assert_close(network.classifier.bias.detach(), before - 2e-2 * network.classifier.bias.grad)


def test_a_classifier_of_several_layers_and_parameters_that_are_shared() -> None:
    network: Any = shallow(CLASSES)
    network.features.layer2[0].conv2.weight = network.features.layer1[0].conv2.weight
    found = groups_of(network, parameter_groups(network, lr=1.0, weight_decay=0.1, classifier_multiplier=3.0))
    assert found["classifier.branches.2.weight"] == (3.0, 0.1)
    assert found["classifier.branches.2.bias"] == (6.0, 0.0)
    assert found["features.bn1.weight"] == (1.0, 0.0)  # of one axis
    assert found["features.bn1.bias"] == (2.0, 0.0)
    assert "features.layer2.0.conv2.weight" not in found


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (nn.Sequential(nn.Conv2d(3, 2, 1)), {}, "classifier: expected the dotted name .*got None.*Name one"),
        (nn.Sequential(nn.Conv2d(3, 2, 1)), {"classifier": "1"}, "classifier: expected .*got '1'"),
        (nn.Sequential(nn.Conv2d(3, 2, 1)), {"classifier": ""}, "classifier: expected .*got ''"),
        (nn.Sequential(nn.Conv2d(3, 2, 1)), {"classifier": "0", "lr": -1.0}, "lr: expected"),
        (nn.Sequential(nn.Conv2d(3, 2, 1)), {"classifier": "0", "bias_multiplier": -1.0}, "bias_multiplier: expected"),
    ],
)
def test_bad_groups(model: nn.Module, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parameter_groups(model, **{"lr": 0.1, **options})
