"""transformers' Trainer with a loss of perpixel beside the cross-entropy.

python examples/huggingface_trainer.py
"""

import tempfile
from typing import Any

import torch
from torch import Tensor, nn
from transformers import SegformerConfig, SegformerForSemanticSegmentation, Trainer, TrainingArguments

import perpixel


class EvidenceTrainer(Trainer):
    """A Trainer whose loss is `perpixel.attach(model, *terms)`; the terms go where its logs go."""

    def __init__(self, *args: Any, terms: tuple[nn.Module, ...], **options: Any) -> None:
        super().__init__(*args, **options)
        self.criterion = perpixel.attach(self.model, *terms)
        self.model_accepts_loss_kwargs = False  # ours is a mean per step: the Trainer divides it over accumulated steps

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any
    ) -> Tensor | tuple[Tensor, Any]:
        outputs = model(pixel_values=inputs["pixel_values"])
        loss = self.criterion(outputs, inputs["labels"])
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **options: Any) -> None:
        super().log({**logs, **{name: value.item() for name, value in self.criterion.terms.items()}}, *args, **options)


def collate(samples: list[Any]) -> dict[str, Tensor]:
    return {
        "pixel_values": torch.stack([sample.image for sample in samples]),
        "labels": torch.stack([sample.labels for sample in samples]),
    }


if __name__ == "__main__":
    train, val = (perpixel.data.SyntheticEvidence(n, size=(64, 64), split=s) for n, s in ((16, "train"), (4, "val")))
    # yours: SegformerForSemanticSegmentation.from_pretrained("nvidia/mit-b0", num_labels=train.num_classes)
    model = SegformerForSemanticSegmentation(
        SegformerConfig(
            num_labels=train.num_classes,
            hidden_sizes=[16, 16, 32, 32],
            depths=[1, 1, 1, 1],
            num_attention_heads=[1, 1, 2, 2],
            decoder_hidden_size=32,
        )
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = EvidenceTrainer(
            model,
            TrainingArguments(
                folder,
                num_train_epochs=2,
                per_device_train_batch_size=4,
                gradient_accumulation_steps=2,
                learning_rate=1e-3,
                logging_steps=1,
                report_to="none",
                save_strategy="no",
                remove_unused_columns=False,
                label_names=["labels"],
                prediction_loss_only=True,
                disable_tqdm=True,
            ),
            data_collator=collate,
            train_dataset=train,
            eval_dataset=val,
            terms=(perpixel.TemplateSimilarityLoss(weight=0.05),),
        )
        trainer.train()
        print(trainer.evaluate())
    trainer.criterion.remove()
