"""What must not matter to fixations: slices, portions, what is kept from call to call, the order of memory."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perpixel import memory_format
from perpixel.fixations import FixationRules, Fixations, Share, Step, Units, fixations, walk
from perpixel.fixations.rules import choice, convolution, geometry, joins, placement, pooling, step, values, windows
from perpixel.fixations.trace import graph

IMAGES = torch.randn(3, 3, 26, 22, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


class Everything(nn.Module):
    """Every operation with a move of its own, and some without one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 12, 5, stride=2, padding=2), nn.BatchNorm2d(12)
        self.depthwise, self.grouped = nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.Conv2d(12, 8, 3, 1, 1, groups=4)
        self.point, self.skip = nn.Conv2d(8, 12, 1), nn.Conv2d(12, 12, 1, stride=1)
        self.squeeze, self.excite = nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1)
        self.wide, self.global_ = nn.Conv2d(12, 6, 3, padding=9, dilation=9), nn.Conv2d(12, 4, 1)
        self.pool, self.mean = nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2, 2, ceil_mode=True)
        self.up, self.head = nn.ConvTranspose2d(12, 12, 3, stride=2, padding=1), nn.Conv2d(22, 5, 1)
        self.linear = nn.Linear(22, 22)
        nn.init.normal_(self.norm.weight)

    def forward(self, image: Tensor) -> Tensor:
        x = F.hardswish(self.norm(self.stem(image)))
        y = self.point(F.relu(self.grouped(self.depthwise(x))))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        x = self.skip(x) + gate * y
        low = self.up(torch.maximum(self.pool(x), -self.mean(x)))
        everywhere = F.interpolate(self.global_(F.adaptive_avg_pool2d(x, 1)), size=x.shape[-2:])
        x = torch.cat([self.wide(x), low, everywhere], 1)
        x = self.linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return F.interpolate(self.head(x), size=image.shape[-2:], mode="bilinear", align_corners=False)


def network() -> Everything:
    torch.manual_seed(0)
    return Everything().double().eval()


@pytest.fixture(scope="module")
def model() -> Everything:
    return network()


RULES = [{}, {"select": "element"}, {"base": "seg-unravel"}]


@pytest.mark.parametrize("settings", [*RULES, {"k": 2}, {"k": Share(0.2)}])
def test_recording_changes_nothing_and_ends_at_the_points(model: Everything, settings: dict) -> None:
    call = {"k": settings["k"]} if "k" in settings else {"rules": FixationRules(**settings)}
    recorded = fixations(model, IMAGES, record=True, **call)
    plain = fixations(model, IMAGES, **call)
    same(recorded, plain, exact="k" not in call)
    assert recorded.dropped == pytest.approx(plain.dropped, abs=1e-6)
    on_image = recorded.layers["image"]
    assert torch.equal(on_image.points, recorded.points)
    assert torch.equal(on_image.mass, recorded.mass)
    for name, points in recorded.layers.items():
        assert torch.equal(points.points, points.points.unique(dim=0)), name


def test_how_much_is_looked_at_at_once_does_not_matter(model: Everything, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = fixations(model, IMAGES)
    monkeypatch.setattr(choice, "ELEMENTS", 1)
    same(fixations(model, IMAGES), expected)
    monkeypatch.setattr(geometry, "_KEPT", 0)
    same(fixations(network(), IMAGES), expected)
    monkeypatch.setattr(walk, "_LITTLE", 0)
    same(fixations(network(), IMAGES), expected)


def test_what_is_kept_of_one_call_does_not_reach_another() -> None:
    model = network()
    calls: list[dict] = [
        {"shift": shift, "rules": FixationRules(**settings)} for shift in ("full", "partial") for settings in RULES
    ]
    for call in (*calls, *calls):
        for images in (IMAGES, IMAGES[:1], IMAGES[..., :18]):
            same(fixations(model, images, **call), fixations(network(), images, **call))


def test_changed_settings_of_a_layer_are_seen() -> None:
    model = network()
    fixations(model, IMAGES)
    fresh = network()
    for net in (model, fresh):
        net.wide.dilation, net.wide.padding = (5, 2), (5, 2)
        net.depthwise.padding_mode, net.depthwise._reversed_padding_repeated_twice = "circular", [1, 1, 1, 1]
    same(fixations(model, IMAGES), fixations(fresh, IMAGES))


def whole_numbers(model: nn.Module) -> nn.Module:
    """So that sums are exact in whatever order."""
    for weight in model.parameters():
        weight.data = torch.randint(-3, 4, weight.shape, generator=torch.Generator().manual_seed(2)).float()
    return model.eval()


def layered(flat: Callable[[Tensor], Tensor]) -> nn.Module:
    class Layered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 3, 1)

        def forward(self, image: Tensor) -> Tensor:
            x = F.relu(self.a(image))
            x = F.max_pool2d(flat(x), 2) + F.avg_pool2d(self.b(x), 2)
            return F.interpolate(self.c(x), scale_factor=4)

    return whole_numbers(Layered())


LARGE = torch.randint(-3, 4, (2, 3, 128, 96), generator=torch.Generator().manual_seed(4)).float()


def test_the_order_of_memory_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    assert LARGE[:, 0].numel() > memory_format._MANY
    kept = LARGE.clone()
    for k in (1, 2):
        one = fixations(layered(lambda x: x), LARGE, k=k)
        two = fixations(layered(lambda x: x), LARGE.contiguous(memory_format=torch.channels_last), k=k)
        with monkeypatch.context() as patch:
            patch.setattr(memory_format, "_MANY", LARGE.numel())
            plain = fixations(layered(lambda x: x), LARGE, k=k)
        same(one, plain)
        same(two, plain)
    assert torch.equal(LARGE, kept)
    assert LARGE.is_contiguous()


def test_code_that_needs_the_usual_order_of_memory_is_run_so() -> None:
    model = layered(lambda x: x.view(x.shape[0], -1).view(x.shape))
    for _ in range(2):
        same(fixations(model, LARGE), fixations(layered(lambda x: x), LARGE))
    assert [trace.plain for trace in graph._TRACES[model].values()] == [True]
    model = layered(lambda x: x)
    with pytest.raises(RuntimeError, match="channels"):
        fixations(model, torch.cat([LARGE, LARGE], 1))
    assert not any(trace.plain for trace in graph._TRACES[model].values())


def test_the_image_may_require_gradients(model: Everything) -> None:
    same(fixations(model, IMAGES.clone().requires_grad_()), fixations(model, IMAGES))


def test_labels_on_one_unit_part_again_at_the_end() -> None:
    """Both labels of a pixel rest on the same input: one unit on the way, two points with a mass each."""
    model = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, bias=False), nn.Conv2d(1, 2, 1, bias=False)).double()
    model[0].weight.data.fill_(1.0)
    model[1].weight.data.fill_(1.0)
    image = torch.zeros(1, 1, 12, 12, dtype=torch.float64)
    image[0, 0, 5, 5] = 1.0
    start = torch.full((1, 12, 12), 255)
    start[0, 4:7, 4:6], start[0, 4:7, 6] = 0, 1
    fix = fixations(model, image, start=start)
    assert fix.points.tolist() == [[0, 0, 0, 5, 5], [0, 1, 0, 5, 5]]
    assert fix.mass.tolist() == [6.0, 3.0]


def test_convolutions_over_other_dimensions_are_named() -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv3d(3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x.unsqueeze(2)).squeeze(2)

    with pytest.raises(NotImplementedError, match=r"node 'conv'.*FixationRules\(extra=\{operation: rule\}\)"):
        fixations(Other(), torch.randn(1, 3, 6, 5))


def test_a_rule_of_the_users_own_sees_each_unit_once(model: Everything) -> None:
    seen: list[Units] = []

    def watch(units: Units, step: Step) -> list:
        seen.append(units)
        return [(step.operands[0], units)]

    for k in (1, 3):
        seen.clear()
        fix = fixations(model, IMAGES, rules=FixationRules(extra={"hardswish": watch}), k=k, record=True)
        same(fix, fixations(model, IMAGES, k=k, record=True))
        (units,) = seen
        found = set(zip(units.pixel.tolist(), units.channel.tolist(), (units.minus | False).tolist()))
        assert len(found) == len(units)
        at = fix.layers["hardswish"].points
        assert {(p // (13 * 11), c) for p, c, _ in found} == set(map(tuple, at[:, [0, 2]].tolist()))


@pytest.mark.parametrize("settings", RULES)
@pytest.mark.parametrize("k", [1, 3, Share(0.3)])
def test_values_that_stay_tensors_give_the_same(
    model: Everything, k: int | Share, settings: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where what is computed with is not handled as numpy arrays."""
    expected = fixations(model, IMAGES, k=k, rules=FixationRules(**settings))
    for module in (values, windows, convolution, step, placement, joins):
        monkeypatch.setattr(module, "block", lambda tensor: tensor.detach())
    monkeypatch.setattr(pooling, "Given", lambda inputs: TensorGiven(torch.from_numpy(inputs)))
    found = fixations(network(), IMAGES, k=k, rules=FixationRules(**settings))
    same(found, expected, exact=k == 1)


class TensorGiven(choice.Given):
    """What poolings give, left a tensor."""

    def of(self, channel: np.ndarray) -> np.ndarray:
        return self.given.permute(0, 2, 1).numpy().copy()


@pytest.mark.parametrize("k", [3, Share(0.3), 12])
def test_portions_and_early_merging_do_not_matter(
    model: Everything, k: int | Share, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = fixations(model, IMAGES, k=k)
    monkeypatch.setattr(walk, "_PORTION", 50)
    same(fixations(model, IMAGES, k=k, max_points=len(expected.points) * 40), expected, exact=False)
    monkeypatch.setattr(choice, "ELEMENTS", 5000)
    same(fixations(model, IMAGES, k=k), expected, exact=False)


def test_the_cap_keeps_the_heaviest_and_says_what_it_cut(model: Everything) -> None:
    with pytest.warns(UserWarning, match=r"max_points=200 cut .* of the mass"):
        fix = fixations(model, IMAGES, k=3, max_points=200)
    assert len(fix.points) <= 200
    assert set(fix.capped) <= set(fix.dropped_at)
    assert float(fix.mass.sum()) + fix.dropped == pytest.approx(fix.started)


def same(one: Fixations, other: Fixations, *, exact: bool = True) -> None:
    assert torch.equal(one.points, other.points)
    torch.testing.assert_close(one.mass, other.mass, rtol=0 if exact else 1e-9, atol=0)
    assert torch.equal(one.sign, other.sign)
