"""The published rules: the recorded points of the original functions, and networks it did not record."""

import importlib.util
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fixation_oracles import trace_chain
from torch import Tensor, nn
from torch.nn import functional as F

from perpixel.fixations import Fixations, fixations

GOLDEN = Path(__file__).parents[2] / "shared" / "reference" / "golden_fixations.py"
SHIFTS = ("full", "partial", "none")


def recorded() -> list[Any]:
    if not GOLDEN.exists():
        return []
    spec = importlib.util.spec_from_file_location("golden_fixations", GOLDEN)
    module = importlib.util.module_from_spec(spec)
    sys.modules["golden_fixations"] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return list(module.load())


@pytest.mark.skipif(not GOLDEN.exists(), reason="the recorded points are not here")
@pytest.mark.parametrize("shift", SHIFTS)
def test_recorded_points_are_met_exactly(shift: str) -> None:
    compared = 0
    for net in recorded():
        model = net.module()
        labels = model(net.image).argmax(1)
        for (recorded_shift, label), tensors in net.points.items():
            if recorded_shift != shift:
                continue
            start = labels.masked_fill(labels != label, 255)
            fix = fixations(model, net.image, start=start, shift=shift, rules="seg-unravel", record=True)
            for name, points in tensors.items():
                node = {"data": "image", "fc8_interp": "interpolate"}.get(name, name)
                assert {tuple(p[2:]) for p in fix.layers[node].points.tolist()} == points, (net.name, label, name)
                compared += len(points)
            assert float(fix.mass.sum()) == fix.started
    assert compared > 1000


class Pyramid(nn.Module):
    """The same convolutions at three scales, resized to one and joined by their maximum, and a sum of branches."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 5, 3, padding=1), nn.Conv2d(5, 3, 3, padding=2, dilation=2)

    def at(self, image: Tensor, size: tuple[int, int]) -> tuple[Tensor, ...]:
        small = F.interpolate(image, size=size, mode="bilinear", align_corners=True)
        first = self.first(small)
        second = self.second(F.relu(first))
        return small, first, second, F.interpolate(second, size=image.shape[-2:], mode="bilinear", align_corners=True)

    def forward(self, image: Tensor) -> Tensor:
        whole, half, double = (self.at(image, size)[-1] for size in ((9, 13), (5, 7), (17, 25)))
        return torch.maximum(torch.maximum(whole, half), double)


@pytest.mark.parametrize("shift", SHIFTS)
def test_scales_joined_by_their_maximum(shift: str) -> None:
    """Every pixel follows the scale whose activation is largest; each scale is then a chain."""
    model = Pyramid().double().requires_grad_(False)
    image = torch.randn(1, 2, 9, 13, dtype=torch.float64)
    sizes = ((9, 13), (5, 7), (17, 25))
    with torch.no_grad():
        scales = torch.stack([model.at(image, size)[-1] for size in sizes])
    start = scales.amax(0).argmax(1)
    winner = scales.max(0).indices.gather(1, start[:, None])[:, 0]
    expected: Counter = Counter()
    for place, size in enumerate(sizes):
        up, down = (nn.Upsample(size=s, mode="bilinear", align_corners=True) for s in ((9, 13), size))
        chain = [down, model.first, nn.ReLU(), model.second, up]
        expected += trace_chain(chain, image, start.masked_fill(winner != place, 255), shift=shift, published=True)[0]
    assert masses(fixations(model, image, shift=shift, rules="seg-unravel")) == expected


class Joins(nn.Module):
    """Sums of three, two of them equal."""

    def __init__(self, join: Callable[..., Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.join = nn.Conv2d(2, 3, 1), nn.Conv2d(2, 3, 1), join

    def forward(self, image: Tensor) -> Tensor:
        return self.join(self.a(image), self.b(image), self.b(image))


@pytest.mark.parametrize(
    "join",
    [
        lambda a, b, c: a + b + c,
        lambda a, b, c: a + (b + c),
        lambda a, b, c: torch.maximum(a, torch.maximum(b, c)),
        lambda a, b, c: torch.stack([a, b, c]).sum(dim=0),
        lambda a, b, c: sum([a, b, c]),
    ],
)
@pytest.mark.parametrize("rules", ["seg-unravel", "modern"])
def test_a_join_of_many_goes_to_the_largest_and_the_first(join: Callable[..., Tensor], rules: str) -> None:
    model = Joins(join).double()
    image = torch.randn(1, 2, 6, 5, dtype=torch.float64)
    fix = fixations(model, image, rules=rules, record=True)
    with torch.no_grad():
        label = model(image).argmax(1, keepdim=True)
        a, b = model.a(image).gather(1, label)[0, 0], model.b(image).gather(1, label)[0, 0]
    on_a, on_b = ({tuple(p[3:]) for p in fix.layers[name].points.tolist()} for name in ("a", "b"))
    assert on_a == {tuple(p) for p in (a >= b).nonzero().tolist()}
    assert on_b == {tuple(p) for p in (b > a).nonzero().tolist()}
    assert "b_1" not in fix.layers


def masses(fix: Fixations) -> Counter:
    return Counter({tuple(p): m for p, m in zip(fix.points.tolist(), fix.mass.tolist())})
