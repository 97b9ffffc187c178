"""A network with one channel z is, in every answer, the one of two classes whose last layer has the weights ∓w/2."""

import copy
import dataclasses
from typing import Any

import pytest
import torch
from binary_cases import doubled, same
from torch import Tensor, nn
from torch.nn import functional as F

import perpixel
from perpixel.attribution import RegionTarget, explain, faithfulness, influence, object_alone, randomised_weights
from perpixel.evaluation import boundary_f_scores, confusion_matrices, predict_labels, score_images
from perpixel.losses import TemplateSimilarityLoss, template_similarity_loss, weighted_cross_entropy
from perpixel.part_occlusion import salient_parts
from perpixel.weighting import DiscriminativeRegionLoss, FixationWeightedLoss

SIZE = (20, 26)


class Net(nn.Module):
    """Features of both signs, on a coarser grid than the images."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, padding=1)
        )
        self.head = nn.Conv2d(8, 1, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"out": F.interpolate(self.head(self.body(images)), images.shape[-2:], mode="bilinear")}


@pytest.fixture
def twins() -> tuple[Net, Net, Tensor, Tensor]:
    """One channel, two channels, images, and labels 0, 1 and void."""
    torch.manual_seed(0)
    net = Net().double().eval()
    for parameter in net.body[1].parameters():
        nn.init.normal_(parameter)
    images = torch.randn(3, 3, *SIZE).double()
    with torch.no_grad():
        net.head.bias -= net(images)["out"].median()
    labels = torch.randint(2, (3, 4, 4)).repeat_interleave(5, 1).repeat_interleave(7, 2)[:, :, : SIZE[1]]
    labels[0, :3] = 255
    return net, doubled(net, "head"), images, labels


def masks(labels: Tensor) -> list[Tensor]:
    """Every form in which a data set gives these labels."""
    forms = [labels, labels.to(torch.uint8), labels.float(), labels[:, None], labels[:, None].to(torch.bfloat16)]
    return forms if 255 in labels else [*forms, labels.bool(), labels[:, None].bool()]


def test_template_similarity_is_that_of_two_classes(twins: Any) -> None:
    one, two, images, labels = twins
    features = one.body(images).detach().requires_grad_()
    for options in (
        {},
        {"selective": True, "similarity": "correlation", "reduction": "sum"},
        {"template": "mean", "objective": "contrast", "detach_templates": True},
        {"template": lambda f, z, y: torch.stack([(f * z[:, c, None]).mean((0, 2, 3)) for c in range(z.shape[1])])},
    ):
        expected = template_similarity_loss(features, two.head(features), labels, **options)
        slope = torch.autograd.grad(expected, features)
        for mask in masks(labels):
            found = template_similarity_loss(features, one.head(features), mask, **options, validate=True)
            same((found, torch.autograd.grad(found, features)), (expected, slope))
    running = [TemplateSimilarityLoss(running_momentum=0.5) for _ in range(2)]
    for net, term in zip((one, two), running):
        for part in (features[:2], features[1:]):
            term(part, net.head(part), labels[: len(part)])
    same(dict(running[0].state_dict()), dict(running[1].state_dict()))


def test_weighted_cross_entropy_is_the_binary_one(twins: Any) -> None:
    one, two, images, labels = twins
    weights = torch.rand(labels.shape).double()
    valid = labels != 255
    logits, pair = one(images)["out"], two(images)["out"]
    own = F.binary_cross_entropy_with_logits(logits[:, 0], (labels == 1).double(), reduction="none")
    expected = (own * weights)[valid].sum() / weights[valid].sum()
    same(weighted_cross_entropy(pair, labels, weights), expected)
    slope = torch.autograd.grad(expected, one.head.weight, retain_graph=True)
    for mask in masks(labels):
        found = weighted_cross_entropy(logits, mask, weights)
        same((found, torch.autograd.grad(found, one.head.weight, retain_graph=True)), (expected, slope))


@pytest.mark.parametrize(
    "loss",
    [
        FixationWeightedLoss(),
        FixationWeightedLoss(mode="unsupported", start="prediction", per_label=True, rules="seg-unravel"),
        DiscriminativeRegionLoss(),
        DiscriminativeRegionLoss(region="fixation", separate=True, cell=4),
        DiscriminativeRegionLoss(region="erase", mode="independent", cell=4),
    ],
    ids=str,
)
def test_weight_maps_are_those_of_two_classes(twins: Any, loss: Any) -> None:
    one, two, images, labels = twins
    expected = loss.weight_map(two, images, two(images)["out"], labels)
    assert float(expected.std()) > 0.01
    for mask in masks(labels)[::2]:
        same(loss.weight_map(one, images, one(images)["out"], mask), expected)
    slopes = [
        torch.autograd.grad(loss(net, images, net(images)["out"], labels), [*net.body.parameters()])
        for net in (one, two)
    ]
    same(*slopes)
    kept = type(loss)(every=2).train()
    for step in range(2):  # the second goes by the labels' scores
        part = slice(step, step + 2)
        logits = one.train()(images[part])["out"]
        found = kept.weight_map(one, images[part], logits, labels[part])
        assert torch.equal(found > 0, labels[part] != 255)


@pytest.mark.parametrize("rules", ["modern", "seg-unravel", perpixel.FixationRules(select="element")], ids=repr)
@pytest.mark.parametrize("k", [1, 3])
def test_fixations_are_those_of_two_classes(twins: Any, rules: Any, k: int) -> None:
    one, two, images, labels = twins
    for start in (None, labels, labels.masked_fill(labels == 0, -1)):
        found, expected = (
            perpixel.fixations(net, images, start=start, rules=rules, k=k, record=True) for net in (one, two)
        )
        assert found.layers.keys() == expected.layers.keys()
        after = [name for name in found.layers if found.layers[name].points[:, 2].max() > 1 or name == "images"]
        layers = {name: (found.layers[name], expected.layers[name]) for name in after}
        assert len(layers) >= 4
        for name, pair in layers.items():
            same(*pair, name)
        same(dataclasses.replace(found, layers={}), dataclasses.replace(expected, layers={}))
        assert found.classes == 2
        top = found.on("head")
        assert set(top.points[:, 2].tolist()) == {0}
        assert torch.equal(top.sign, 2 * top.points[:, 1] - 1)  # what made it positive, or negative
    assert found.density().shape == (3, 2, *SIZE)


def test_fixations_take_masks_of_any_form(twins: Any) -> None:
    one, two, images, labels = twins
    expected = perpixel.fixations(one, images, start=labels)
    share = perpixel.fixations(two, images, start=labels).inside(labels)
    for mask in masks(labels):
        same(perpixel.fixations(one, images, start=mask), expected)
        same(expected.inside(mask), share)
    for wrong in (labels.float() / 2, labels - 0.5):
        with pytest.raises(ValueError, match=r"start: expected whole numbers.*mask > 0\.5"):
            perpixel.fixations(one, images, start=wrong)
        with pytest.raises(ValueError, match="labels: expected whole numbers"):
            expected.inside(wrong)
    with pytest.raises(ValueError, match="start: expected values below 2"):
        perpixel.fixations(one, images, start=labels.masked_fill(labels == 0, 2))


def test_a_classifier_with_one_logit() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1))
    images = torch.randn(6, 3, 8, 8)
    with torch.no_grad():
        net[3].bias -= net(images).mean()
    found = perpixel.fixations(net, images)
    same(found, perpixel.fixations(doubled(net, "3"), images))
    assert set(found.points[:, 1].tolist()) == {0, 1}
    same(perpixel.fixations(net, images, start=torch.tensor([True] * 6)).points[:, 1], torch.ones(6).long())


def test_salient_parts_are_those_of_two_classes(twins: Any) -> None:
    one, two, images, labels = twins
    for given in (None, labels):
        expected = salient_parts(two, images, given)
        assert {0, 1} == set(expected.label.tolist())
        for mask in [None] if given is None else masks(labels)[2:4]:
            found = salient_parts(one, images, mask)
            same(found, expected)
            same(found.rows(), expected.rows())


@pytest.mark.parametrize("by", ["patches", "segments"])
def test_influence_is_that_of_two_classes(twins: Any, by: str) -> None:
    one, two, images, labels = twins
    found, expected = (influence(net, images, patch=6, by=by) for net in (one, two))
    assert found.upsampling.grid == (10, 13)
    same((found.values, found.logits, found.predictions), (expected.values, expected.logits, expected.predictions))
    for score in ("logit", "margin"):
        same(found.of(1, labels == 1, score), expected.of(1, labels == 1, score))
        same(found.on_pixel(9, 9, score=score), expected.on_pixel(9, 9, score=score))
        same(found.evidence(0, score=score), expected.evidence(0, score=score))
    same(found.of(1, score="margin"), 2 * found.of(1))
    same(found.of(0, labels == 1), -found.of(1, labels == 1))
    same(found.class_matrix(), expected.class_matrix())
    for mask in masks(labels):
        same(found.class_matrix(mask), expected.class_matrix(labels))
    assert float(found.class_matrix(labels.bool()).counts.sum()) > 0


@pytest.mark.parametrize("method", ["IntegratedGradients", "Occlusion", "LayerGradCam", "LRP", "DeepLift"])
@pytest.mark.filterwarnings("ignore:LRP is not valid for this network", "error:DeepLift")
def test_explanations_are_those_of_two_classes(twins: Any, method: str) -> None:
    one, two, images, labels = twins
    for label, score in ((1, "logit"), (0, "margin"), (torch.tensor([0, 1, 1]), "logit")):
        found, expected = (explain(net, images, label, method=method, score=score) for net in (one, two))
        same(found, expected, rtol=1e-3 if method == "LRP" else 1e-6)  # its epsilon is not halved
        assert float(found.values.abs().max()) > 0
    region, z = labels == 1, one(images)["out"][:, 0]
    sums = torch.where(region, z, 0.0).sum((1, 2))
    for label, score, factor in ((1, "margin", 1), (1, "logit", 0.5), (0, "margin", -1), (0, "logit", -0.5)):
        target = RegionTarget(one, label, region, score).freeze(images)
        same(target(images, *target.arguments(images)), factor * sums)


def test_lrp_keeps_the_score(twins: Any) -> None:
    """Relevance adds up to the score where no layer has a bias."""
    net = copy.deepcopy(twins[0])
    net.body[1] = nn.Identity()
    for layer in (net.body[0], net.body[4], net.head):
        nn.init.zeros_(layer.bias)
    region = torch.ones(3, *SIZE, dtype=torch.bool)
    for label, factor in ((1, 0.5), (0, -0.5)):
        found = explain(net, twins[2], label, region=region, method="LRP")
        same(found.values.sum((1, 2, 3)), factor * net(twins[2])["out"].sum((1, 2, 3)))


def test_faithfulness_is_that_of_two_classes(twins: Any) -> None:
    one, two, images, labels = twins
    for label, score in ((1, "logit"), (0, "margin")):
        found, expected = (
            faithfulness(
                net,
                images,
                explain(net, images, label, method="InputXGradient", score=score),
                steps=3,
                seeds=2,
                stages=0,
                samples=3,
                patch=5,
            )
            for net in (one, two)
        )
        same(found, expected)
        assert found.summary() == expected.summary()
        same(*(object_alone(net, images, label, seeds=2) for net in (one, two)))
    explainer = lambda net, x: explain(net, x, 1, region=labels == 1, method="Saliency", abs=False)  # noqa: E731
    same(*(randomised_weights(net, images, explainer, layers=["body.0", "body.4"]) for net in (one, two)))
    assert randomised_weights(one, images, explainer, stages=4).layers == ("head", "body.4", "body.1", "body.0")


def test_metrics_are_those_of_two_classes(twins: Any) -> None:
    pytest.importorskip("torchmetrics")
    one, two, images, labels = twins
    predictions = predict_labels(one, images)
    same(predictions, predict_labels(two, images))
    assert torch.equal(predictions, (one(images)["out"][:, 0] > 0).long())
    matrices, boundaries = confusion_matrices(predictions, labels, 2), boundary_f_scores(predictions, labels, 2)
    expected = score_images(two, [(torch.arange(3), images, labels, None)], 2)
    for mask in masks(labels):
        for maps in (predictions, predictions.bool(), predictions[:, None].float()):
            same(confusion_matrices(maps, mask, 2), matrices)
            same(boundary_f_scores(maps, mask, 2), boundaries)
        same(score_images(one, [(torch.arange(3), images, mask, None)], 2), expected)
    with pytest.raises(ValueError, match="labels: expected whole numbers"):
        confusion_matrices(predictions, labels / 2, 2)


@pytest.mark.parametrize("channels", [1, 3])
def test_no_loss_waits_for_the_device(channels: int) -> None:
    """Tensors on a device that has no values: whoever asks for one fails."""
    shapes = (2, 6, 5, 7), (2, channels, 5, 7), (2, 10, 14)
    features, logits, labels = (torch.empty(shape, device="meta") for shape in shapes)
    of_binary = [labels, labels[:, None].bool()] if channels == 1 else []
    for mask in (labels.long(), labels.byte(), *of_binary):
        for options in ({}, {"template": "mean", "selective": True}):
            assert template_similarity_loss(features, logits, mask, **options).shape == ()
        assert weighted_cross_entropy(F.interpolate(logits, (10, 14)), mask, labels).shape == ()
        with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
            template_similarity_loss(features, logits, mask, validate=True)


def test_masks_that_overlap_go_channel_by_channel(twins: Any) -> None:
    one, _, images, labels = twins
    overlapping, logits = torch.stack([labels, 1 - labels.clamp(max=1)], 1), one(images)["out"].repeat(1, 2, 1, 1)
    for net_logits in (logits, logits[:, :1]):
        with pytest.raises(ValueError, match=r"multi-label.*one channel at a time.*logits\[:, c:c\+1\]"):
            weighted_cross_entropy(net_logits, overlapping, torch.ones(3, *SIZE))
        with pytest.raises(ValueError, match="multi-label"):
            template_similarity_loss(images, net_logits, overlapping)
    for c in range(2):
        assert template_similarity_loss(images, logits[:, c : c + 1], overlapping[:, c]).isfinite()
