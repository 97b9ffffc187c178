"""segmentation_models.pytorch, one object and its background: a usual loop, and what the network rests on afterwards.

python examples/smp_binary.py
"""

import segmentation_models_pytorch as smp
import torch
from torch.utils.data import DataLoader

import perpixel

if __name__ == "__main__":
    torch.manual_seed(0)
    data = perpixel.data.SyntheticEvidence(16, size=(64, 64))
    model = smp.Unet("resnet18", encoder_weights=None, classes=1)  # yours: encoder_weights="imagenet"
    dice = smp.losses.DiceLoss("binary")
    criterion = perpixel.attach(model, perpixel.TemplateSimilarityLoss(weight=0.05), base=dice)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for epoch in range(2):
        for images, labels, *_ in DataLoader(data, batch_size=4, shuffle=True):
            masks = (labels > 0).float()[:, None]  # (N, 1, H, W), 0 and 1, as smp has them
            loss = criterion(model(images), masks)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch}:", {name: round(float(value), 3) for name, value in criterion.terms.items()})
    criterion.remove()

    fix = perpixel.fixations(model, images)  # where do its labels rest? 0 is the background, 1 the object
    print(fix)
    share = fix.inside(masks[:, 0].long()).nanmean(0)
    print(f"share of the mass on its own kind: background {share[0]:.2f}, object {share[1]:.2f}")
    inf = perpixel.influence(model, images[:1], patch=16)
    print("what hiding each patch costs the object's pixels:", inf.of(label=1)[0].round())
