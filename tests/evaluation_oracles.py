"""Label maps to score, and scores of them by slow loops written from their definitions."""

import math

import numpy as np
import torch


def blobs(seed: int, images: int = 2, classes: int = 3, size: tuple[int, int] = (13, 17), void: float = 0.1):
    generator = torch.Generator().manual_seed(seed)
    small = (max(1, size[0] // 3), max(1, size[1] // 3))

    def maps():
        coarse = torch.randint(0, classes, (images, 1, *small), generator=generator).double()
        return torch.nn.functional.interpolate(coarse, size=size, mode="nearest")[:, 0].long()

    predictions, labels = maps(), maps()
    labels[torch.rand(labels.shape, generator=generator) < void] = 255
    return predictions, labels


def slow_confusion(predictions, labels, classes):
    out = torch.zeros(len(labels), classes, classes, dtype=torch.int64)
    for n, y, x in np.ndindex(*labels.shape):
        if labels[n, y, x] != 255:
            out[n, labels[n, y, x], predictions[n, y, x]] += 1
    return out


def slow_boundary(classes_map, c):
    """Pixels of class c with a 4-neighbour of another class; void (-1) is no neighbour."""
    height, width = classes_map.shape
    points = []
    for y, x in np.ndindex(height, width):
        if classes_map[y, x] != c:
            continue
        around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
        values = [int(classes_map[v, u]) for v, u in around if 0 <= v < height and 0 <= u < width]
        if any(v not in (c, -1) for v in values):
            points.append((y, x))
    return points


def slow_boundary_f(prediction, truth, classes, share):
    void = truth == 255
    prediction, truth = prediction.masked_fill(void, -1), truth.masked_fill(void, -1)
    reach = share * math.sqrt(truth.shape[0] ** 2 + truth.shape[1] ** 2)
    scores = []
    for c in range(classes):
        found, true = slow_boundary(prediction, c), slow_boundary(truth, c)
        if not found and not true:
            scores.append(math.nan)
            continue

        def share_near(own, other):
            near = sum(any(math.dist(p, q) <= reach for q in other) for p in own)
            return near / len(own) if own else 0.0

        precision, recall = share_near(found, true), share_near(true, found)
        scores.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
    return torch.tensor(scores, dtype=torch.float64)
