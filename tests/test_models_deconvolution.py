"""Deconvolutional feature stacking against the transposes of its own layers, and loops."""

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import perpixel
from benchmarks.zoo import Network, row
from perpixel.models import DeconvolutionStack, build, deconvolution_stack

BACKBONES = ("vgg11", "vgg11_bn")
each_backbone = pytest.mark.parametrize("backbone", BACKBONES)
each_arm = pytest.mark.parametrize("restore", [True, False])


def network(backbone: str = "vgg11_bn", seed: int = 0, **options: Any) -> DeconvolutionStack:
    """In evaluation, with statistics and gains that are not those of the start."""
    torch.manual_seed(seed)
    found = deconvolution_stack(3, **{"backbone": backbone, "width": 1 / 32, "blocks": 3, "stride": 2, **options})
    for layer in found.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)
        elif isinstance(layer, nn.Conv2d):
            nn.init.uniform_(layer.bias, 0, 0.5)
    return found.eval()


def convolutions(model: nn.Module) -> list[nn.Conv2d]:
    return [layer for layer in model.features if isinstance(layer, nn.Conv2d)]


def transposed_path(model: DeconvolutionStack, images: Tensor) -> dict[str, Tensor]:
    """What each layer's output becomes on the way back: the transposes (by autograd) of one layer after another."""
    inputs, x = [], images
    for layer in model.features:
        inputs.append(x)
        x = layer(x.clone())  # its ReLU works in place
    found, names, path = {}, list(model.layer_names), list(zip(model.features, inputs))
    for number in reversed(range(len(path))):
        layer, before = path[number]
        if isinstance(layer, nn.ReLU):
            found[names.pop()] = x
            continue
        before = before.detach().requires_grad_()
        (x,) = torch.autograd.grad(layer(before), before, x)
        x = x.relu() if isinstance(layer, nn.Conv2d) else x
    return found


@each_backbone
@pytest.mark.parametrize("size", [(24, 32), (19, 27)])
def test_restored_maps_are_the_transposes_of_the_layers(backbone: str, size: tuple[int, int]) -> None:
    model = network(backbone).double()
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    expected = transposed_path(model, images)
    for stride, block in ((1, "conv1"), (2, "conv2"), (4, "conv3")):
        model.block = {1: 1, 2: 2, 4: 3}[stride]
        found = model.feature_maps(images)
        assert list(found) == list(model.layer_names)
        for name in found:
            if name.startswith(block):  # on its own grid
                torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-12)
                assert bool(found[name].any())


def test_unpooling_and_deconvolution_against_loops() -> None:
    model = network("vgg11", blocks=1, stride=1).double()
    assert model.layer_names == ("conv1_1",)
    images = torch.randn(1, 3, 7, 9, dtype=torch.float64)
    before = convolutions(model)[0](images).relu()[0].detach()
    expected = torch.zeros_like(before)
    for c in range(len(before)):
        for top in range(0, 6, 2):  # the seventh row has no window of its own, nor the ninth column
            for left in range(0, 8, 2):
                window = [(y, x) for y in (top, top + 1) for x in (left, left + 1)]
                best = max(window, key=lambda place: float(before[(c, *place)]))  # the first of equal ones
                expected[(c, *best)] = before[(c, *best)]
    assert torch.equal(model.feature_maps(images)["conv1_1"][0], expected)

    two = network("vgg11", blocks=2, stride=1).double()
    images = torch.randn(1, 3, 6, 8, dtype=torch.float64)
    second, weight = two.feature_maps(images)["conv1_1"][0], convolutions(two)[1].weight
    pooled, switches = F.max_pool2d(convolutions(two)[0](images).relu(), 2, return_indices=True)
    top = F.max_pool2d(convolutions(two)[1](pooled).relu(), 2, return_indices=True)
    unpooled = torch.zeros(weight.shape[0], 3, 4, dtype=torch.float64)
    for c, values in enumerate(top[0][0]):
        for value, place in zip(values.flatten(), top[1][0, c].flatten().tolist()):
            unpooled[c, place // 4, place % 4] = value
    back = torch.zeros(weight.shape[1], 5, 6, dtype=torch.float64)
    for o in range(weight.shape[0]):
        for y in range(3):
            for x in range(4):
                back[:, y : y + 3, x : x + 3] += weight[o] * unpooled[o, y, x]
    back = back[:, 1:-1, 1:-1].relu()
    expected = torch.zeros_like(second)
    for c in range(len(expected)):
        for y in range(3):
            for x in range(4):
                place = int(switches[0, c, y, x])
                expected[c, place // 8, place % 8] = back[c, y, x]
    torch.testing.assert_close(second, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("how", ["new", "to", "deepcopy", "state_dict", "pickle"])
def test_the_path_back_has_the_very_weights(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, other = network(), network(seed=1)
    images = torch.rand(1, 3, 16, 16)
    expected = model(images)
    if how == "to":
        model = model.double().to("cpu").float()
    elif how == "deepcopy":
        model = copy.deepcopy(model)
    elif how == "pickle":
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        model = torch.load(file, weights_only=False)
    elif how == "state_dict":
        assert not any(other.load_state_dict(model.state_dict()))
        model = other
    used: list[Tensor] = []

    def seen(x: Tensor, weight: Tensor, *rest: Any, **options: Any) -> Tensor:
        used.append(weight)
        return transposed(x, weight, *rest, **options)

    transposed = F.conv_transpose2d
    monkeypatch.setattr(F, "conv_transpose2d", seen)
    torch.testing.assert_close(model(images), expected)
    own = [layer.weight for layer in convolutions(model)]
    assert [id(weight) for weight in used] == [id(weight) for weight in reversed(own[1:])]  # none leads to the image
    assert len({p.data_ptr() for p in model.parameters()}) == len(list(model.parameters()))
    plain = sum(p.numel() for p in network(restore=False).parameters())
    assert sum(p.numel() for p in model.parameters()) == plain


def test_weights_learn_from_both_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = network("vgg11").double(), torch.rand(2, 3, 16, 16, dtype=torch.float64)
    weights = [layer.weight for layer in convolutions(model)]

    def gradients() -> list[Tensor]:
        return list(torch.autograd.grad(model(images).square().sum(), weights))

    def detached(operation: Any) -> Any:
        return lambda x, weight, *rest, **options: operation(x, weight.detach(), *rest, **options)

    both, back, down = gradients(), F.conv_transpose2d, nn.Conv2d._conv_forward
    monkeypatch.setattr(F, "conv_transpose2d", detached(back))
    first = gradients()
    monkeypatch.setattr(F, "conv_transpose2d", back)
    monkeypatch.setattr(nn.Conv2d, "_conv_forward", lambda self, x, w, b: down(self, x, w.detach(), b))
    model.classifier.requires_grad_(False)
    second = list(torch.autograd.grad(model(images).square().sum(), weights, allow_unused=True))
    assert second[0] is None
    for whole, one, other in zip(both[1:], first[1:], second[1:]):
        assert bool(one.any())
        assert bool(other.any())
        torch.testing.assert_close(whole, one + other)


@each_backbone
def test_gradcheck_and_a_gradient_for_every_parameter(backbone: str) -> None:
    model = network(backbone, blocks=2).double()
    images = torch.rand(1, 3, 4, 5, dtype=torch.float64)
    names = [name for name, _ in model.named_parameters()]

    def call(*values: Tensor) -> Tensor:
        return torch.func.functional_call(model, dict(zip(names, values)), images)

    assert torch.autograd.gradcheck(call, tuple(p.detach().requires_grad_() for p in model.parameters()))
    model = network(backbone).train()
    model(torch.rand(2, 3, 16, 16)).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    assert [name for name, p in model.named_parameters() if not bool(p.grad.any())] == []


def test_two_passes_before_a_backward() -> None:
    model = network().train()
    one, other = model(torch.rand(2, 3, 16, 16)), model(torch.rand(2, 3, 16, 16))
    (one.sum() + other.sum()).backward()  # the running variance that the path back uses has moved in between


def test_raw_features_are_those_of_the_backbone() -> None:
    model = network(restore=False, layers=["conv3_2"], stride=4)
    images = torch.rand(1, 3, 16, 16)
    torch.testing.assert_close(model.feature_maps(images)["conv3_2"], model.features[:-1](images))
    assert model.classifier.in_channels == convolutions(model)[-1].out_channels
    torch.testing.assert_close(  # as class activation mapping: the score is that of the pooled features
        perpixel.losses.pool_maps(model.classifier(model.normalise(model.features[:-1](images))), "average"),
        model.classifier(model.normalise(model.features[:-1](images)).mean((2, 3), keepdim=True)).flatten(1),
    )


def test_maps_are_brought_to_one_grid() -> None:
    images = torch.rand(1, 3, 20, 28)
    finest, coarse = network(stride=1).feature_maps(images), network(stride=4).feature_maps(images)
    assert {tuple(maps.shape[2:]) for maps in finest.values()} == {(20, 28)}
    assert {tuple(maps.shape[2:]) for maps in coarse.values()} == {(5, 7)}
    torch.testing.assert_close(coarse["conv1_1"], F.max_pool2d(finest["conv1_1"], 4))
    larger = F.interpolate(coarse["conv3_1"], (20, 28), mode="bilinear", align_corners=False)
    torch.testing.assert_close(finest["conv3_1"], larger)


@each_backbone
@each_arm
def test_traces_copies_and_layouts_say_the_same(backbone: str, restore: bool) -> None:
    model, images = network(backbone, restore=restore), torch.rand(2, 3, 21, 26)
    expected = model(images)
    assert expected.shape == (2, 3, 21, 26)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(images), expected)
    torch.testing.assert_close(torch.jit.trace(model, images)(images), expected)
    torch.testing.assert_close(torch.cat([model(image[None]) for image in images]), expected)
    wide = copy.deepcopy(model).to(memory_format=torch.channels_last)
    torch.testing.assert_close(wide(images.to(memory_format=torch.channels_last)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_compiled_equals_eager() -> None:
    model, images = network(), torch.rand(2, 3, 21, 26)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images), model(images))


@each_arm
def test_it_is_followed_explained_and_attached_by_name(restore: bool) -> None:
    def make() -> nn.Module:
        return build("deconvolution_stack", 3, backbone="vgg11_bn", width=1 / 32, blocks=3, restore=restore)

    assert row("deconvolution_stack", Network(make, size=37))[1:] == ["✓"] * 4
    model = make()
    with perpixel.attach(model, perpixel.TemplateSimilarityLoss()) as criterion:
        criterion(model(torch.rand(2, 3, 16, 16)), torch.zeros(2, 16, 16).long()).backward()
        assert criterion.head == "classifier"


def test_weights_of_torchvision_are_the_backbones(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    known = {
        f"features.{name}": p for name, p in deconvolution_stack(2, backbone="vgg11").features.state_dict().items()
    }
    known["classifier.0.weight"] = torch.zeros(1)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: known)
    model = build("deconvolution_stack", 2, weights="DEFAULT", backbone="vgg11")
    assert all(torch.equal(known[f"features.{name}"], p) for name, p in model.features.state_dict().items())
    with pytest.raises(ValueError, match=r"width: expected 1 with weights, got float 0\.5"):
        deconvolution_stack(2, backbone="vgg11", weights="DEFAULT", width=0.5)


def test_mistakes_are_named() -> None:
    for options, message in (
        ({"backbone": "vgg12"}, r"backbone: expected one of vgg11, .*vgg19_bn, got 'vgg12'"),
        ({"layers": ["conv9_9"]}, r"layers: expected names among conv1_1, conv2_1, conv3_1, conv3_2, got 'conv9_9'"),
        ({"layers": []}, "layers: expected one or more of conv1_1"),
        ({"stride": 8}, "stride: expected one of 1, 2, 4, got int 8"),
        ({"blocks": 6}, "blocks: expected an integer >= 1 <= 5"),
    ):
        with pytest.raises(ValueError, match=message):
            network("vgg11", **options) if "backbone" not in options else network(**options)
    with pytest.raises(ValueError, match=r"images: expected .* at least 8, got .*7"):
        network()(torch.rand(1, 3, 7, 9))
    assert network()(torch.rand(1, 3, 8, 8)).shape == (1, 3, 8, 8)
    assert build("deconvolution_stack", 1, backbone="vgg11", width=1 / 64)(torch.rand(1, 3, 32, 33)).shape[1] == 1
