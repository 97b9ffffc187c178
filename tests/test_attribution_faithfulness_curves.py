"""Deletion and insertion: against loops written from the definition, a case with a known best order, invariances."""

import itertools
import json
from typing import Any

import pytest
import torch
from attribution_nets import LABEL, Linear, case
from torch import Tensor, nn
from torch.nn import functional as F

from perpixel.attribution.captum.target import RegionTarget
from perpixel.attribution.faithfulness.curves import Curve
from perpixel.attribution.faithfulness.faithfulness import faithfulness


def slow_scores(model: nn.Module, image: Tensor, region: Tensor, before: Tensor) -> list[float]:
    with torch.no_grad():
        logits = model(image[None])["out"][0]
    logit = margin = 0.0
    both = either = 0
    for y, x in itertools.product(range(image.shape[1]), range(image.shape[2])):
        own, other = float(logits[LABEL, y, x]), max(float(logits[k, y, x]) for k in (0, 2))
        if region[y, x]:
            logit += own
            margin += own - other
        both += own > other and bool(before[y, x])
        either += own > other or bool(before[y, x])
    return [logit / int(region.sum()), margin / int(region.sum()), both / either]


def slow_curve(
    model: nn.Module,
    image: Tensor,
    baseline: Tensor,
    worth: Tensor,
    region: Tensor,
    patch: tuple[int, int],
    insert: bool,
) -> list[list[float]]:
    """One cell after the other, best first; a cell is what of a patch lies outside the region."""
    with torch.no_grad():
        before = model(image[None])["out"][0].argmax(0) == LABEL
    cells: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for y, x in itertools.product(range(image.shape[1]), range(image.shape[2])):
        if not region[y, x]:
            cells.setdefault((y // patch[0], x // patch[1]), []).append((y, x))
    order = sorted(cells.values(), key=lambda pixels: -sum(float(worth[:, y, x].sum()) for y, x in pixels))
    now, other = (baseline.clone(), image) if insert else (image.clone(), baseline)
    if insert:
        now[:, region] = image[:, region]
    rows = [slow_scores(model, now, region, before)]
    for pixels in order:
        for y, x in pixels:
            now[:, y, x] = other[:, y, x]
        rows.append(slow_scores(model, now, region, before))
    return rows


@pytest.mark.parametrize(("size", "patch"), [((6, 6), None), ((6, 6), 2), ((5, 7), (2, 3))])
def test_curves_are_those_of_a_slow_loop(size: tuple[int, int], patch: Any) -> None:
    model, images, values, region = case(size)
    baseline = torch.randn_like(images)
    how: dict[str, Any] = {"patch": patch, "baselines": baseline, "steps": 1000, "seeds": 1, "batch_size": 7}
    found = faithfulness(model, images, values, LABEL, region=region, **how)
    sides = (1, 1) if patch is None else (patch, patch) if isinstance(patch, int) else patch
    for curve in (found.deletion, found.insertion):
        for n in range(2):
            rows = slow_curve(model, images[n], baseline[n], values[n], region[n], sides, curve.kind == "insertion")
            cells = len(rows) - 1
            # images have different numbers of cells: the shorter curve repeats some of its points
            at = (curve.fraction[n] * cells).round().long().tolist()
            assert set(at) == set(range(cells + 1))
            expected = torch.tensor(rows, dtype=torch.float64)[at]
            got = torch.stack([curve.scores[name][n] for name in ("logit", "margin", "iou")], 1)
            torch.testing.assert_close(got, expected)
            for i, name in enumerate(("logit", "margin", "iou")):
                area = sum((a[i] + b[i]) / 2 / cells for a, b in itertools.pairwise(rows))
                assert float(curve.area(name)[n]) == pytest.approx(area)


def test_coarse_steps_are_points_of_the_full_curve() -> None:
    model, images, values, region = case()
    how: dict[str, Any] = {"region": region[:1], "seeds": 2}
    full, coarse = (faithfulness(model, images[:1], values[:1], LABEL, steps=steps, **how) for steps in (99, 7))
    for fine, few in ((full.deletion, coarse.deletion), (full.insertion, coarse.insertion)):
        assert few.fraction.shape == (1, 8)
        at = (few.fraction[0] * 30).round().long()
        torch.testing.assert_close(few.fraction[0], fine.fraction[0, at])
        torch.testing.assert_close(few.scores["margin"][0], fine.scores["margin"][0, at])
        torch.testing.assert_close(few.random["logit"][:, 0], fine.random["logit"][:, 0, at])


@pytest.mark.parametrize("patch", [None, 2])
def test_known_best_order_beats_every_random_one_and_its_reverse_none(patch: int | None) -> None:
    model, images = Linear(), torch.randn(3, 1, 6, 6, dtype=torch.float64)
    region = torch.zeros(3, 6, 6, dtype=torch.bool)
    region[:, 2, 3] = True
    exact = images * model.weight.detach()  # what each pixel gives to the logit, against zero
    how: dict[str, Any] = {"region": region, "baselines": "zero", "seeds": 20, "steps": 36, "patch": patch}
    best, worst = (faithfulness(model, images, values, 0, **how) for values in (exact, -exact))
    for name, kind in itertools.product(("logit", "margin"), ("deletion", "insertion")):
        curve, reverse = getattr(best, kind), getattr(worst, kind)
        assert bool((curve.gain(name) > 0).all() and (reverse.gain(name) < 0).all())
        assert bool((curve.beaten(name) == 1).all() and (reverse.beaten(name) == 0).all())
    # the image's own order of removal is convex, and insertion its mirror image
    falls = best.deletion.scores["logit"].diff(dim=1)
    assert patch is not None or bool((falls.diff(dim=1) >= -1e-12).all())
    torch.testing.assert_close(best.deletion.gain("logit"), -worst.deletion.gain("logit"), rtol=0.5, atol=0.1)
    torch.testing.assert_close(best.completeness.gap, torch.zeros(3, dtype=torch.float64), atol=1e-9, rtol=0)


def test_best_order_is_best_among_all_orders_of_a_small_image() -> None:
    model, images = Linear((2, 3)), torch.randn(1, 1, 2, 3, dtype=torch.float64)
    region = torch.zeros(1, 2, 3, dtype=torch.bool)
    region[0, 0, 0] = True
    exact = images * model.weight.detach()
    how: dict[str, Any] = {"region": region, "baselines": "zero", "seeds": 1, "steps": 5}
    areas = []
    for order in itertools.permutations(range(5)):
        values = torch.tensor((9, *order), dtype=torch.float64).view(1, 2, 3)
        areas.append(float(faithfulness(model, images, values, 0, **how).deletion.area("logit")))
    best = float(faithfulness(model, images, exact, 0, **how).deletion.area("logit"))
    assert len(areas) == 120
    assert best == pytest.approx(min(areas))


def same(first: Curve, second: Curve, take: slice = slice(None)) -> None:
    torch.testing.assert_close(first.fraction[take], second.fraction)
    for name in first.scores:
        torch.testing.assert_close(first.scores[name][take], second.scores[name], equal_nan=True)
        torch.testing.assert_close(first.random[name][:, take], second.random[name], equal_nan=True)


def test_only_the_order_of_the_values_counts() -> None:
    model, images, values, region = case()
    forms = (values.sum(1), (3 * values.sum(1) + 1).exp())
    plain, bent = (faithfulness(model, images, v, LABEL, region=region, steps=9) for v in forms)
    same(plain.deletion, bent.deletion)
    same(plain.insertion, bent.insertion)


@pytest.mark.parametrize("batch_size", [1, 64])
def test_a_batch_equals_its_images_alone(batch_size: int) -> None:
    model, images, values, region = case()
    how: dict[str, Any] = {"steps": 6, "patch": 2, "batch_size": batch_size}
    label = torch.tensor([1, 2])
    both = faithfulness(model, images, values, label, region=region, **how)
    for n in range(2):
        one = faithfulness(model, images[[n]], values[[n]], int(label[n]), region=region[[n]], **how)
        at = slice(n, n + 1)
        same(both.deletion, one.deletion, at)
        same(both.insertion, one.insertion, at)
        torch.testing.assert_close(both.object_alone.kept[at], one.object_alone.kept)
        elsewhere = both.object_alone.kept_elsewhere[:, at]
        torch.testing.assert_close(elsewhere, one.object_alone.kept_elsewhere, equal_nan=True)
        torch.testing.assert_close(both.context_share[at], one.context_share)


@pytest.mark.parametrize("given", [True, False])
def test_no_pass_holds_more_pictures_than_asked_for(given: bool) -> None:
    model, images, values, region = case()
    images, values, region = (t.repeat_interleave(3, 0)[:5] for t in (images, values, region))
    images = images + 0.01 * torch.arange(5)[:, None, None, None]
    passes: list[int] = []
    model.register_forward_pre_hook(lambda _, inputs: passes.append(len(inputs[0])))
    how: dict[str, Any] = {"steps": 4, "samples": 3, "region": region if given else None}
    few = faithfulness(model, images, values, LABEL, batch_size=2, **how)
    assert max(passes) == 2
    many = faithfulness(model, images, values, LABEL, batch_size=64, **how)
    assert max(passes) > 5
    same(few.deletion, many.deletion)
    same(few.insertion, many.insertion)
    torch.testing.assert_close(few.infidelity.value, many.infidelity.value)
    torch.testing.assert_close(few.infidelity.shuffled, many.infidelity.shuffled)
    torch.testing.assert_close(few.completeness.difference, many.completeness.difference)
    assert torch.equal(few.region, many.region)


def test_ties_fall_in_an_order_of_no_direction() -> None:
    model, images, _, region = case()
    flat = torch.zeros(2, 6, 6, dtype=torch.float64)
    rows = flat - torch.arange(6, dtype=torch.float64)[:, None]
    maps = (flat, flat + 1, rows)
    found, again, ordered = (faithfulness(model, images, v, LABEL, region=region, steps=9) for v in maps)
    same(found.deletion, again.deletion)
    assert not torch.allclose(found.deletion.scores["logit"], ordered.deletion.scores["logit"])


@pytest.mark.parametrize("border", [0, 1.0])
def test_the_object_never_changes_and_every_picture_is_scored_once(border: float) -> None:
    model, images, values, region = case()
    baseline = torch.full_like(images, 9.0)
    model.keep = True
    how: dict[str, Any] = {"region": region, "baselines": baseline, "steps": 4, "seeds": 3, "exclude_border": border}
    found = faithfulness(model, images, values, LABEL, **how)
    seen = torch.cat(model.seen)
    # freezing, the first scores; curves: ends, then 2 orders both ways and 3 random ones at the 3
    # points between; object alone and 3 pieces; the baseline
    assert len(seen) == 2 * (2 + 2 + (2 * 2 + 3) * 3 + 4 + 1)
    frozen = region.clone()
    if border:
        padded = F.pad(region, (1, 1, 1, 1))
        frozen |= padded[:, 2:, 1:-1] | padded[:, :-2, 1:-1] | padded[:, 1:-1, 2:] | padded[:, 1:-1, :-2]
    perturbed = seen[4 : 4 + 2 * (2 + 21)]
    for picture in perturbed:
        n = min((0, 1), key=lambda i: float((picture - images[i])[:, region[i]].abs().sum()))
        assert torch.equal(picture[:, frozen[n]], images[n][:, frozen[n]])
        kept = (picture == images[n]).all(0)
        assert torch.equal(picture[:, ~kept], baseline[n][:, ~kept])
    assert found.deletion.fraction[:, -1].tolist() == [1.0, 1.0]
    free = faithfulness(model, images, values, LABEL, **{**how, "freeze_object": False})
    assert "nearest first" in found.deletion.controls
    assert "nearest first" not in free.deletion.controls
    assert not torch.allclose(free.deletion.scores["logit"][:, -1], found.deletion.scores["logit"][:, -1])


def test_scores_start_as_those_of_the_region_target() -> None:
    model, images, values, region = case()
    found = faithfulness(model, images, values, LABEL, region=region, steps=3)
    for name in ("logit", "margin"):
        with torch.no_grad():
            target = RegionTarget(model, LABEL, region, name)
            expected = target(images, *target.arguments(images)) / region.sum((1, 2))
        torch.testing.assert_close(found.deletion.scores[name][:, 0], expected)
        torch.testing.assert_close(found.insertion.scores[name][:, -1], expected)
        torch.testing.assert_close(found.deletion.normalised(name)[:, 0], torch.ones(2, dtype=torch.float64))
        torch.testing.assert_close(found.insertion.normalised(name)[:, 0], torch.zeros(2, dtype=torch.float64))
    assert found.deletion.scores["iou"][:, 0].tolist() == [1.0, 1.0]


def test_region_is_where_the_label_is_predicted_unless_given() -> None:
    model, images, values, _ = case()
    with torch.no_grad():
        predicted = model(images)["out"].argmax(1)
    label = int(predicted.flatten(1).mode().values[0])
    images, values = images[:1], values[:1]
    found = faithfulness(model, images, values, label, steps=3)
    assert torch.equal(found.region, predicted[:1] == label)
    assert found.object_alone.kept_before.tolist() == [1.0]


def test_flat_curves_have_no_normalised_score_and_no_winner() -> None:
    model, images, values, region = case()
    found = faithfulness(model, images, values, LABEL, region=region, baselines=images.clone(), steps=4)
    for curve in (found.deletion, found.insertion):
        assert bool(curve.normalised("logit").isnan().all())
        assert bool(curve.relative_gain("margin").isnan().all())
        torch.testing.assert_close(curve.gain("logit"), torch.zeros(2, dtype=torch.float64))
        assert curve.beaten("iou").tolist() == [0.5, 0.5]
    numbers = json.loads(json.dumps(found.to_dict(), allow_nan=False))["deletion"]["areas"]["logit"]
    assert numbers["relative_gain"] == {"random": [None, None], "nearest first": [None, None]}


def test_gain_keeps_its_sign_where_the_context_speaks_against_the_label() -> None:
    model, images = Linear(), torch.rand(1, 1, 6, 6, dtype=torch.float64) + 0.1
    model.weight.data = -model.weight.data.abs()  # removing anything raises the score
    region = torch.zeros(1, 6, 6, dtype=torch.bool)
    region[0, 0, 0] = True
    exact = images * model.weight.detach()
    found = faithfulness(model, images, exact, 0, region=region, baselines="zero", steps=36, seeds=9)
    full, empty = found.deletion.ends("logit")
    assert float(full) < float(empty)
    for curve in (found.deletion, found.insertion):
        assert float(curve.gain("logit")) > 0
        assert float(curve.relative_gain("logit")) > 0
        assert float(curve.beaten("logit")) == 1


def test_iou_is_undefined_where_the_label_was_never_predicted() -> None:
    model, images, values, region = case()
    model.last.bias.data[LABEL] = -1e3
    found = faithfulness(model, images, values, LABEL, region=region, steps=3)
    assert bool(found.deletion.scores["iou"].isnan().all())
    assert bool(found.deletion.beaten("iou").isnan().all())
    assert "IoU" not in found.summary()


def test_band_is_spanned_by_the_random_orders() -> None:
    model, images, values, region = case()
    curve = faithfulness(model, images, values, LABEL, region=region, steps=5, seeds=[3, 1, 4]).deletion
    mean, low, high = curve.band("logit")
    assert curve.random["logit"].shape == (3, 2, 6)
    torch.testing.assert_close(mean, curve.random["logit"].mean(0))
    torch.testing.assert_close(low, curve.random["logit"].amin(0))
    torch.testing.assert_close(high, curve.random["logit"].amax(0))
    again = faithfulness(model, images, values, LABEL, region=region, steps=5, seeds=[4, 3]).deletion
    torch.testing.assert_close(again.random["logit"][1], curve.random["logit"][0])
    torch.testing.assert_close(curve.gain("logit"), curve.area("logit", "random").mean(0) - curve.area("logit"))
    nearest = curve.area("logit", "nearest first")
    torch.testing.assert_close(curve.gain("logit", "nearest first"), nearest - curve.area("logit"))
