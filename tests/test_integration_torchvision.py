"""torchvision's segmentation models in torchvision's own training step."""

import pytest
import torch
from attach_cases import assert_one_line_works, batch
from torch import Tensor, nn
from torch.nn import functional as F

from perpixel import TemplateSimilarityLoss
from perpixel.attach.criterion import attach

segmentation = pytest.importorskip("torchvision.models.segmentation")
WITHOUT_WEIGHTS = {"weights": None, "weights_backbone": None, "num_classes": 5}


def reference_criterion(inputs: dict[str, Tensor], target: Tensor) -> Tensor:
    """As in torchvision's references/segmentation/train.py."""
    losses = {}
    for name, x in inputs.items():
        losses[name] = nn.functional.cross_entropy(x, target, ignore_index=255)
    if len(losses) == 1:
        return losses["out"]
    return losses["out"] + 0.5 * losses["aux"]


@pytest.mark.parametrize("aux", [False, True])
def test_without_terms_it_is_the_reference_criterion(aux: bool) -> None:
    model = segmentation.deeplabv3_mobilenet_v3_large(aux_loss=aux, **WITHOUT_WEIGHTS)
    images, labels = batch(2, 64, 5)
    output = model(images)
    torch.testing.assert_close(attach(model)(output, labels), reference_criterion(output, labels))


def test_reference_training_loop_with_the_line_added() -> None:
    model = segmentation.deeplabv3_mobilenet_v3_large(aux_loss=True, **WITHOUT_WEIGHTS)
    backbone = model.backbone["0"][0].weight.detach().clone()
    params_to_optimize = [
        {"params": [p for p in model.backbone.parameters() if p.requires_grad]},
        {"params": [p for p in model.classifier.parameters() if p.requires_grad]},
        {"params": [p for p in model.aux_classifier.parameters() if p.requires_grad], "lr": 0.1},
    ]
    optimizer = torch.optim.SGD(params_to_optimize, lr=0.01, momentum=0.9, weight_decay=1e-4)
    lr_scheduler = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=3, power=0.9)
    data_loader = [batch(2, 64, 5) for _ in range(3)]

    criterion = attach(model, TemplateSimilarityLoss(weight=0.05))

    model.train()
    for image, target in data_loader:
        with torch.amp.autocast("cpu", enabled=False):
            output = model(image)
            loss = criterion(output, target)
            expected = reference_criterion(output, target) + 0.05 * criterion.terms["template_similarity"]
        torch.testing.assert_close(loss, expected)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        lr_scheduler.step()
    assert criterion.head == "classifier.4"
    assert not torch.equal(model.backbone["0"][0].weight, backbone)
    model.eval()
    with torch.inference_mode():
        for image, target in data_loader:
            assert torch.isfinite(criterion(model(image), target))


@pytest.mark.parametrize(
    ("name", "how", "head", "below"),
    [
        ("fcn_resnet50", {"aux_loss": True}, "classifier.4", "backbone.conv1.weight"),
        ("deeplabv3_mobilenet_v3_large", {"aux_loss": True}, "classifier.4", "backbone.0.0.weight"),
        ("deeplabv3_mobilenet_v3_large", {}, "classifier.4", "backbone.0.0.weight"),
    ],
)
def test_models(name: str, how: dict[str, bool], head: str, below: str) -> None:
    model = getattr(segmentation, name)(**how, **WITHOUT_WEIGHTS)
    assert assert_one_line_works(model, *batch(2, 64, 5), below=below).head == head


def test_one_class_is_binary() -> None:
    model = segmentation.deeplabv3_mobilenet_v3_large(**WITHOUT_WEIGHTS | {"num_classes": 1}, aux_loss=True)
    images, masks = torch.randn(2, 3, 64, 64), (torch.rand(2, 1, 64, 64) > 0.6).float()
    assert assert_one_line_works(model, images, masks, below="backbone.0.0.weight").head == "classifier.4"


@pytest.mark.parametrize("head", [None, "classifier.low_classifier"])
def test_lraspp_adds_two_classifiers_of_which_one_is_taken(head: str | None) -> None:
    model = segmentation.lraspp_mobilenet_v3_large(**WITHOUT_WEIGHTS)
    criterion = assert_one_line_works(model, *batch(2, 64, 5), below="backbone.0.0.weight", head=head)
    assert criterion.head == (head or "classifier.high_classifier")


def test_lraspp_with_another_classifier_is_any_network() -> None:
    class Low(nn.Module):
        def forward(self, features: dict[str, Tensor]) -> Tensor:
            return features["low"]

    model = segmentation.lraspp_mobilenet_v3_large(**WITHOUT_WEIGHTS)
    model.classifier = nn.Sequential(Low(), nn.Conv2d(40, 5, 1))
    assert assert_one_line_works(model, *batch(2, 64, 5), below="backbone.0.0.weight").head == "classifier.1"


def test_lraspp_validates_outputs_resized_by_hand() -> None:
    model = segmentation.lraspp_mobilenet_v3_large(**WITHOUT_WEIGHTS).eval()
    criterion = attach(model, TemplateSimilarityLoss())
    images, labels = batch(2, 64, 5)
    with torch.no_grad():
        halved = F.interpolate(model(images)["out"], size=(32, 32), mode="bilinear", align_corners=False)
        assert torch.isfinite(criterion(halved, labels))


@pytest.mark.parametrize("smp", [False, True])
def test_the_auxiliary_classifier_is_trained_with_a_base_of_ones_own(smp: bool) -> None:
    def smoothed(logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, ignore_index=255, label_smoothing=0.1)

    base = smoothed
    if smp:
        losses = pytest.importorskip("segmentation_models_pytorch").losses
        base = losses.DiceLoss("multiclass", ignore_index=255)
    model = segmentation.deeplabv3_mobilenet_v3_large(aux_loss=True, **WITHOUT_WEIGHTS)
    images, labels = batch(2, 64, 5)
    criterion = attach(model, base=base)
    output = model(images)
    loss = criterion(output, labels)
    torch.testing.assert_close(loss, base(output["out"], labels) + 0.5 * base(output["aux"], labels))
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())  # what DistributedDataParallel asks for
    assert model.aux_classifier[4].weight.grad.any()
