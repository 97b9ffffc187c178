"""transformers' segmentation models, tiny and from their configuration: nothing is fetched."""

import pytest
import torch
from attach_cases import CLASSES, assert_one_line_works, batch, segformer
from binary_cases import assert_binary_model_works

from perpixel import TemplateSimilarityLoss
from perpixel.attach.criterion import attach

transformers = pytest.importorskip("transformers")


@pytest.fixture
def model() -> torch.nn.Module:
    return segformer()


def test_segformer(model: torch.nn.Module) -> None:
    images, labels = batch(2, 64)
    below = next(name for name, p in model.named_parameters() if p.ndim == 4)
    criterion = assert_one_line_works(model, images, labels, below=below)
    assert criterion.head == "decode_head.classifier"


def test_binary_segformer(model: torch.nn.Module) -> None:
    config = model.config
    config.num_labels = 1
    assert_binary_model_works(type(model)(config), "decode_head.classifier", 64)


def test_one_label_is_binary() -> None:
    model, images, masks = segformer(labels=1), torch.randn(2, 3, 64, 64), torch.rand(2, 64, 64) > 0.6
    below = next(name for name, p in model.named_parameters() if p.ndim == 4)
    assert_one_line_works(model, images, masks, below=below)
    output = model(pixel_values=images, labels=masks.long())
    torch.testing.assert_close(attach(model)(output, masks), output.loss)


def test_segformer_loss_is_its_own_loss_when_nothing_is_added(model: torch.nn.Module) -> None:
    images, labels = batch(2, 64)
    criterion = attach(model)
    outputs = model.eval()(pixel_values=images, labels=labels)
    torch.testing.assert_close(criterion(outputs, labels), outputs.loss)


def test_usual_loop(model: torch.nn.Module) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    criterion = attach(model, TemplateSimilarityLoss(weight=0.05))

    model.train()
    for return_dict in (True, False):
        images, labels = batch(2, 64)
        inputs = {"pixel_values": images, "labels": labels}
        loss = criterion(model(pixel_values=inputs["pixel_values"], return_dict=return_dict), inputs["labels"])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert set(criterion.terms) == {"base", "template_similarity"}


def test_upernet_with_its_auxiliary_head() -> None:
    backbone = transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 1, 1],
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = transformers.UperNetConfig(
        backbone_config=backbone, num_labels=CLASSES, hidden_size=16, auxiliary_in_channels=16, auxiliary_channels=8
    )
    model = transformers.UperNetForSemanticSegmentation(config)
    below = next(name for name, p in model.named_parameters() if p.ndim == 4)
    criterion = assert_one_line_works(model, *batch(2, 64), below=below, aux=0.4)
    assert criterion.head == "decode_head.classifier"
    assert "aux" not in criterion.terms  # the output does not have its auxiliary head's logits
    assert all(p.grad is None for p in model.auxiliary_head.parameters())
