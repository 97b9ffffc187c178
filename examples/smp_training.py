"""segmentation_models.pytorch: a usual loop with smp's own loss as base, and what the network rests on afterwards.

python examples/smp_training.py
"""

import segmentation_models_pytorch as smp
import torch
from torch.utils.data import DataLoader

import perpixel

if __name__ == "__main__":
    torch.manual_seed(0)
    data = perpixel.data.SyntheticEvidence(16, size=(64, 64))
    model = smp.Unet("resnet18", encoder_weights=None, classes=data.num_classes)  # yours: encoder_weights="imagenet"
    dice = smp.losses.DiceLoss("multiclass", ignore_index=255)
    criterion = perpixel.attach(model, perpixel.TemplateSimilarityLoss(weight=0.05), base=dice)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for epoch in range(2):
        for images, masks, *_ in DataLoader(data, batch_size=4, shuffle=True):
            loss = criterion(model(images), masks)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch}:", {name: round(float(value), 3) for name, value in criterion.terms.items()})
    criterion.remove()

    fix = perpixel.fixations(model, images)  # where do its labels rest?
    print(fix)
    print("share of the mass on its own object, by class:", fix.inside(masks).nanmean(0))
