"""Which pixel a page asks about when it opens."""

from collections.abc import Sequence

import torch
from torch import Tensor


def sure_pixel(logits: Tensor, classes: Sequence[str]) -> tuple[int, int]:
    """Row and column of the largest margin inside the largest object: logits (C, H, W) at full size, C >= 2.

    An object is a connected area of one predicted class; one called "background" counts only where there is no other.
    Inside is what touches no other label nor the picture's edge, unless the object has no such pixel.
    """
    from scipy import ndimage

    best = logits.topk(2, 0)
    labels = best.indices[0].cpu().numpy()
    found = [c for c in range(len(classes)) if classes[c].casefold() != "background" and bool((labels == c).any())]
    largest, size = labels == labels[0, 0], 0
    for c in found or {int(labels[0, 0])}:
        parts, count = ndimage.label(labels == c)
        sizes = ndimage.sum_labels(labels == c, parts, range(1, count + 1))
        if sizes.max() > size:
            largest, size = parts == 1 + sizes.argmax(), sizes.max()
    inside = ndimage.binary_erosion(largest)
    margin = best.values[0] - best.values[1]
    allowed = torch.from_numpy(inside if inside.any() else largest).to(margin.device)
    place = int(torch.where(allowed, margin, -torch.inf).argmax())
    return place // labels.shape[1], place % labels.shape[1]
