"""FixationWeightedLoss: scores against loops over the points, options, refusals."""

import copy
from typing import Any

import pytest
import torch
from attach_cases import CLASSES, Net, ThroughNumpy, batch, gradients, segformer
from torch import Tensor, nn
from torch.nn import functional as F
from weight_map_cases import check_map, problem, weights_of

from perpixel import FixationRules, Share, fixations
from perpixel.attach.criterion import attach
from perpixel.fixations import Rule
from perpixel.weighting import FixationWeightedLoss

# --- against the definition


def slow_scores(
    mode: str, model: nn.Module, images: Tensor, labels: Tensor, start: Tensor, cell: int, reach: int, **how: Any
) -> Tensor:
    """s by loops over points and pixels. `labels` and `start` (-1: not traced) lie over the image."""
    fix = fixations(model, images, start=start, **how)
    n, height, width = images.shape[0], images.shape[2] / cell, images.shape[3] / cell
    cells = [(r, c) for r in range(-int(-height // 1)) for c in range(-int(-width // 1))]
    landed = {(i, c, cl): 0.0 for i in range(n) for c in range(CLASSES) for cl in cells}
    pixels = dict(landed)
    for (i, c, _, y, x), mass in zip(fix.points.tolist(), fix.mass.tolist()):
        landed[i, c, (y // cell, x // cell)] += mass

    def cell_of(y: int, x: int, size: torch.Size) -> tuple[int, int]:
        return (
            int((y + 0.5) / size[0] * images.shape[2]) // cell,
            int((x + 0.5) / size[1] * images.shape[3]) // cell,
        )

    for i, y, x in (start >= 0).nonzero().tolist():
        pixels[i, int(start[i, y, x]), cell_of(y, x, start.shape[1:])] += 1
    scores = torch.zeros(labels.shape, dtype=torch.float64)
    for i, y, x in (labels != 255).nonzero().tolist():
        place, c = cell_of(y, x, labels.shape[1:]), int(labels[i, y, x])
        if mode == "evidence":
            e, a = (sum(table[i, k, place] for k in range(CLASSES)) for table in (landed, pixels))
            scores[i, y, x] = max(0.0, e - a) / e if e > 0 else 0.0
        else:
            around = [p for p in cells if abs(p[0] - place[0]) <= reach and abs(p[1] - place[1]) <= reach]
            e, a = (sum(table[i, c, p] for p in around) for table in (landed, pixels))
            scores[i, y, x] = max(0.0, 1 - e / a) if a > 0 else 1.0
    return scores


@pytest.mark.parametrize("mode", ["evidence", "unsupported"])
@pytest.mark.parametrize(
    ("how", "cell", "reach"),
    [
        ({"shift": "full"}, 4, 1),
        ({"shift": "partial", "k": 2}, 3, 0),
        ({"shift": "none", "rules": "seg-unravel"}, 5, 2),
        ({"shift": "full", "k": Share(0.2)}, 1, 1),
        ({"shift": "full", "k": "resolution", "rules": FixationRules(select="element")}, 100, 1),
    ],
)
@pytest.mark.parametrize("start", ["labels", "prediction"])
def test_scores_are_those_of_loops_over_points_and_pixels(
    mode: Any, start: Any, how: dict[str, Any], cell: int, reach: int
) -> None:
    model, images, logits, labels = problem(torch.float64)
    loss = FixationWeightedLoss(mode=mode, start=start, cell=cell, reach=reach, strength=2.0, **how)
    traced = (labels if start == "labels" else logits.argmax(1)).masked_fill(labels == 255, -1)
    scores = slow_scores(mode, model.eval(), images, labels, traced, cell, reach, **how)
    model.train()
    torch.testing.assert_close(loss.weight_map(model, images, logits, labels), weights_of(scores, labels))
    assert model.training


@pytest.mark.parametrize("mode", ["evidence", "unsupported"])
@pytest.mark.parametrize("size", [(8, 8), (16, 16)])
def test_labels_and_logits_of_other_sizes_lie_over_the_image(mode: Any, size: tuple[int, int]) -> None:
    class Coarse(Net):
        def forward(self, images: Tensor) -> Tensor:
            return self.classifier(self._neck(self.body(images)))

    model = Coarse().double().eval()
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    labels = torch.randint(0, CLASSES, (2, *size))
    labels[:, :2] = 255
    loss = FixationWeightedLoss(mode=mode, cell=4, strength=2.0, shift="full")
    rows, columns = (torch.arange(8) * (n // 8) for n in size)
    start = labels[:, rows][:, :, columns].masked_fill(labels[:, rows][:, :, columns] == 255, -1)
    expected = weights_of(slow_scores(mode, model, images, labels, start, 4, 1, shift="full"), labels)
    torch.testing.assert_close(loss.weight_map(model, images, model(images), labels), expected)


def copier(offset: int) -> nn.Module:
    """Two classes; every pixel of the output copies the pixel `offset` columns to the left."""
    net = nn.Conv2d(1, 2, (1, 2 * offset + 1), padding=(0, offset), bias=False)
    nn.init.zeros_(net.weight)
    net.weight.data[:, 0, 0, 0] = 1.0
    return net


def test_what_the_modes_say_of_a_net_that_copies_from_the_left() -> None:
    model, images = copier(4), torch.rand(1, 1, 4, 12) + 0.5
    labels = torch.zeros(1, 4, 12, dtype=torch.long)
    labels[:, :, 8:] = 1
    logits = model(images)
    maps = {
        mode: FixationWeightedLoss(mode=mode, cell=4, reach=0, shift="full", strength=1.0).weight_map(
            model, images, logits, labels
        )
        for mode in ("evidence", "unsupported")
    }
    # the second cell's pixels rest on the first, the third's on the second; the first's have only padding to rest on,
    # which does not compete, so that they stay: mass 2 : 1 : 0 for 1 : 1 : 1 pixels
    raw = torch.tensor([1.5] * 4 + [1.0] * 8)
    torch.testing.assert_close(maps["evidence"], (raw / raw.mean()).expand(1, 4, 12))
    raw = torch.tensor([1.0] * 4 + [2.0] * 8)  # label 0 lands in the first cell only, label 1 in the second
    torch.testing.assert_close(maps["unsupported"], (raw / raw.mean()).expand(1, 4, 12))


def test_a_pixel_that_all_others_rest_on_weighs_most() -> None:
    class Global(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            peak = F.adaptive_max_pool2d(images, 1)
            return torch.cat((peak, -peak), 1).expand(-1, -1, *images.shape[2:])

    images = torch.rand(1, 1, 8, 8)
    images[0, 0, 5, 6] = 2.0
    labels = torch.zeros(1, 8, 8, dtype=torch.long)
    model = Global()
    model.scale = nn.Parameter(torch.ones(()))
    loss = FixationWeightedLoss(cell=1, strength=3.0)
    weights = loss.weight_map(model, images, model(images), labels)
    raw = torch.ones(8, 8)
    raw[5, 6] = 1 + 3 * 63 / 64
    torch.testing.assert_close(weights[0], raw / raw.mean())


# --- options and refusals


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ({"mode": "support"}, ValueError, "mode.*'evidence', 'unsupported'"),
        ({"shift": "half"}, ValueError, "shift"),
        ({"rules": "classic"}, ValueError, "rules"),
        ({"rules": 3}, TypeError, "rules"),
        ({"k": 0}, ValueError, "k"),
        ({"k": "all"}, ValueError, "k.*'resolution'"),
        ({"k": 1.5}, TypeError, "k"),
        ({"k": {"classifier": 0}}, ValueError, "k"),
        ({"start": "truth"}, ValueError, "start"),
        ({"cell": 0}, ValueError, "cell"),
        ({"reach": -1}, ValueError, "reach"),
        ({"strength": -1}, ValueError, "strength"),
    ],
)
def test_bad_options_are_named_by_the_constructor(how: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        FixationWeightedLoss(**how)


def test_options_reach_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def spy(model: nn.Module, images: Tensor, **how: Any) -> Any:
        seen.update(how)
        return fixations(model, images, **how)

    monkeypatch.setattr("perpixel.weighting.fixation_weighted.fixations", spy)
    model, images, logits, labels = problem()
    rules = FixationRules(select="element")
    loss = FixationWeightedLoss(0.5, rules=rules, k={"classifier": Share(0.5), "neck": 2}, shift="none")
    check_map(loss.weight_map(model, images, logits, labels), labels)
    assert seen["rules"] is rules
    assert seen["k"] == {"classifier": Share(0.5), "neck": 2}
    assert seen["shift"] == "none"
    assert loss.weight == 0.5
    assert "mode='evidence'" in repr(loss)
    FixationWeightedLoss().weight_map(model, images, logits, labels)
    assert (seen["rules"], seen["k"], seen["shift"]) == (FixationRules(), 1, "partial")


def test_labels_past_255_and_another_void_are_traced_and_not() -> None:
    model = nn.Conv2d(3, 300, 3, padding=1)
    images = torch.randn(1, 3, 8, 8)
    labels = torch.randint(250, 300, (1, 8, 8))
    labels[0, 0] = -7
    loss = FixationWeightedLoss(cell=2, ignore_index=-7)
    weights = loss.weight_map(model, images, model(images), labels)
    check_map(weights, labels.masked_fill(labels == 255, 254).masked_fill(labels == -7, 255))
    assert fixations(model, images, start=labels.masked_fill(labels == 255, 254)).started == 56


def test_a_model_that_torch_does_not_see_is_refused_and_left_as_it_was() -> None:
    model = ThroughNumpy()
    images, labels = batch()
    with attach(model, FixationWeightedLoss()) as criterion:
        for _ in range(2):
            with pytest.raises(TypeError, match="operations of torch from the images to the logits"):
                criterion(model(images), labels)
    assert model.training
    with torch.no_grad():
        model.neck.weight.fill_(torch.nan)
    plain = Net()
    plain.load_state_dict(model.state_dict())
    with attach(plain, FixationWeightedLoss()) as criterion, pytest.raises(ValueError, match=r"node 'neck'.*NaN"):
        criterion(plain(images), labels)


class Doubling(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * float(1 + (x.sum() > 0))


def test_a_rule_of_the_users_own_makes_a_model_traceable() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), Doubling(), nn.Conv2d(6, CLASSES, 1))
    images, labels = batch()

    def same(points: Any, step: Any) -> Any:
        return [(step.operands[0], points)]

    rules = FixationRules(extra={Doubling: Rule(same)})
    criterion = attach(model, FixationWeightedLoss(rules=rules))
    criterion(model(images), labels).backward()
    assert model[0].weight.grad.abs().sum() > 0


# --- networks people use


@pytest.mark.slow
def test_torchvisions_lraspp_and_deeplab_need_no_head() -> None:
    segmentation = pytest.importorskip("torchvision.models.segmentation")
    images, labels = batch(2, 64)
    for name, aux in (("lraspp_mobilenet_v3_large", None), ("deeplabv3_mobilenet_v3_large", True)):
        how = {} if aux is None else {"aux_loss": aux}
        model = getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=CLASSES, **how)
        criterion = attach(model, FixationWeightedLoss(mode="unsupported"))
        state = copy.deepcopy(model.eval().state_dict())
        criterion(model(images), labels).backward()
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        assert set(criterion.terms) == {"base", "fixation_weighted"} | ({"aux"} if aux else set())
        assert all(torch.isfinite(g).all() for g in gradients(model).values())


class Summed(Net):
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return super().forward(images.cumsum(2))


def test_a_network_that_cannot_be_followed_is_refused_with_the_reason() -> None:
    model = Summed()
    images, labels = batch(1, 32)
    criterion = attach(model, FixationWeightedLoss())
    with pytest.raises(NotImplementedError, match="node 'cumsum"):
        criterion(model(images), labels)
    assert model.training


@pytest.mark.slow
def test_segformer_is_followed() -> None:
    model = segformer()
    images, labels = batch(1, 32)
    criterion = attach(model, FixationWeightedLoss())
    criterion(model(pixel_values=images), labels).backward()
    assert set(criterion.terms) == {"base", "fixation_weighted"}
    assert model.training
