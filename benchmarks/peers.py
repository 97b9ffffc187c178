"""What people would pick instead, written for the benchmark from the papers, as slow or fast as they usually are."""

import torch
from torch import Tensor
from torch.nn import functional as F


def per_class_loop(features: Tensor, logits: Tensor, labels: Tensor, similarity: str = "cosine") -> Tensor:
    """Algorithm 3 of the thesis as one would write it down: a loop over the labels, each compared with every pixel."""
    labels = F.interpolate(labels[:, None].float(), size=features.shape[2:], mode="nearest")[:, 0].long()
    valid = labels != 255
    present = labels[valid].unique()
    total = features.new_zeros(())
    for c in present:
        own = torch.where(labels == c, logits[:, c], -torch.inf)
        n, position = divmod(int(own.flatten().argmax()), own[0].numel())
        y, x = divmod(position, own.shape[2])
        template = features[n, :, y, x][None, :, None, None]
        if similarity == "correlation":
            template, compared = template - template.mean(1, keepdim=True), features - features.mean(1, keepdim=True)
        else:
            compared = features
        similarities = F.cosine_similarity(compared, template, dim=1)
        total = total + torch.where(labels == c, -similarities, similarities)[valid].sum()
    return total / len(present) / valid.sum()


def vectorised_autograd(features: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """The usual PyTorch way: normalise, compare with every template by einsum, let autograd do the rest."""
    labels = F.interpolate(labels[:, None].float(), size=features.shape[2:], mode="nearest")[:, 0].long()
    present = labels[labels != 255].unique()
    unit = F.normalize(features, dim=1)
    flat = unit.movedim(1, -1).flatten(0, 2)
    own = torch.where(labels[:, None] == present[:, None, None], logits[:, present], -torch.inf)
    templates = flat[own.movedim(1, 0).flatten(1).argmax(1)]
    similarity = flat @ templates.T
    sign = torch.where(labels.flatten()[:, None] == present, -1.0, 1.0)
    valid = labels.flatten() != 255
    return (similarity * sign)[valid].sum() / len(present) / valid.sum()


def pixel_contrast(
    features: Tensor, logits: Tensor, labels: Tensor, *, anchors: int = 1024, views: int = 100, temperature: float = 0.1
) -> Tensor:
    """Supervised pixel contrast with half-hard sampling (Wang et al. 2021, arXiv 2101.11939), in one batch."""
    labels = F.interpolate(labels[:, None].float(), size=features.shape[2:], mode="nearest")[:, 0].long().flatten(1)
    guess = logits.argmax(1).flatten(1)
    rows = F.normalize(features, dim=1).flatten(2).transpose(1, 2)
    groups = [
        (n, int(c))
        for n in range(len(labels))
        for c in labels[n].unique()
        if c != 255 and (labels[n] == c).sum() > views
    ]
    if not groups:
        return features.sum() * 0
    count = min(anchors // len(groups), views)
    picked, owner = [], []
    for n, c in groups:
        hard = ((labels[n] == c) & (guess[n] != c)).nonzero()[:, 0]
        easy = ((labels[n] == c) & (guess[n] == c)).nonzero()[:, 0]
        some_hard = min(len(hard), max(count // 2, count - len(easy)))
        chosen = torch.cat(
            [hard[torch.randperm(len(hard))[:some_hard]], easy[torch.randperm(len(easy))[: count - some_hard]]]
        )
        picked.append(rows[n, chosen])
        owner.append(torch.full((len(chosen),), c))
    vectors, classes = torch.cat(picked), torch.cat(owner).to(features.device)
    similarity = vectors @ vectors.T / temperature
    similarity = similarity - similarity.detach().amax(1, keepdim=True)
    same = classes[:, None] == classes
    other = torch.where(same, 0.0, similarity.exp()).sum(1, keepdim=True)
    positive = same & ~torch.eye(len(classes), dtype=torch.bool, device=same.device)
    log_probability = similarity - torch.log(similarity.exp() + other)
    return -((log_probability * positive).sum(1) / positive.sum(1).clamp(min=1)).mean()
