"""Parts of the fixation recipe against their definitions: questions, counts of inputs, correlation, regions."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

import perpixel
from perpixel.fixations import FixationRules, Share
from perpixel.models import small_fcn
from recipes.kit.evidence import FAR, EvidenceRegion, find_evidence_regions
from recipes.kit.images import Images
from recipes.kit.networks import random_network
from recipes.kit.settings import DataSettings, ModelSettings
from recipes.tracing.counts import SHARES, contributions, measure_counts, smallest_counts
from recipes.tracing.evidence import evidence_example, pack, trace_regions
from recipes.tracing.network import TracedNetwork, known_rivals, rival_logits
from recipes.tracing.settings import FixationMeasureSettings, TraceSettings
from recipes.tracing.shares import spearman

PAIRS = {1: 2, 2: 1, 3: 4, 4: 3}


def traced(network: nn.Module) -> TracedNetwork:
    return TracedNetwork(network.eval(), TraceSettings(), torch.device("cpu"))


@pytest.mark.parametrize(("k", "count"), [(1, 1), (3, 3), (2.0, 2), (0.25, Share(0.25)), ("resolution", "resolution")])
def test_k_may_be_a_number_a_share_or_resolution(k: float, count: object) -> None:
    assert TraceSettings(k=k).count == count


def test_the_rival_question_subtracts_logits_and_leaves_the_network() -> None:
    network = small_fcn(5, width=8)  # in training mode: the statistics of its normalisation layers stay, too
    before = {name: value.clone() for name, value in network.state_dict().items()}
    asked, x = rival_logits(network, PAIRS), torch.randn(2, 3, 24, 32)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    logits, found = network.eval()(x), asked(x)
    torch.testing.assert_close(found[:, 0], logits[:, 0])
    for c, rival in PAIRS.items():
        torch.testing.assert_close(found[:, c], logits[:, c] - logits[:, rival])
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_the_rival_question_needs_a_linear_way_to_the_logits() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Softmax(1))
    with pytest.raises(ValueError, match="a classifier that gives the logits"):
        rival_logits(network, {0: 1})


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 6, 3, stride=2, padding=1),
        nn.Conv2d(4, 6, (3, 2), stride=(1, 2), padding=(0, 1), dilation=2, groups=2, bias=False),
        nn.Conv2d(4, 4, 3, padding="same", dilation=2, groups=4),
        nn.Conv2d(4, 6, (4, 3), padding="same"),
        nn.Conv2d(4, 6, 3, padding=(2, 1), padding_mode="reflect"),
        nn.Conv2d(4, 6, 3, padding="valid"),
    ],
    ids=lambda conv: str(conv)[6:],
)
def test_contributions_add_up_to_every_unit(conv: nn.Conv2d) -> None:
    x = torch.randn(2, 4, 9, 11)
    out = conv(x)
    units = tuple(t.flatten() for t in torch.meshgrid(*(torch.arange(s) for s in out.shape), indexing="ij"))
    found = contributions(conv, x, units)
    assert found.shape[1] == 4 // conv.groups
    bias = 0.0 if conv.bias is None else conv.bias[units[1]].double()
    torch.testing.assert_close(found.sum((1, 2)) + bias, out.flatten().double(), atol=1e-5, rtol=1e-5)


def test_counts_are_the_fewest_that_reach_the_share() -> None:
    given = torch.randn(40, 12, dtype=torch.float64) + 0.3
    given = given[given.sum(1) > 0.1]
    for whole in ("activation", "positive"):
        found = smallest_counts(given, SHARES, whole)
        for row, values in enumerate(given.tolist()):
            values = sorted((v if whole == "activation" else max(v, 0.0) for v in values), reverse=True)
            for column, share in enumerate(SHARES):
                count, held = 0, 0.0
                while held < share * sum(values) - 1e-12:
                    held += values[count]
                    count += 1
                assert found[row, column] == count
    assert smallest_counts(torch.tensor([[3.0, 1.0, -2.0]]), (0.5, 0.9), "activation").tolist() == [[1, 1]]
    assert smallest_counts(torch.tensor([[3.0, 1.0, -2.0]]), (0.5, 0.9), "positive").tolist() == [[1, 2]]


@pytest.mark.parametrize("select", ["element", "channel"])
def test_counts_are_those_that_fixations_follow(select: str) -> None:
    network = nn.Sequential(nn.Conv2d(3, 2, 3, bias=False)).double().eval()
    x = torch.rand(1, 3, 3, 3, dtype=torch.float64)  # one unit per channel
    for label in range(2):
        units = (torch.tensor([0]), torch.tensor([label]), torch.tensor([0]), torch.tensor([0]))
        given = contributions(network[0], x, units)
        if float(given.sum()) <= 0:
            with torch.no_grad():
                network[0].weight.neg_()
            given = -given
        given = given.flatten(1) if select == "element" else given.sum(2)
        for share in (0.3, 0.5, 0.8):
            rules = FixationRules(select=select)  # type: ignore[arg-type]
            start = torch.tensor([[[label]]])
            fix = perpixel.fixations(network, x, start=start, k=Share(share), rules=rules)
            assert len(fix.points) == int(smallest_counts(given, (share,)))


def test_counting_leaves_no_hooks_and_skips_gates() -> None:
    pooled = (nn.AdaptiveAvgPool2d(1), nn.Conv2d(2, 2, 1))
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1), *pooled)
    batches = [(torch.tensor([0, 1]), torch.randn(2, 3, 8, 8), None, None)]
    found = measure_counts(traced(network), batches, FixationMeasureSettings(units=5), 0)  # type: ignore[arg-type]
    assert list(found["layers"]) == ["0", "2"]
    assert found["inputs"] == {"0": 27, "2": 4}
    assert found["images"] == 2
    assert all(len(v) <= 10 for v in found["layers"]["0"].values())
    assert all(not m._forward_hooks for m in network.modules())


def test_rank_correlation_is_scipys() -> None:
    one, other = torch.randn(5, 9).numpy(), torch.randn(5, 9).numpy().round(0)
    expected = [spearmanr(a, b).statistic for a, b in zip(one, other)]
    assert np.allclose(spearman(one, other), expected)
    one[2, 3] = math.nan
    assert np.isnan(spearman(one, other)[2])
    assert np.isnan(spearman(np.ones((1, 4)), np.arange(4.0)[None])).all()


def test_regions_of_a_row_are_followed_together_as_if_alone() -> None:
    images = Images(DataSettings(train_images=1, eval_images=4, size=(32, 48)))
    network = traced(small_fcn(11, width=8))
    regions, shown = [], {}
    settings = FixationMeasureSettings(far=4, view=None)
    for index, image, _, _ in images.evaluation(batch_size=1, far=0.0):
        shown[int(index)] = image[0]
        regions += find_evidence_regions(images, int(index), network.predict(image)[0], settings)
    rows = pack(regions)
    assert len(rows) < len(regions)
    assert sorted(map(id, regions)) == sorted(id(t) for row in rows for t in row)
    together = trace_regions(network, shown, regions, 3)
    for region, found in zip(regions, together):
        assert np.allclose(found, trace_regions(network, shown, [region], 1)[0], atol=1e-9)
        start = torch.where(region.start, region.label, -1)[None]
        fix = perpixel.fixations(network.network, shown[region.image][None], start=start)
        y, x = fix.points[:, 3], fix.points[:, 4]
        on, own = (float((fix.mass * mask[y, x]).sum()) for mask in (region.evidence, region.own))
        assert np.allclose(found, [int(region.start.sum()), float(fix.mass.sum()), on, own], atol=1e-9)


def test_the_example_shows_two_creatures_under_both_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    images, network = Images(DataSettings(train_images=1, eval_images=4, size=(32, 48))), traced(small_fcn(11, width=8))
    truth = (labels for _, _, labels, _ in images.evaluation(batch_size=1, far=0.0))
    monkeypatch.setattr(TracedNetwork, "predict", lambda *_: next(truth))
    settings, networks = FixationMeasureSettings(far=4, view=None), {"trained": network, "random weights#0": network}
    figure = evidence_example(networks, known_rivals(images, TraceSettings()), images, range(4), settings)
    assert figure is not None
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[::4] == ["white: pixels asked; black: head"] * 2
    assert sum("random weights: not " in title for title in titles) == 2
    assert figure.legends[0].get_title().get_text().startswith("the larger a dot")


def test_evidence_lies_where_a_built_network_looks() -> None:
    """A network that copies a pixel four columns to the right rests on that pixel alone."""
    conv = nn.Conv2d(3, 2, (1, 9), padding=(0, 4), bias=False)
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[1, 0, 0, 8] = 1.0
    start, evidence = torch.zeros(6, 20, dtype=torch.bool), torch.zeros(6, 20, dtype=torch.bool)
    start[2, 3:6], evidence[2, 7:9] = True, True
    region = EvidenceRegion(FAR, 0, 1, start, evidence, start)
    (found,) = trace_regions(traced(nn.Sequential(conv)), {0: torch.rand(3, 6, 20) + 0.1}, [region], 1)
    assert found.tolist() == [3.0, 3.0, 2.0, 0.0]


def test_random_networks_know_the_statistics_of_the_images_and_differ_by_seed() -> None:
    batches = [3 * torch.randn(4, 3, 32, 48) + 1 for _ in range(2)]
    settings = ModelSettings(options={"width": 8})
    one, same, other = (random_network(settings, 5, seed, batches) for seed in (0, 0, 1))
    assert not one.training
    assert torch.equal(one(batches[0]), same(batches[0]))
    assert not torch.equal(one(batches[0]), other(batches[0]))
    conv, norm = one.get_submodule("stem.0.0"), one.get_submodule("stem.0.1")
    passed = conv(torch.cat(batches))
    torch.testing.assert_close(norm.running_mean, passed.mean((0, 2, 3)), atol=1e-4, rtol=1e-3)
    assert norm(passed).mean((0, 2, 3)).abs().max() < 1e-3
    assert norm(passed).std((0, 2, 3)).sub(1).abs().max() < 0.05
