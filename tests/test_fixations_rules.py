"""Every rule against plain loops written from its definition, and what must not change the points."""

import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fixation_oracles import folded, trace_chain
from torch import Tensor, nn
from torch.nn import functional as F

from perpixel.fixations import FixationRules, Fixations, fixations

D = torch.float64
CHAINS = {
    "conv": lambda: [nn.Conv2d(2, 4, 3, padding=1)],
    "stride": lambda: [nn.Conv2d(2, 4, (3, 2), stride=(2, 3), padding=(2, 1))],
    "dilation": lambda: [nn.Conv2d(2, 4, 3, padding=(2, 3), dilation=(2, 3))],
    "same padding": lambda: [nn.Conv2d(2, 4, (4, 3), padding="same", dilation=(1, 2))],
    "even kernel": lambda: [nn.Conv2d(2, 4, 2), nn.ReLU(), nn.Conv2d(4, 4, 4, padding=2)],
    "groups": lambda: [nn.Conv2d(2, 6, 1), nn.Conv2d(6, 4, 3, groups=2, padding=1)],
    "depthwise": lambda: [nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3, groups=4, padding=1, stride=2)],
    "wide groups": lambda: [nn.Conv2d(2, 4, 1), nn.Conv2d(4, 8, 3, groups=4, padding=1)],
    "only padding": lambda: [nn.Conv2d(2, 4, 1, padding=2)],
    "relu": lambda: [nn.Conv2d(2, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 4, 3, padding=1)],
    "signs": lambda: [nn.Conv2d(2, 5, 3), nn.Hardswish(), nn.Conv2d(5, 5, 3), nn.SiLU(), nn.Conv2d(5, 4, 1)],
    "signs at the border": lambda: [nn.Conv2d(2, 5, 3), nn.Conv2d(5, 5, 3, padding=1), nn.Conv2d(5, 4, 3, padding=2)],
    "signs far apart": lambda: [nn.Conv2d(2, 5, 1), nn.Conv2d(5, 4, 3, padding=7, dilation=7), nn.Conv2d(4, 4, 1)],
    "signs of groups": lambda: [nn.Conv2d(2, 4, 1), nn.Conv2d(4, 8, 3, groups=4, padding=1), nn.Conv2d(8, 4, 3)],
    "norm": lambda: [nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 3), nn.BatchNorm2d(4)],
    "max pool": lambda: [nn.Conv2d(2, 4, 3), nn.MaxPool2d(3, 2, padding=1, ceil_mode=True)],
    "dilated pool": lambda: [nn.Conv2d(2, 4, 3), nn.MaxPool2d((2, 3), (1, 2), dilation=(2, 1))],
    "average pool": lambda: [nn.Conv2d(2, 4, 3), nn.AvgPool2d((2, 3), (2, 1), padding=(1, 1), ceil_mode=True)],
    "pool of signs": lambda: [nn.Conv2d(2, 4, 3), nn.MaxPool2d(2), nn.Conv2d(4, 4, 1), nn.AvgPool2d(2, 1)],
    "mixture": lambda: [
        nn.Conv2d(2, 6, 2, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(2, 2, ceil_mode=True),
        nn.Conv2d(6, 6, 3, padding=4, dilation=4, groups=2),
        nn.ReLU(),
        nn.MaxPool2d(2, 1),
        nn.Conv2d(6, 4, 4, padding=3, dilation=2),
    ],
    "transposed": lambda: [nn.ConvTranspose2d(2, 4, 3, stride=2, padding=1, output_padding=1)],
    "transposed groups": lambda: [nn.ConvTranspose2d(2, 4, (4, 3), stride=(2, 1), groups=2, dilation=(1, 2))],
    "transposed signs": lambda: [nn.ConvTranspose2d(2, 4, 3, stride=2, padding=1), nn.Conv2d(4, 4, 3, padding=1)],
    "transposed gaps": lambda: [nn.ConvTranspose2d(2, 4, 1, stride=2)],
}
CELLS = {
    "adaptive mean": lambda: [nn.Conv2d(2, 4, 1), nn.AdaptiveAvgPool2d((4, 3)), nn.Conv2d(4, 4, 2)],
    "adaptive max": lambda: [nn.Conv2d(2, 4, 1), nn.AdaptiveMaxPool2d((4, 8))],
    "global mean": lambda: [nn.Conv2d(2, 4, 3), nn.AdaptiveAvgPool2d(1)],
}
RESIZES = {
    "nearest": lambda: nn.Upsample(size=(13, 17), mode="nearest"),
    "nearest shrink": lambda: nn.Upsample(size=(4, 3), mode="nearest"),
    "nearest-exact": lambda: nn.Upsample(size=(13, 5), mode="nearest-exact"),
    "nearest scale": lambda: nn.Upsample(scale_factor=2.3, mode="nearest"),
    "bilinear": lambda: nn.Upsample(size=(15, 13), mode="bilinear"),
    "bilinear corners": lambda: nn.Upsample(size=(16, 13), mode="bilinear", align_corners=True),
    "bilinear shrink": lambda: nn.Upsample(size=(4, 3), mode="bilinear"),
    "bilinear scale": lambda: nn.Upsample(scale_factor=(1.7, 2.0), mode="bilinear"),
    "bicubic": lambda: nn.Upsample(size=(11, 15), mode="bicubic"),
    "bicubic corners": lambda: nn.Upsample(size=(11, 3), mode="bicubic", align_corners=True),
}


def net(layers: list[nn.Module]) -> nn.Sequential:
    model = nn.Sequential(*layers).to(D).eval().requires_grad_(False)
    for layer in model:
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.weight, layer.bias, layer.running_mean):
                tensor.data.normal_()
            layer.running_var.uniform_(0.5, 2)
    return model


def masses(fix: Fixations) -> Counter:
    return Counter({tuple(p): m for p, m in zip(fix.points.tolist(), fix.mass.tolist())})


def agree(model: nn.Sequential, image: Tensor, **way: object) -> None:
    start = model(image).argmax(1)
    start[:, 0, 0] = 255
    published, select = way.get("published", False), way.get("select", "channel")
    expected, dropped = trace_chain(list(model), image, start, **way)
    rules = FixationRules("seg-unravel") if published else FixationRules(select=select)
    fix = fixations(model, image, start=start, shift=way.get("shift", "full"), rules=rules)
    assert masses(fix) == expected
    assert fix.dropped == dropped
    assert fix.started == int((start != 255).sum())


@pytest.mark.parametrize("shift", ["full", "partial", "none"])
@pytest.mark.parametrize("name", CHAINS)
def test_modern_rule_equals_its_definition(name: str, shift: str) -> None:
    agree(net(CHAINS[name]()), torch.randn(2, 2, 9, 8, dtype=D), shift=shift)


@pytest.mark.parametrize("name", [n for n in CHAINS if "transposed" not in n])
def test_element_selection_equals_its_definition(name: str) -> None:
    agree(net(CHAINS[name]()), torch.randn(1, 2, 9, 8, dtype=D), select="element")


@pytest.mark.parametrize("shift", ["full", "partial", "none"])
@pytest.mark.parametrize("name", [n for n in CHAINS if "transposed" not in n])
def test_published_rule_equals_its_definition(name: str, shift: str) -> None:
    agree(net(CHAINS[name]()), torch.randn(2, 2, 9, 8, dtype=D), shift=shift, published=True)


@pytest.mark.parametrize("name", CELLS)
def test_adaptive_pooling_looks_in_the_cell(name: str) -> None:
    model = net(CELLS[name]())
    agree(model, torch.randn(2, 2, 9, 8, dtype=D))
    jumps = fixations(model, torch.randn(1, 2, 9, 8, dtype=D)).jumps
    assert jumps == ({"_1": 1.0} if name == "global mean" else {})


@pytest.mark.parametrize("name", RESIZES)
def test_resizing_goes_to_the_heaviest_pixel(name: str) -> None:
    agree(net([nn.Conv2d(2, 3, 1), RESIZES[name]()]), torch.randn(1, 2, 6, 7, dtype=D))


@pytest.mark.parametrize("size", [(21, 25), (6, 7)])
def test_published_resizing_floors(size: tuple[int, int]) -> None:
    model = net([nn.Conv2d(2, 3, 1), nn.Upsample(size=size, mode="bilinear", align_corners=True)])
    agree(model, torch.randn(1, 2, 11, 13, dtype=D), published=True)


@pytest.mark.parametrize("published", [False, True])
def test_equal_contributions_follow_the_stated_order(published: bool) -> None:
    """Small whole numbers are equal often, and add up exactly."""
    for seed in range(5):
        torch.manual_seed(seed)
        model = net([nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Conv2d(4, 3, 4, padding=2)])
        for weight in model.parameters():
            weight.data = torch.randint(-1, 2, weight.shape).to(D)
        image = torch.randint(-1, 2, (1, 2, 9, 8)).to(D)
        agree(model, image, published=published)
        agree(model, image, published=published, shift="none")


def test_folding_batch_norm_gives_the_same_points() -> None:
    for _ in range(5):
        model = net([nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.Hardswish(), nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4)])
        plain = nn.Sequential(folded(model[0], model[1]), model[2], folded(model[3], model[4])).eval()
        image = torch.randn(2, 2, 12, 11, dtype=D)
        one, other = fixations(model, image), fixations(plain, image)
        assert torch.equal(one.points, other.points)
        assert torch.equal(one.mass, other.mass)


class Function(nn.Module):
    """A function of the images as a network."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def found_by_loop(
    function: Callable[[Tensor], Tensor], images: Tensor, origin: Callable[[tuple[int, ...]], Any]
) -> None:
    """Every output element in turn: what `origin(n, c, y, x)` says, (c, y, x), None, or with a sign."""
    start = torch.randint(0, function(images).shape[1], (len(images), *function(images).shape[2:]))
    fix = fixations(Function(function), images, start=start, strict=True)
    expected: Counter = Counter()
    signs = {}
    for n, y, x in itertools.product(*(range(size) for size in start.shape)):
        label = int(start[n, y, x])
        place = origin((n, label, y, x))
        if place is not None:
            key = (n, label, *place[:3])
            expected[key] += 1
            signs[key] = place[3] if len(place) > 3 else 1
    assert masses(fix) == expected
    assert dict(zip(map(tuple, fix.points.tolist()), fix.sign.tolist())) == signs
    assert fix.dropped == start.numel() - sum(expected.values())


ALONG: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...], int]] = {
    "mean of channels": (lambda x: x.mean(1, keepdim=True).expand(-1, 2, -1, -1), (1,), 1),
    "sum of rows": (lambda x: torch.sum(x, dim=2, keepdim=True), (2,), 1),
    "largest column": (lambda x: x.max(3, keepdim=True)[0], (3,), 1),
    "largest, its places unused": (lambda x: torch.max(x, 3).values.unsqueeze(3), (3,), 1),
    "smallest": (lambda x: x.amin((-1, 1), keepdim=True).expand(-1, 2, -1, -1), (1, 3), -1),
    "smallest of the map": (lambda x: x.amin((2, 3), keepdim=True), (2, 3), -1),
    "smallest, without its dimension": (lambda x: x.min(2)[0][:, :, None], (2,), -1),
}


@pytest.mark.parametrize("name", ALONG)
def test_reductions_go_to_the_strongest_along_their_dimensions(name: str) -> None:
    function, dims, sign = ALONG[name]
    images = torch.randn(2, 3, 4, 5, dtype=D)

    def origin(at: tuple[int, ...]) -> tuple[int, ...]:
        ranges = [range(size) if dim in dims else [at[dim]] for dim, size in list(enumerate(images.shape))[1:]]
        return max(itertools.product(*ranges), key=lambda place: sign * float(images[(at[0], *place)]))

    found_by_loop(function, images, origin)


def test_a_minimum_goes_to_the_smaller_branch() -> None:
    images = torch.randn(2, 3, 4, 5, dtype=D)

    def origin(at: tuple[int, ...]) -> tuple[int, ...]:
        n, c, y, x = at
        return (c, y, x) if images[at] <= images[n, c, y, x - 1] else (c, y, (x - 1) % 5)

    for smaller in (torch.minimum, torch.min):
        found_by_loop(lambda x, smaller=smaller: smaller(x, x.roll(1, 3)), images, origin)


def test_what_is_gated_filled_and_squared() -> None:
    images = torch.randn(2, 4, 3, 5, dtype=D)
    found_by_loop(lambda x: F.glu(x, 1), images, lambda at: at[1:])
    found_by_loop(lambda x: nn.GLU(2)(x.transpose(2, 3)).transpose(2, 3), images[..., :4], lambda at: at[1:])
    mask = torch.rand(2, 1, 3, 5) > 0.5
    kept = lambda at: None if mask[at[0], 0, at[2], at[3]] else at[1:]  # noqa: E731
    found_by_loop(lambda x: x.masked_fill(mask, 9.0), images, kept)
    found_by_loop(lambda x: torch.masked_fill(x, mask, value=torch.tensor(9.0, dtype=D)), images, kept)
    signed = lambda at: (*at[1:], -1 if images[at] < 0 else 1)  # noqa: E731
    for even in (torch.square, torch.abs, lambda x: x**2, lambda x: torch.pow(x, 4.0)):
        found_by_loop(even, images, signed)
    found_by_loop(lambda x: x**3, images, lambda at: at[1:])
    found_by_loop(lambda x: F.normalize(x, dim=1), images, lambda at: at[1:])
    with pytest.raises(NotImplementedError, match="exponent is a positive number"):
        fixations(Function(lambda x: x**-1), images)


def test_activations_that_gate_another_branch() -> None:
    images = torch.randn(2, 4, 3, 5, dtype=D)
    for activation in (F.silu, F.gelu, F.relu6, torch.tanh):

        def gated(x: Tensor, activation: Any = activation) -> Tensor:
            return activation(x.roll(1, 1)) * x

        turned = lambda at: (*at[1:], -1 if activation(images.roll(1, 1))[at] < 0 else 1)  # noqa: B023, E731
        found_by_loop(gated, images, turned)
    found_by_loop(lambda x: x / x.norm(dim=1, keepdim=True), images, lambda at: at[1:])
    with pytest.raises(NotImplementedError, match="out of a sigmoid"):
        fixations(Function(lambda x: x.relu() * x.roll(1, 1).relu()), images)


def test_unpooling_puts_points_back_where_the_largest_was() -> None:
    images = torch.randn(2, 3, 6, 8, dtype=D)
    pool = nn.MaxPool2d(2, return_indices=True)
    place = pool(images)[1]

    def origin(at: tuple[int, ...]) -> tuple[int, ...] | None:
        n, c, y, x = at
        return (c, y, x) if int(place[n, c, y // 2, x // 2]) == y * 8 + x else None

    found_by_loop(lambda x: nn.MaxUnpool2d(2)(*pool(x)), images, origin)
    found_by_loop(lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2), images, origin)


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
def test_sampling_goes_to_the_heaviest_pixel(mode: str, padding: str, align: bool) -> None:
    images = torch.randn(2, 2, 5, 6, dtype=D)
    grid = torch.rand(2, 4, 3, 2, dtype=D) * 2.6 - 1.3
    if mode == "bicubic":
        grid = grid * 0.8  # far outside all weights are negative
    how = {"mode": mode, "padding_mode": padding, "align_corners": align}
    ones = torch.eye(30, dtype=D).view(30, 1, 5, 6)

    def origin(at: tuple[int, ...]) -> tuple[int, ...] | None:
        n, c, y, x = at
        weights = F.grid_sample(ones, grid[n : n + 1, y : y + 1, x : x + 1].expand(30, 1, 1, 2), **how).flatten()
        best = int(weights.argmax())
        return (c, best // 6, best % 6) if weights[best] > 0 else None

    found_by_loop(lambda x: F.grid_sample(x, grid + x.sum() * 0, **how), images, origin)


ROWS: dict[str, Callable[[], tuple[nn.Module, nn.Module]]] = {
    "conv": lambda: (nn.Conv1d(2, 3, 3, 2, 1), nn.Conv2d(2, 3, (1, 3), (1, 2), (0, 1))),
    "dilation": lambda: (
        nn.Conv1d(2, 4, 3, padding="same", dilation=2, groups=2),
        nn.Conv2d(2, 4, (1, 3), padding="same", dilation=2, groups=2),
    ),
    "transposed": lambda: (nn.ConvTranspose1d(2, 3, 3, 2, 1), nn.ConvTranspose2d(2, 3, (1, 3), (1, 2), (0, 1))),
    "max pool": lambda: (nn.MaxPool1d(3, 2, 1), nn.MaxPool2d((1, 3), (1, 2), (0, 1))),
    "mean pool": lambda: (nn.AvgPool1d(2), nn.AvgPool2d((1, 2))),
    "cells": lambda: (nn.AdaptiveAvgPool1d(4), nn.AdaptiveAvgPool2d((1, 4))),
    "norm": lambda: (nn.BatchNorm1d(2), nn.BatchNorm2d(2)),
}


@pytest.mark.parametrize("name", ROWS)
def test_layers_of_one_dimension_are_those_of_two_on_maps_one_row_high(name: str) -> None:
    one, two = (layer.to(D).eval() for layer in ROWS[name]())
    two.load_state_dict({key: v.view(two.state_dict()[key].shape) for key, v in one.state_dict().items()})
    row, plane = (net([nn.Conv2d(2, 2, 1), layer, nn.Hardswish()]) for layer in (one, two))
    for weight in one.parameters():
        weight.data.normal_()
    two.load_state_dict({key: v.view(two.state_dict()[key].shape) for key, v in one.state_dict().items()})
    row.insert(1, nn.Flatten(2))
    row.append(nn.Unflatten(2, (1, -1)))
    row[0].load_state_dict(plane[0].state_dict())
    images = torch.randn(2, 2, 1, 12, dtype=D)
    for shift in ("full", "none"):
        fix, expected = (fixations(model, images, shift=shift, strict=True) for model in (row, plane))
        assert masses(fix) == masses(expected)
        assert torch.equal(fix.sign, expected.sign)


def test_maps_without_a_batch_dimension_are_refused() -> None:
    for layer in (nn.Conv2d(2, 2, 1), nn.MaxPool2d(1)):
        with pytest.raises(NotImplementedError, match="batch dimension"):
            fixations(Function(lambda x, layer=layer: layer.double()(x[0])[None]), torch.randn(1, 2, 3, 3, dtype=D))
