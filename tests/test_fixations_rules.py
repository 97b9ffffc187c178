"""Every rule against plain loops written from its definition, and what must not change the points."""

from collections import Counter

import pytest
import torch
from fixation_oracles import folded, trace_chain
from torch import Tensor, nn

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
