"""DiscriminativeRegionLoss: regions, debts and weights against loops over objects; what training with it does."""

import math
from typing import Any

import pytest
import torch
from attach_cases import CLASSES, Net, ThroughNumpy, batch, segformer
from torch import Tensor, nn
from torch.nn import functional as F
from weight_map_cases import check_map, problem, weights_of

from perpixel import FixationRules, Share, fixations
from perpixel.attach.criterion import attach
from perpixel.weighting import DiscriminativeRegionLoss
from perpixel.weighting.regions import heaviest, top_pixels

# --- loops, written from the definition


def places(mask: Tensor) -> list[tuple[int, ...]]:
    return [tuple(place) for place in mask.nonzero().tolist()]


def slow_hide(images: Tensor, region: Tensor, fill: str = "mean") -> Tensor:
    hidden = images.clone()
    for n, y, x in places(region):
        hidden[n, :, y, x] = images[n].mean((1, 2)) if fill == "mean" else 0.0
    return hidden


def slow_activation_region(own: Tensor, objects: dict[Any, list[Any]], share: float) -> Tensor:
    region = torch.zeros(own.shape, dtype=torch.bool)
    for pixels in objects.values():
        ordered = sorted(pixels, key=lambda p: (-float(own[p]), p))
        for p in ordered[: math.ceil(share * len(pixels) - 1e-9)]:
            region[p] = True
    return region


def cell_mask(shape: torch.Size, image: int, cell: tuple[int, int], side: int) -> Tensor:
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[image, cell[0] * side : (cell[0] + 1) * side, cell[1] * side : (cell[1] + 1) * side] = True
    return mask


def slow_fixation_region(
    model: nn.Module, images: Tensor, labels: Tensor, objects: dict[Any, list[Any]], share: float, side: int
) -> Tensor:
    start = torch.full_like(labels, -1)
    for (_, c), pixels in objects.items():
        for p in pixels:
            start[p] = c
    fix = fixations(model, images, start=start, shift="full")
    region = torch.zeros(labels.shape, dtype=torch.bool)
    for n, c in objects:
        mass: dict[tuple[int, int], float] = {}
        for (i, label, _, y, x), m in zip(fix.points.tolist(), fix.mass.tolist()):
            if (i, label) == (n, c):
                mass[y // side, x // side] = mass.get((y // side, x // side), 0.0) + m
        taken, total = 0.0, sum(mass.values())
        for cell in sorted(mass, key=lambda cell: (-mass[cell], cell)):
            if taken < share * total - 1e-9:
                region |= cell_mask(labels.shape, n, cell, side)
                taken += mass[cell]
    return region


def slow_erase_region(
    model: nn.Module, images: Tensor, own: Tensor, labels: Tensor, objects: dict[Any, list[Any]], side: int, tries: int
) -> Tensor:
    """The k-th candidates of all objects are hidden together."""
    candidates = {}
    for key, pixels in objects.items():
        mean = sum(float(own[p]) for p in pixels) / len(pixels)
        strength: dict[tuple[int, int], float] = {}
        for p in pixels:
            cell = (p[1] // side, p[2] // side)
            strength[cell] = strength.get(cell, 0.0) + max(0.0, float(own[p]) - mean)
        candidates[key] = [c for c in sorted(strength, key=lambda c: (-strength[c], c)) if strength[c] > 0][:tries]
    costs: dict[Any, list[float]] = {key: [] for key in objects}
    for k in range(tries):
        region = torch.zeros(labels.shape, dtype=torch.bool)
        for (n, _), cells in candidates.items():
            if k < len(cells):
                region |= cell_mask(labels.shape, n, cells[k], side)
        after = model(slow_hide(images, region))["out"]
        for (n, c), pixels in objects.items():
            rest = [max(0.0, float(own[p] - after[n, c, p[1], p[2]])) for p in pixels if not region[p]]
            costs[n, c].append(sum(rest) / max(len(rest), 1))
    chosen = torch.zeros(labels.shape, dtype=torch.bool)
    for key, cells in candidates.items():
        if cells:
            best = max(range(len(cells)), key=lambda k: (costs[key][k], -k))
            chosen |= cell_mask(labels.shape, key[0], cells[best], side)
    return chosen


@torch.no_grad()
def slow_map(
    loss: DiscriminativeRegionLoss, model: nn.Module, images: Tensor, labels: Tensor, strength: float
) -> Tensor:
    how = loss.regions
    before = model(images)["out"]
    own = torch.zeros(labels.shape, dtype=torch.float64)
    for p in places(labels != 255):
        own[p] = before[p[0], labels[p], p[1], p[2]]
    objects: dict[Any, list[Any]] = {}
    for p in places(labels != 255):
        objects.setdefault((p[0], int(labels[p])), []).append(p)
    debts: dict[Any, float] = {}
    labels_apart = sorted({c for _, c in objects}) if loss.separate else [None]
    for label in labels_apart:
        some = {key: pixels for key, pixels in objects.items() if label is None or key[1] == label}
        if how.region == "activation":
            region = slow_activation_region(own, some, how.share)
        elif how.region == "fixation":
            region = slow_fixation_region(model, images, labels, some, how.share, how.cell)
        else:
            region = slow_erase_region(model, images, own, labels, some, how.cell, how.candidates)
        after = model(slow_hide(images, region, str(how.fill)))["out"]
        for (n, c), pixels in some.items():
            for p in pixels:
                if not region[p]:
                    debts[p] = max(0.0, float(own[p] - after[n, c, p[1], p[2]]))
    mean = sum(debts.values()) / len(debts)
    scores = torch.zeros(labels.shape, dtype=torch.float64)
    for p, debt in debts.items():
        s = debt / (debt + mean)
        scores[p] = s if loss.mode == "debt" else 1 - s
    return weights_of(scores, labels, strength)


@pytest.mark.parametrize(
    "how",
    [
        {"region": "activation"},
        {"region": "activation", "share": 0.34, "mode": "independent", "fill": "zero", "separate": True},
        {"region": "fixation", "share": 0.2, "cell": 4, "shift": "full"},
        {"region": "fixation", "share": 0.1, "cell": 3, "shift": "full", "separate": True},
        {"region": "erase", "cell": 4, "candidates": 3},
        {"region": "erase", "cell": 5, "candidates": 1, "mode": "independent", "separate": True},
    ],
    ids=lambda how: " ".join(map(str, how.values())),
)
@pytest.mark.parametrize("training", [True, False])
def test_the_map_is_that_of_loops_over_objects(how: dict[str, Any], training: bool) -> None:
    model, images, _, labels = problem(torch.float64)
    labels[1] = labels[1].masked_fill(labels[1] == 2, 0)  # a label that one image has not
    loss = DiscriminativeRegionLoss(strength=2.0, **how)
    expected = slow_map(loss, model.eval(), images, labels, 2.0)
    model.train(training)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    logits = model(images)["out"]
    model.load_state_dict(state)
    weights = loss.weight_map(model, images, logits, labels)
    torch.testing.assert_close(weights, expected)
    check_map(weights, labels, strength=2.0)
    assert model.training == training


def test_passes_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images, logits, labels = problem()
    passes: list[bool] = []
    forward = Net.forward

    def counting(self: Net, images: Tensor) -> Any:
        passes.append(self.training or torch.is_grad_enabled())
        return forward(self, images)

    monkeypatch.setattr(Net, "forward", counting)
    for how, expected in (
        ({}, 2),
        ({"separate": True}, 1 + CLASSES),
        ({"region": "erase", "candidates": 3, "cell": 4}, 2 + 3),
    ):
        for training in (True, False):
            passes.clear()
            model.train(training)
            DiscriminativeRegionLoss(**how).weight_map(model, images, logits, labels)
            assert len(passes) == expected - (not training)  # in evaluation mode the logits are as good as new
            assert not any(passes)


# --- what it says where the answer is known


class Flow(nn.Module):
    """The left half of the picture lives on its brightest pixel; the right half stands alone."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        brightest = F.adaptive_max_pool2d(images, 1)
        left = torch.zeros_like(images)
        left[..., : images.shape[3] // 2] = 1.0
        one = images * 0.01 + left * brightest * self.scale + (1 - left) * (1 + images)
        return torch.cat((torch.zeros_like(one), one), 1)


@pytest.mark.parametrize("region", ["activation", "erase"])
def test_pixels_that_live_on_the_region_are_found(region: Any) -> None:
    model, images = Flow(), torch.full((1, 1, 8, 8), 0.5)
    images[0, 0, 4, 1] = 5.0
    images[0, 0, :, 4:] = 0.1
    labels = torch.ones(1, 8, 8, dtype=torch.long)
    with torch.no_grad():
        logits = model(images)
    how = {"share": 1 / 64, "cell": 1, "candidates": 2, "fill": "zero", "strength": 1.0, "region": region}
    debt = DiscriminativeRegionLoss(mode="debt", **how).weight_map(model, images, logits, labels)[0]
    independent = DiscriminativeRegionLoss(mode="independent", **how).weight_map(model, images, logits, labels)[0]
    head, left, right = (4, 1), (2, 2), (2, 6)
    d = 31 / 63  # mean debt over the others, in debts of the left half
    torch.testing.assert_close(float(debt[left] / debt[right]), 1 + 1 / (1 + d))
    torch.testing.assert_close(debt[head], debt[right])
    assert independent[left] < independent[right]
    torch.testing.assert_close(float(independent[right] / independent[head]), 2.0)


def test_one_pixel_objects_and_dead_activations_weigh_evenly() -> None:
    model, images, logits, labels = problem()
    single = torch.full_like(labels, 255)
    single[0, 3, 3], single[1, 5, 5] = 1, 2
    weights = DiscriminativeRegionLoss().weight_map(model, images, logits, single)
    torch.testing.assert_close(weights, (single != 255).float())
    with torch.no_grad():
        model.classifier.weight.zero_()
    for region in ("activation", "erase", "fixation"):
        for mode, expected in (("debt", 1.0), ("independent", None)):
            loss = DiscriminativeRegionLoss(region=region, mode=mode, cell=4)
            weights = loss.weight_map(model, images, logits, labels)
            check_map(weights, labels)
            if expected is not None:
                torch.testing.assert_close(weights, (labels != 255).float())


# --- regions


def test_top_pixels_by_loops_ties_and_rounding() -> None:
    values = torch.randint(0, 4, (3, 6, 7)).float()  # many ties
    labels = torch.randint(0, 3, values.shape)
    counted = torch.rand(values.shape) > 0.3
    objects: dict[Any, list[Any]] = {}
    for p in places(counted):
        objects.setdefault((p[0], int(labels[p])), []).append(p)
    for share in (0.01, 0.1, 0.3, 0.5, 0.99):
        expected = slow_activation_region(values, objects, share)
        assert torch.equal(top_pixels(values, labels, counted, 3, share), expected)
    thirty = torch.zeros(1, 5, 6, dtype=torch.long)
    region = top_pixels(torch.rand(1, 5, 6), thirty, thirty == 0, 1, 0.1)
    assert region.sum() == 3  # 0.1 · 30 is a little more than 3 in floating point
    assert not top_pixels(values, labels, torch.zeros_like(counted), 3, 0.5).any()
    hundred = torch.zeros(1, 10, 10, dtype=torch.int64)
    for percent in range(1, 100):  # in float32, 15 % of 100 are more than 15
        assert int(top_pixels(torch.rand(1, 10, 10), hundred, hundred == 0, 1, percent / 100).sum()) == percent


def test_heaviest_cells() -> None:
    mass = torch.tensor([[5.0, 1.0, 3.0, 1.0], [0.0, 0.0, 0.0, 0.0], [0.0, 2.0, 2.0, 0.0]], dtype=torch.float64)
    for share, first, last in ((0.1, [0], [1]), (0.5, [0], [1]), (0.51, [0, 2], [1, 2]), (0.95, [0, 1, 2, 3], [1, 2])):
        found = heaviest(mass, share)
        assert found[0].nonzero().flatten().tolist() == first
        assert not found[1].any()
        assert found[2].nonzero().flatten().tolist() == last


def test_every_fill_hides() -> None:
    model, images, logits, labels = problem()
    maps = []
    for fill in ("mean", "blur", "zero", 0.7, lambda x: x.flip(-1)):
        loss = DiscriminativeRegionLoss(fill=fill)
        maps.append(loss.weight_map(model, images, logits, labels))
        check_map(maps[-1], labels)
        region = torch.rand(2, 8, 8) > 0.5
        hidden = loss.regions.hide(images, region)
        outside = ~region.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, None].expand_as(images)
        assert torch.equal(hidden[outside], images[outside])
        assert not (hidden[~outside] == images[~outside]).any()
    assert all(not torch.equal(a, b) for i, a in enumerate(maps) for b in maps[:i])


# --- options and refusals


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ({"region": "peak"}, ValueError, "region.*'activation', 'fixation', 'erase'"),
        ({"mode": "pay"}, ValueError, "mode.*'debt', 'independent'"),
        ({"share": 0.0}, ValueError, "share"),
        ({"share": 1.0}, ValueError, "share"),
        ({"share": "most"}, TypeError, "share"),
        ({"fill": "black"}, ValueError, "fill"),
        ({"fill": None}, TypeError, "fill"),
        ({"fill": math.nan}, ValueError, "fill"),
        ({"separate": 1}, TypeError, "separate"),
        ({"cell": 0}, ValueError, "cell"),
        ({"candidates": 0}, ValueError, "candidates"),
        ({"k": 0}, ValueError, "k"),
        ({"shift": "left"}, ValueError, "shift"),
        ({"rules": "old"}, ValueError, "rules"),
        ({"strength": -1.0}, ValueError, "strength"),
    ],
)
def test_bad_options_are_named_by_the_constructor(how: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        DiscriminativeRegionLoss(**how)


def test_options_of_fixations_are_passed_on_and_shown() -> None:
    rules = FixationRules(select="element")
    loss = DiscriminativeRegionLoss(0.3, region="fixation", rules=rules, k=Share(0.5), shift="none")
    assert vars(loss.regions.fixations) == {"rules": rules, "k": Share(0.5), "shift": "none"}
    assert "region='fixation'" in repr(loss)
    model, images, logits, labels = problem()
    check_map(loss.weight_map(model, images, logits, labels), labels)


def test_a_network_that_some_points_could_not_be_followed_through_is_refused_at_once() -> None:
    class Rare(Net):
        def forward(self, images: Tensor) -> dict[str, Tensor]:
            return super().forward(images + 1e-6 * images.cumsum(2))  # which gives most nowhere

    images, labels = batch()
    for mode in ("fixation", "activation"):
        model = Rare()
        with attach(model, DiscriminativeRegionLoss(region=mode)) as criterion:
            if mode == "activation":
                criterion(model(images), labels)
            else:
                with pytest.raises(NotImplementedError, match="node 'cumsum'"):
                    criterion(model(images), labels)


def test_only_fixations_ask_for_a_model_that_torch_sees_all_of() -> None:
    model = ThroughNumpy()
    images, labels = batch()
    with attach(model, DiscriminativeRegionLoss(), DiscriminativeRegionLoss(region="erase", cell=4)) as criterion:
        criterion(model(images), labels).backward()
        assert set(criterion.terms) == {"base", "discriminative_region", "discriminative_region_2"}
    with (
        attach(model, DiscriminativeRegionLoss(region="fixation")) as criterion,
        pytest.raises(TypeError, match="operations of torch from the images to the logits"),
    ):
        criterion(model(images), labels)


@pytest.mark.slow
def test_segformer_works_where_its_images_come_by_name() -> None:
    model = segformer()
    images, labels = batch(2, 32)
    loss = DiscriminativeRegionLoss()
    criterion = attach(model, loss)
    criterion(model(pixel_values=images), labels).backward()
    check_map(loss.weight_map(model, images, model(pixel_values=images).logits, labels), labels)
