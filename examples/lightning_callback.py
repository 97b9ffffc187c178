"""A Lightning callback that adds a loss to a LightningModule as it is, and logs its terms.

python examples/lightning_callback.py
"""

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import perpixel


class EvidenceCallback(L.Callback):
    """Puts `perpixel.attach(network, *terms, base=criterion)` in place of the module's criterion while it is fitted.

    network, criterion: attributes of the LightningModule. Its training_step must call the criterion with what the
    network returned: `self.criterion(self.net(images), labels)`.
    """

    def __init__(self, *terms: Any, network: str = "net", criterion: str = "criterion") -> None:
        self.terms, self.network, self.name = terms, network, criterion
        self.own: nn.Module | None = None

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            self.own = getattr(module, self.name)
            setattr(module, self.name, perpixel.attach(getattr(module, self.network), *self.terms, base=self.own))

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        terms = getattr(module, self.name).terms
        module.log_dict({f"train/{name}": value for name, value in terms.items()})

    def teardown(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        if self.own is not None:
            getattr(module, self.name).remove()
            setattr(module, self.name, self.own)
            self.own = None

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, module, "fit")


class Segmenter(L.LightningModule):
    """A module of yours: nothing in it knows of the callback."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.net = perpixel.models.small_fcn(num_classes, width=16)
        self.criterion = nn.CrossEntropyLoss(ignore_index=255)

    def training_step(self, batch: Any, _: int) -> Tensor:
        images, labels, *_ = batch
        return self.criterion(self.net(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


if __name__ == "__main__":
    data = perpixel.data.SyntheticEvidence(16, size=(48, 64))
    trainer = L.Trainer(
        max_epochs=2,
        accelerator="auto",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        callbacks=[EvidenceCallback(perpixel.TemplateSimilarityLoss(weight=0.05))],
    )
    trainer.fit(Segmenter(data.num_classes), DataLoader(data, batch_size=4, shuffle=True))
    print({name: round(float(value), 3) for name, value in trainer.callback_metrics.items()})
