"""Fully convolutional networks: the classifier's own output, scores where they belong, skips, steps from 32s to 8s."""

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from model_state import assert_same
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import zoo
from perpixel import TemplateSimilarityLoss, attach
from perpixel.models import FCN, build, fcn8s_vgg16, fcn16s_vgg16, fcn32s_vgg16
from perpixel.models.backbones import alexnet_layers, vgg_layers
from perpixel.models.learnable_upsampling import LearnableUpsampling

TINY: dict[str, Any] = {"width": 1 / 32, "fc_channels": 8}
NETWORKS: dict[str, dict[str, Any]] = {
    "fcn32s_vgg16": TINY,
    "fcn16s_vgg16": TINY,
    "fcn8s_vgg16": TINY,
    "fcn32s_alexnet": TINY,
    "fcn32s_googlenet": {},
}
PADDED = {f"{name}, padding=100": (name, {**TINY, "padding": 100}) for name in NETWORKS if "google" not in name}
EVERY = {name: (name, options) for name, options in NETWORKS.items()} | PADDED


def net(case: str, num_classes: int = 3) -> FCN:
    """In evaluation mode, its skip scores at random: at zero they would hide what is wrong with them."""
    name, options = EVERY[case]
    network: Any = build(name, num_classes, **options).eval()
    for layer_name, layer in network.named_children():
        if layer_name.startswith("score"):
            nn.init.normal_(layer.weight)
    return network


# --- the classifier's own output


def classifier(name: str) -> Any:
    """torchvision's network with few channels: its own forward pass and names, quickly built."""
    with torch.device("meta"):
        network: Any = torchvision.models.get_model(name, num_classes=7)
    width = 1 / 16
    network.features = alexnet_layers(width=width) if name == "alexnet" else vgg_layers(name, width=width)
    linear = [place for place, layer in enumerate(network.classifier) if isinstance(layer, nn.Linear)]
    channels = [network.classifier[linear[0]].in_features // 16, 24, 24, 7]
    for place, inputs, outputs in zip(linear, channels, channels[1:]):
        network.classifier[place] = nn.Linear(inputs, outputs)
    return network


@pytest.mark.parametrize("name", ["vgg16", "alexnet", "googlenet"])
def test_an_image_of_224_gets_the_classifiers_own_output(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "googlenet":  # small enough to be read as it is: as torchvision reads its weights
        state = torchvision.models.googlenet(init_weights=False, aux_logits=True).state_dict()
        monkeypatch.setattr(torchvision.models.GoogLeNet_Weights, "get_state_dict", lambda self, **_: state)
        original, options = torchvision.models.googlenet(weights="DEFAULT").eval(), {}
        last = original.fc
    else:
        original, options = classifier(name).eval(), {"fc_channels": 24}
        last = original.classifier[-1]
        monkeypatch.setattr(torchvision.models, "get_model", lambda *_, **__: copy.deepcopy(original))
    network: Any = build(f"fcn32s_{name}", 2, weights="DEFAULT", **options).eval()
    found: list[Tensor] = []
    network.score.register_forward_pre_hook(lambda _, given: found.append(given[0]))
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        network(images)
        expected = original(images)
        output = F.conv2d(found[0], last.weight[..., None, None], last.bias)
    assert output.shape == (*expected.shape, 7, 7)
    there = output.mean((2, 3)) if name == "googlenet" else output[..., 3, 3]
    torch.testing.assert_close(there, expected, rtol=1e-4, atol=1e-5)


def test_layers_that_weights_do_not_have_start_at_random(monkeypatch: pytest.MonkeyPatch) -> None:
    original = classifier("vgg16")
    monkeypatch.setattr(torchvision.models, "get_model", lambda *_, **__: copy.deepcopy(original))
    other = fcn32s_vgg16(3, weights="DEFAULT", fc_channels=12)
    assert other.fc6 is not None
    assert other.fc6.weight.shape == (12, 32, 7, 7)
    nn.init.constant_(original.classifier[0].weight, torch.nan)  # as IMAGENET1K_FEATURES has them
    features = fcn32s_vgg16(3, weights="IMAGENET1K_FEATURES", fc_channels=24)
    assert all(bool(parameter.isfinite().all()) for parameter in features.parameters())
    assert torch.equal(features.features[0].weight, original.features[0].weight)


# --- scores lie where they belong


def locating(case: str) -> Any:
    """The network, every convolution of which hands on channel 0 of its middle, and every pooling the mean."""
    network: Any = net(case, 1).double()
    for name, layer in [*network.named_modules()]:
        if isinstance(layer, nn.Conv2d):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias) if layer.bias is not None else None
            size = layer.kernel_size[0]
            middle = slice((size - 1) // 2, size // 2 + 1)
            layer.weight.data[0, 0, middle, middle] = 1 if size % 2 else 0.25
        if isinstance(layer, nn.BatchNorm2d):
            layer.eps = 0.0
        if isinstance(layer, nn.MaxPool2d):
            above, _, own = name.rpartition(".")
            window = (layer.kernel_size, layer.stride, layer.padding, layer.ceil_mode)
            setattr(network.get_submodule(above), own, nn.AvgPool2d(*window, count_include_pad=False))
    return network


LOCATING: dict[str, Any] = {}
SIDE = st.integers(161, 230)


@pytest.mark.parametrize("case", [case for case in EVERY if "32s" in case or "8s" in case])
@settings(max_examples=4)
@given(height=SIDE, width=SIDE)
def test_a_ramp_over_the_image_comes_out_as_that_ramp(case: str, height: int, width: int) -> None:
    if case not in LOCATING:
        LOCATING[case] = locating(case)
    network = LOCATING[case]
    ramp = torch.arange(height).double()[:, None] + 3 * torch.arange(width).double()
    scores = [name for name, _ in network.named_children() if name.startswith("score")]
    inside = (slice(80, height - 80), slice(80, width - 80))  # no cell near the border has a part in it
    for alone in scores:
        for name in scores:
            getattr(network, name).weight.data.fill_(0)[0, 0] = float(name == alone)
        with torch.no_grad():
            out = network((1 + ramp).expand(1, 3, -1, -1))[0, 0]
        torch.testing.assert_close(out[inside], 1 + ramp[inside], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("case", EVERY)
def test_no_row_or_column_of_an_image_is_left_out(case: str) -> None:
    network = net(case)
    for size in ((32, 47), (61, 33)):
        images = torch.rand(1, 3, *size, requires_grad=True)
        logits = network(images)
        assert logits.shape == (1, 3, *size)
        (gradient,) = torch.autograd.grad(logits.square().sum(), images)
        seen = gradient.abs().sum((0, 1))
        assert bool((seen.sum(0) > 0).all())
        assert bool((seen.sum(1) > 0).all())


CROPS = {"32s": (19,), "16s": (5, 27), "8s": (5, 9, 31)}  # of the authors' networks, voc-fcn*/val.prototxt


@pytest.mark.parametrize("kind", [*CROPS, "alexnet"])
def test_with_padding_it_is_the_authors_network(kind: str) -> None:
    size = (85, 100)
    name = "fcn32s_alexnet" if kind == "alexnet" else f"fcn{kind}_vgg16"
    network: Any = net(f"{name}, padding=100")
    given: dict[str, Tensor] = {}
    for layer_name, layer in network.named_children():
        layer.register_forward_hook(lambda _m, _i, output, name=layer_name: given.update({name: output}))
    with torch.no_grad():
        logits = network(torch.rand(2, 3, *size))
        scores, crops = given["score"], [18] if kind == "alexnet" else [*CROPS[kind]]
        for pool in ("pool4", "pool3"):
            if f"score_{pool}" in given:
                scores, crop = doubled(scores, 2), crops.pop(0)
                height, width = scores.shape[-2:]
                scores = scores + given[f"score_{pool}"][..., crop : crop + height, crop : crop + width]
        stride = int(network.last.removeprefix("upscore"))
        scores = doubled(scores, stride, 2 * stride - (kind == "alexnet"))
        expected = scores[..., crops[0] : crops[0] + size[0], crops[0] : crops[0] + size[1]]
    assert expected.shape == logits.shape
    inside = (..., slice(25, -25), slice(25, -25))  # beyond its outermost cells the original fades to zero
    torch.testing.assert_close(logits[inside], expected[inside], rtol=1e-4, atol=1e-5)


def doubled(maps: Tensor, stride: int, size: int = 4) -> Tensor:
    """The Deconvolution of the authors' code with the filter of its `upsample_filt`, class by class."""
    factor = (size + 1) // 2
    centre = factor - 1 if size % 2 else factor - 0.5
    row = torch.tensor([1 - abs(at - centre) / factor for at in range(size)])
    kernel = (row[:, None] * row)[None, None]
    return torch.cat([F.conv_transpose2d(one, kernel, stride=stride) for one in maps.split(1, 1)], 1)


# --- from 32s to 16s to 8s


def trained(name: str, **options: Any) -> Any:
    """With scores and upsampling that are no longer as they started."""
    network: Any = build(name, 3, **TINY, **options).eval()
    for layer_name, layer in network.named_children():
        if layer_name.startswith("score"):
            nn.init.normal_(layer.weight)
    return network


def test_a_step_changes_the_logits_by_the_corners_of_interpolation_alone() -> None:
    coarse = trained("fcn32s_vgg16")
    images, scores = torch.rand(2, 3, 130, 97), []
    coarse.score.register_forward_hook(lambda _m, _i, output: scores.append(output))
    with torch.no_grad():
        before = coarse(images)
        middle = fcn16s_vgg16(3, **TINY, start=coarse).eval()
        after = middle(images)
        fine = fcn8s_vgg16(3, **TINY, start=middle.state_dict()).eval()
        at_once = fcn8s_vgg16(3, **TINY, start=coarse).eval()
    assert_same(
        {name: value for name, value in fine.state_dict().items() if name in middle.state_dict()},
        {name: value for name, value in middle.state_dict().items() if name in fine.state_dict()},
    )
    assert_same(fine.state_dict(), at_once.state_dict())
    wide = F.pad(scores[0], (1, 1, 1, 1), mode="replicate")
    bends = [
        (wide[:, :, :-2] - 2 * wide[:, :, 1:-1] + wide[:, :, 2:]).abs().max(),
        (wide[..., :-2] - 2 * wide[..., 1:-1] + wide[..., 2:]).abs().max(),
    ]
    assert float((after - before).abs().max()) <= float(sum(bends)) / 8 + 1e-6
    assert float((after - before).abs().max()) > 0
    for name in ("upscore2", "upscore_pool4", "upscore8"):
        upsampling = getattr(fine, name)
        new = LearnableUpsampling(3, upsampling.stride, upsampling.offset)
        assert torch.equal(upsampling.weight, new.weight)


def test_the_first_cell_changes_by_an_eighth_of_its_bend() -> None:
    coarse = trained("fcn32s_vgg16")
    fine = fcn16s_vgg16(3, **TINY, start=coarse).eval()
    scores = torch.zeros(1, 3, 5, 5)
    scores[..., 2, :] = 8.0
    for network in (coarse, fine):
        network.score.register_forward_hook(lambda *_: scores)
    with torch.no_grad():
        images = torch.rand(1, 3, 160, 160)
        change = (fine(images) - coarse(images))[0, 0, :, 80]
    assert float(change.min()) == pytest.approx(-2, abs=0.15)  # 16 / 8, at the centre, which lies between two pixels
    assert int(change.argmin()) in (79, 80)


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (partial(trained, "fcn8s_vgg16"), r"score_pool3.weight \(3, 8, 1, 1\)"),
        (partial(build, "fcn32s_vgg16", 4, **TINY), r"score.weight \(4, 8, 1, 1\)"),
        (partial(build, "fcn32s_vgg16", 3, **{**TINY, "fc_channels": 9}), r"fc6.weight \(9, 16, 7, 7\)"),
        (partial(build, "fcn32s_alexnet", 3, **TINY), r"without \['features.2.weight"),
        (dict, r"without \['features.0.weight"),
    ],
)
def test_a_start_that_is_another_network_is_refused(start: Any, said: str) -> None:
    with pytest.raises(ValueError, match=rf"start: expected the same network.*{said}"):
        fcn16s_vgg16(3, **TINY, start=start())


def test_start_and_weights_are_not_both_taken_and_width_goes_with_neither() -> None:
    with pytest.raises(ValueError, match="start: expected None beside weights"):
        fcn8s_vgg16(3, start={}, weights="DEFAULT")
    with pytest.raises(ValueError, match="width: expected 1 with weights"):
        fcn32s_vgg16(3, width=0.5, weights="DEFAULT")


# --- as any network of the house


@pytest.mark.parametrize("case", EVERY)
def test_gradient_reaches_every_parameter_and_a_batch_equals_its_images(case: str) -> None:
    network, images = net(case), torch.rand(2, 3, 65, 47)
    logits = network(images)
    logits.square().sum().backward()
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in network.parameters())
    with torch.no_grad():
        alone = torch.cat([network(image[None]) for image in images])
    torch.testing.assert_close(alone, logits.detach(), rtol=1e-4, atol=1e-5)
    last = network(images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(last, logits, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("case", ["fcn8s_vgg16", "fcn32s_alexnet", "fcn32s_googlenet"])
def test_traced_copied_and_loaded_networks_say_the_same(case: str, tmp_path: Path) -> None:
    network, images = net(case), torch.rand(1, 3, 33, 50)
    torch.save(network.state_dict(), tmp_path / "w.pt")
    name, options = EVERY[case]
    loaded = build(name, 3, **options).eval()
    loaded.load_state_dict(torch.load(tmp_path / "w.pt", weights_only=True))
    others = [loaded, copy.deepcopy(network), torch.fx.symbolic_trace(network)]
    with torch.no_grad():
        for size in ((33, 50), (64, 75)):
            images = torch.rand(1, 3, *size)
            assert all(torch.equal(other(images), network(images)) for other in others)
        if case == "fcn8s_vgg16":
            assert torch.equal(torch.jit.trace(network, images)(images), network(images))


def test_compiled_without_a_break_it_says_the_same() -> None:
    network, images = net("fcn16s_vgg16"), torch.rand(1, 3, 33, 50)
    with torch.no_grad():
        assert torch.equal(torch.compile(network, backend="eager", fullgraph=True)(images), network(images))


@pytest.mark.parametrize("case", EVERY)
def test_images_that_are_too_small_are_refused(case: str) -> None:
    network = net(case)
    for shape in ((1, 3, 31, 64), (1, 3, 64, 31), (1, 1, 64, 64), (3, 64, 64)):
        with pytest.raises(ValueError, match=r"images: expected shape \(N, 3, H, W\) with H and W at least 32"):
            network(torch.rand(shape))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", ["fcn8s_vgg16", "fcn32s_alexnet"])
def test_all_of_the_library_follows_them(case: str) -> None:
    network = zoo.Network(lambda: net(case, 3 if "vgg" in case else 1), 33)
    assert zoo.row(case, network)[1:] == ["✓"] * 4


@pytest.mark.parametrize("case", EVERY)
def test_a_term_gets_fc7_and_the_labels_of_the_cells(case: str) -> None:
    network = net(case).train()
    stride, offset = network.classifier_cells
    images, labels = torch.rand(2, 3, 75, 100), torch.randint(0, 3, (2, 75, 100))
    seen: list[Tensor] = []

    class Seen(TemplateSimilarityLoss):
        def forward(self, features: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
            seen.extend((features, logits, labels))
            return super().forward(features, logits, labels)

    with attach(network, Seen(), base=lambda logits, _: 0 * logits.sum()) as criterion:
        criterion(network(images), labels).backward()
        assert criterion.head == "score"
    features, logits, given = seen
    torch.testing.assert_close(network.score(features), logits)
    for row in range(given.shape[1]):
        for column in range(given.shape[2]):
            y, x = (int(offset + stride * place + 0.5) for place in (row, column))
            expected = labels[:, y, x] if y < 75 and x < 100 else torch.tensor([255, 255])
            assert torch.equal(given[:, row, column], expected)
    first = next(network.features.parameters())
    assert first.grad is not None
    assert float(first.grad.abs().sum()) > 0
