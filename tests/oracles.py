"""Slow, literal implementations written from the papers: one pixel and one class at a time."""

import torch
from torch import Tensor


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / ((a * a).sum().sqrt() * (b * b).sum().sqrt())


def correlation(a: Tensor, b: Tensor) -> Tensor:
    return cosine(a - a.mean(), b - b.mean())


SIMILARITIES = {"cosine": cosine, "correlation": correlation}


def nearest_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    height, width = labels.shape[1:]
    h, w = size
    out = torch.empty(labels.shape[0], h, w, dtype=labels.dtype)
    for y in range(h):
        for x in range(w):
            out[:, y, x] = labels[:, int(y * height / h), int(x * width / w)]
    return out


def peak_pixels(logits: Tensor, labels: Tensor, ignore_index: int) -> dict[int, tuple[int, int, int]]:
    """class -> (image, row, column) of its highest activation among its own valid pixels, first of equal ones."""
    peaks: dict[int, tuple[int, int, int]] = {}
    for n in range(labels.shape[0]):
        for y in range(labels.shape[1]):
            for x in range(labels.shape[2]):
                c = int(labels[n, y, x])
                if c == ignore_index:
                    continue
                if c not in peaks or logits[n, c, y, x] > logits[peaks[c][0], c, peaks[c][1], peaks[c][2]]:
                    peaks[c] = (n, y, x)
    return peaks


def template_similarity(
    features: Tensor,
    logits: Tensor,
    labels: Tensor,
    *,
    similarity: str = "cosine",
    selective: bool = False,
    objective: str = "similarity",
    temperature: float = 0.1,
    template: str = "peak",
    detach_templates: bool = False,
    reduction: str = "mean",
    ignore_index: int = 255,
) -> Tensor:
    """Algorithm 3 of the thesis, and the "contrast" objective, with autograd giving the gradient."""
    compare = SIMILARITIES[similarity]
    labels = nearest_labels(labels, tuple(features.shape[2:]))
    pixels = [tuple(p) for p in (labels != ignore_index).nonzero().tolist()]
    vector = {(n, y, x): features[n, :, y, x] for n, y, x in pixels}
    label = {p: int(labels[p]) for p in pixels}
    templates = {}
    for c, peak in peak_pixels(logits, labels, ignore_index).items():
        if template == "peak":
            templates[c] = vector[peak]
        else:
            rows = [v - v.mean() if similarity == "correlation" else v for p, v in vector.items() if label[p] == c]
            templates[c] = torch.stack([r / (r * r).sum().sqrt() for r in rows]).mean(0)
        if detach_templates:
            templates[c] = templates[c].detach()
    counted = [p for p in pixels if not selective or int(logits[p[0], :, p[1], p[2]].argmax()) != label[p]]
    loss = features.sum() * 0
    for p in counted:
        sims = {c: compare(vector[p], t) for c, t in templates.items()}
        if objective == "similarity":
            for c, sim in sims.items():
                loss = loss + (-sim if c == label[p] else sim) / len(templates)
        else:
            scaled = torch.stack(list(sims.values())) / temperature
            loss = loss + scaled.logsumexp(0) - sims[label[p]] / temperature
    return loss / max(len(counted), 1) if reduction == "mean" else loss


def weighted_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor, ignore_index: int = 255) -> Tensor:
    total, mass = logits.sum() * 0, 0.0
    for n, y, x in (labels != ignore_index).nonzero().tolist():
        scores = logits[n, :, y, x]
        total = total + weights[n, y, x] * (scores.logsumexp(0) - scores[labels[n, y, x]])
        mass = mass + weights[n, y, x]
    return total / mass
