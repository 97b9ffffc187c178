"""A LightningModule under Lightning's Trainer, and a network under Fabric."""

import pytest
import torch
from attach_cases import Net, batch, hooks
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from perpixel import TemplateSimilarityLoss
from perpixel.attach.criterion import attach

lightning = pytest.importorskip("lightning")


class Segmenter(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = Net(aux=True)
        self.criterion = attach(self.net, TemplateSimilarityLoss(weight=0.1))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.net(images)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        images, labels = batch
        loss = self.criterion(self(images), labels)
        self.log_dict(self.criterion.terms)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        images, labels = batch
        self.log("val_loss", self.criterion(self(images), labels))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_trainer() -> None:
    module = Segmenter()
    start = module.net.body[0].weight.detach().clone()
    loader = DataLoader(TensorDataset(*batch(4)), batch_size=2)
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accumulate_grad_batches=2,
    )
    trainer.fit(module, loader, loader)
    assert {"base", "template_similarity", "val_loss"} <= set(trainer.callback_metrics)
    assert not torch.equal(module.net.body[0].weight, start)
    assert module.criterion.head == "classifier"
    assert set(module.state_dict()) == {f"net.{name}" for name in module.net.state_dict()}
    module.criterion.remove()
    assert not list(hooks(module))


@pytest.mark.parametrize("head", [None, "classifier"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_fabric(precision: str, head: str | None) -> None:
    fabric = lightning.Fabric(accelerator="cpu", devices=1, precision=precision)
    net = Net()
    model, optimizer = fabric.setup(net, torch.optim.SGD(net.parameters(), lr=0.1))
    criterion = attach(model, TemplateSimilarityLoss(weight=0.1), head=head)
    images, labels = batch()
    with torch.no_grad():
        assert torch.isfinite(criterion(model(images), labels))
    fabric.backward(criterion(model(images), labels))
    optimizer.step()
    assert criterion.head == "classifier"
    criterion.remove()
    assert not list(hooks(model))
