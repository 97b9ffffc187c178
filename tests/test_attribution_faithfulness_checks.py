"""Sanity checks: baselines, the object alone, known evidence; a trained network against a random one."""

from typing import Any

import pytest
import torch
from attribution_nets import LABEL, Conv, GradientTimesInput, Linear, Pooled, case, marked, region_of, trained
from scipy.stats import spearmanr
from torch import Tensor, nn

from perpixel.attribution.captum.explain import explain
from perpixel.attribution.faithfulness.baselines import baseline_sensitivity
from perpixel.attribution.faithfulness.faithfulness import faithfulness
from perpixel.attribution.faithfulness.object_alone import object_alone
from perpixel.attribution.faithfulness.randomised_weights import randomised_weights
from perpixel.attribution.measures.evidence import evidence_share, pointing


def test_baselines_that_matter_differ_from_those_that_do_not() -> None:
    model, images = Linear(), torch.randn(2, 1, 6, 6, dtype=torch.float64)

    def blind(_: nn.Module, x: Tensor, baseline: Tensor) -> Tensor:
        return x

    def seeing(network: Any, x: Tensor, baseline: Tensor) -> Tensor:
        return (x - baseline) * network.weight.detach()

    same = baseline_sensitivity(model, images, blind)
    torch.testing.assert_close(same.correlation, torch.ones(3, 3, 2, dtype=torch.float64))
    assert same.spread.tolist() == [0.0, 0.0]
    other = baseline_sensitivity(model, images, seeing, baselines=("zero", 2.0))
    assert other.baselines == ("zero", "baseline 1")
    first, second = images[0, 0] * model.weight[0, 0].detach(), (images[0, 0] - 2) * model.weight[0, 0].detach()
    assert float(other.correlation[0, 1, 0]) == pytest.approx(spearmanr(first.flatten(), second.flatten()).statistic)
    spread = ((first - second).abs() / 2).mean() / ((first.abs() + second.abs()) / 2).mean()
    assert float(other.spread[0]) == pytest.approx(float(spread))
    torch.testing.assert_close(other.mean_correlation, other.correlation[0, 1])


def test_object_alone_is_the_image_with_its_context_replaced() -> None:
    model, images, _, region = case((8, 8))
    found = object_alone(model, images, LABEL, region, baselines="zero", seeds=2)
    with torch.no_grad():
        before = model(images)["out"]
        alone = model(torch.where(region[:, None], images, 0.0))["out"]
    for n in range(2):
        margins = [(z[n, LABEL] - z[n, [0, 2]].amax(0))[region[n]].mean() for z in (before, alone)]
        torch.testing.assert_close(found.kept[n], (alone[n].argmax(0) == LABEL)[region[n]].double().mean())
        torch.testing.assert_close(found.logit_drop[n], (before[n, LABEL] - alone[n, LABEL])[region[n]].mean())
        torch.testing.assert_close(found.margin_drop[n], margins[0] - margins[1])
    assert found.kept_elsewhere.shape == (2, 2)
    nothing_hidden = object_alone(model, images, LABEL, region, baselines=images.clone())
    torch.testing.assert_close(nothing_hidden.kept, nothing_hidden.kept_before)


def test_the_piece_elsewhere_has_the_shape_but_not_the_place_of_the_object() -> None:
    model, images = Conv().eval(), 1 + torch.rand(1, 2, 8, 8, dtype=torch.float64)
    region = torch.zeros(1, 8, 8, dtype=torch.bool)
    region[0, 2:5, 2:4] = region[0, 2, 4] = True
    model.keep = True
    object_alone(model, images, LABEL, region, baselines="zero", seeds=4)
    object_seen, *pieces = [(image != 0).any(0) for image in torch.cat(model.seen)[2:]]
    assert torch.equal(object_seen, region[0])
    assert len(pieces) == 4
    for piece in pieces:
        assert int(piece.sum()) == 7
        assert not bool((piece & region[0]).any())
        assert any(torch.equal(region[0].roll((y, x), (0, 1)), piece) for y in range(8) for x in range(8))
    large = torch.ones(1, 8, 8, dtype=torch.bool)
    large[0, 0] = False
    assert bool(object_alone(model, images, LABEL, large).kept_elsewhere.isnan().all())


def test_evidence_share_and_pointing_by_hand() -> None:
    values = torch.tensor([[[1.0, -3.0], [4.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]], [[2.0, 2.0], [1.0, 2.0]]])
    evidence = torch.tensor([[[False, True], [False, False]], [[True, False]] * 2, [[True, True], [False, False]]])
    share = evidence_share(values, evidence)
    expected = torch.tensor([3 / 8, torch.nan, 4 / 7], dtype=torch.float64)
    torch.testing.assert_close(share.share, expected, equal_nan=True)
    torch.testing.assert_close(share.chance, torch.tensor([0.25, 0.5, 0.5], dtype=torch.float64))
    assert float(share.density[0]) == pytest.approx(1.5)
    assert evidence_share(values, evidence, part="positive").share[0] == 0
    assert evidence_share(values, evidence, part="negative").share[0] == 1
    hits = pointing(values, evidence)
    torch.testing.assert_close(hits.hit, torch.tensor([0.0, 0.5, 2 / 3], dtype=torch.float64))
    assert hits.accuracy == pytest.approx((0.5 + 2 / 3) / 3)
    assert hits.expected == pytest.approx((0.25 + 0.5 + 0.5) / 3)
    where = torch.tensor([[True, True], [False, False]]).expand(3, 2, 2)
    part = evidence_share(values, evidence, where=where)
    torch.testing.assert_close(part.share, torch.tensor([0.75, torch.nan, 1], dtype=torch.float64), equal_nan=True)
    torch.testing.assert_close(part.chance, torch.tensor([0.5, 0.5, 1.0], dtype=torch.float64))
    assert pointing(values, evidence, where=where).hit[0] == 0


def test_what_explain_gives_can_be_passed_on_whole() -> None:
    model, images, _, region = case((8, 8))

    def explainer(network: nn.Module, x: Tensor, **options: Any) -> Any:
        return explain(network, x, LABEL, region=region, method="InputXGradient", **options)

    asked = explainer(model, images)
    for check in (evidence_share, pointing):
        whole, values = check(asked, region), check(asked.values, region)
        torch.testing.assert_close(vars(whole), vars(values))
    found = randomised_weights(model, images, explainer)
    torch.testing.assert_close(found.trained, asked.pixels)
    report = faithfulness(model, images, asked, explainer=explainer, compare_baselines=(), samples=2, steps=2)
    assert report.completeness is None
    assert report.sensitivity is not None
    assert "Completeness" not in report.summary()
    assert report.to_dict()["completeness"] is None


def test_evidence_of_channels_and_of_nothing() -> None:
    values = torch.tensor([[[[1.0, 0.0]], [[-1.0, 1.0]]]])
    evidence = torch.tensor([[[True, False]]])
    assert float(evidence_share(values, evidence).share) == pytest.approx(2 / 3)  # as context_share counts
    assert float(pointing(values, evidence).hit) == 0  # the channels' sum is (0, 1)
    for found in (evidence_share(values, ~evidence & evidence), pointing(values, ~evidence & evidence)):
        assert bool(found.chance.isnan().all())
    for check, wrong in ((evidence_share, evidence.long()), (pointing, evidence[:, :, :1])):
        with pytest.raises(ValueError, match="evidence: expected a bool tensor"):
            check(values, wrong)
    with pytest.raises(ValueError, match="values: expected finite values"):
        pointing(values / 0, evidence)
    with pytest.raises(ValueError, match="part: expected one of"):
        evidence_share(values, evidence, part="all")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="values: expected an attribution"):
        evidence_share([1.0], evidence)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def toy() -> tuple[Pooled, Tensor, Tensor, Tensor, Tensor]:
    model = trained()
    images, labels, marker = marked(12, 7)
    label = labels.flatten(1).amax(1)
    with torch.no_grad():
        right = (model(images).argmax(1) == labels)[labels > 0].double().mean()
    assert float(right) > 0.95
    return model, images, label, labels > 0, marker


def test_trained_network_differs_from_a_random_one(toy: tuple[Pooled, Tensor, Tensor, Tensor, Tensor]) -> None:
    model, images, label, region, marker = toy
    explainer = GradientTimesInput(label, region)
    values = explainer(model, images)
    how: dict[str, Any] = {"region": region, "explainer": explainer, "baselines": "zero", "patch": 2, "steps": 10}
    found = faithfulness(model, images, values, label, samples=6, **how)
    random = found.randomised.reset
    mine, theirs = (evidence_share(v, marker, where=~region) for v in (values, random))
    assert float(mine.share.mean()) > 2 * float(mine.chance.mean())
    assert float(mine.share.mean()) > float(theirs.share.mean()) + 0.1
    assert pointing(values, marker, where=~region).accuracy == 1.0
    assert float(found.randomised.correlation[-1].mean()) < 0.5
    for curve in (found.deletion, found.insertion):
        for order in ("random", "nearest first", "reset network"):
            assert float(curve.gain("margin", order).mean()) > 0
        assert float(curve.beaten("margin").mean()) > 0.9
    # without the marker the object's label is a coin: alone it loses its margin, though not its logit
    assert float(found.object_alone.margin_drop.mean()) > 1
    assert float(found.object_alone.kept_before.mean()) > 0.95
    assert float(found.infidelity.value.mean()) < float(found.infidelity.shuffled.mean())
    assert bool((found.sensitivity < 1).all())
    torch.testing.assert_close(found.completeness.relative_gap, torch.zeros(12, dtype=torch.float64), atol=0.1, rtol=0)


def test_infidelity_is_zero_for_exact_values_and_their_multiples() -> None:
    model, images = Linear(), torch.randn(3, 1, 6, 6, dtype=torch.float64)
    region = region_of(images)
    exact = images * model.weight.detach()
    how: dict[str, Any] = {"region": region, "baselines": "zero", "samples": 8, "seeds": 1, "steps": 1}
    for factor in (1.0, 7.0):
        found = faithfulness(model, images, factor * exact, 0, **how).infidelity
        torch.testing.assert_close(found.value, torch.zeros(3, dtype=torch.float64), atol=1e-9, rtol=0)
        assert bool((found.shuffled > 0.01).all())
    one = faithfulness(model, images[[1]], exact[[1]], 0, **{**how, "region": region[[1]]}).infidelity
    torch.testing.assert_close(one.shuffled, found.shuffled[[1]])
    small = faithfulness(model, images, exact, 0, batch_size=3, **how).infidelity
    torch.testing.assert_close(small.shuffled, found.shuffled)
    flat = faithfulness(model, images, exact, 0, **{**how, "baselines": images.clone()}).infidelity
    assert bool(flat.value.isnan().all())


def test_attribution_of_explain_brings_its_own_question_and_explainer() -> None:
    model, images, _, region = case((8, 8))
    asked = explain(model, images, LABEL, region=region, score="margin", n_steps=4)
    found = faithfulness(model, images, asked, steps=4, stages=1)
    assert found.label.tolist() == [LABEL, LABEL]
    assert found.score == "margin"
    assert torch.equal(found.region, region)
    assert found.randomised is not None
    assert found.baseline_sensitivity is not None
    torch.testing.assert_close(found.completeness.gap, asked.delta.double())
    torch.testing.assert_close(found.context_share, asked.context_share())
    how: dict[str, Any] = {"region": region, "score": "margin", "explainer": "Saliency", "steps": 4}
    named = faithfulness(model, images, asked.values, LABEL, **how)
    assert named.baseline_sensitivity is None  # it has none
    assert named.randomised is not None
    torch.testing.assert_close(named.deletion.scores["margin"], found.deletion.scores["margin"])
    layered = explain(model, images, torch.tensor([0, 2]), region=region, method="LayerGradCam", layer="first")
    by_layer = faithfulness(model, images, layered, steps=4, patch=2)
    assert by_layer.label.tolist() == [0, 2]
    assert by_layer.randomised is not None
    assert by_layer.completeness is None
    with pytest.raises(ValueError, match="label: expected the label explained"):
        faithfulness(model, images, asked, 2)
    with pytest.raises(ValueError, match="method: expected the name of a captum method"):
        faithfulness(model, images, asked, explainer="Gradients")
