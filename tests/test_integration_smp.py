"""segmentation_models.pytorch: its architectures, its losses as base."""

import pytest
import torch
from attach_cases import assert_one_line_works, batch
from binary_cases import assert_binary_model_works

from perpixel import TemplateSimilarityLoss
from perpixel.attach.criterion import attach

smp = pytest.importorskip("segmentation_models_pytorch")


@pytest.mark.parametrize("name", ["Unet", "FPN", "DeepLabV3Plus", "UnetPlusPlus", "Segformer"])
def test_models(name: str) -> None:
    model = getattr(smp, name)("resnet18", encoder_weights=None, classes=5)
    criterion = assert_one_line_works(model, *batch(2, 64, 5), below="encoder.conv1.weight")
    assert criterion.head == "segmentation_head.0"


def test_a_binary_model() -> None:
    model = smp.Unet("resnet18", 3, encoder_weights=None, decoder_channels=(16, 8, 8), classes=1)
    assert_binary_model_works(model, "segmentation_head.0", 32)


def test_a_whole_head_block_can_be_named() -> None:
    model = smp.FPN("resnet18", encoder_weights=None, classes=5)  # its head block resizes: logits finer than features
    assert_one_line_works(model, *batch(2, 64, 5), below="encoder.conv1.weight", head="segmentation_head")


def test_usual_loop_with_its_own_loss_as_base() -> None:
    model = smp.Unet("resnet18", encoder_weights=None, classes=5)
    dice = smp.losses.DiceLoss(mode="multiclass", ignore_index=255)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    criterion = attach(model, TemplateSimilarityLoss(weight=0.05), base=dice)

    for _ in range(2):
        images, masks = batch(2, 64, 5)
        logits = model(images)
        loss = criterion(logits, masks)
        torch.testing.assert_close(criterion.terms["base"], dice(logits, masks).detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert criterion.head == "segmentation_head.0"


def test_binary_loop_as_in_its_examples() -> None:
    model = smp.Unet("resnet18", encoder_weights=None, classes=1)
    dice = smp.losses.DiceLoss(smp.losses.BINARY_MODE, from_logits=True)
    images, masks = torch.randn(2, 3, 64, 64), torch.rand(2, 1, 64, 64) > 0.6
    criterion = attach(model, TemplateSimilarityLoss(weight=0.05), base=dice)
    logits = model(images)
    criterion(logits, masks).backward()
    torch.testing.assert_close(criterion.terms["base"], dice(logits, masks).detach())
    assert criterion.head == "segmentation_head.0"
    assert model.encoder.conv1.weight.grad.any()
