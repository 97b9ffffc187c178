"""Learning from which classes are in an image, and not where: class maps pooled to scores of the image."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perpixel.checks import check_integer, check_number, check_option, check_tensor, complain
from perpixel.outputs import check_labels
from perpixel.reduction import masked_mean, valid_mask

Pooling = Literal["logsumexp", "average", "max"]
POOLINGS = ("logsumexp", "average", "max")


def pool_maps(logits: Tensor, pooling: Pooling = "logsumexp", *, sharpness: float = 4.0) -> Tensor:
    """Class maps (N, C, H, W) -> scores of the image (N, C) over all P pixels.

    "max": max_p z_p. "average": Σ_p z_p / P (the scores of CAM, Zhou et al. 2016). "logsumexp", between the two:
    (1/r) log(Σ_p exp(r z_p) / P) with r = `sharpness` (Pinheiro, Collobert 2015, arXiv 1411.6228); r towards 0 is the
    average, towards infinity the maximum.
    """
    check_tensor("logits", logits, ndim=4, shape="(N, C, H, W)", floating=True)
    check_option("pooling", pooling, POOLINGS)
    r = check_number("sharpness", sharpness, low=0, open_low=True)
    pixels = logits.flatten(2)
    if pooling == "average":
        return pixels.mean(2)
    if pooling == "max":
        return pixels.amax(2)
    return ((r * pixels).logsumexp(2) - pixels.new_full((), pixels.shape[2]).log()) / r


def image_label_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    pooling: Pooling = "logsumexp",
    sharpness: float = 4.0,
    exclude: Sequence[int] = (),
    ignore_index: int = 255,
) -> Tensor:
    """Multi-label binary cross-entropy of `pool_maps` against which classes are in the image.

    Mean over the images n with a valid label and the classes c that count of -y log σ(s) - (1 - y) log(1 - σ(s)), with
    s_nc the pooled score and y_nc = 1 where any pixel of labels[n] is c. Of the label map nothing else is used: not
    where a class is, nor how much of it; so the map of any other arrangement of the same labels will do.

    Args:
        logits: class maps (N, C, H, W), any floating dtype; C = 1 for a binary network, whose class 1 counts alone.
        labels: (N, H, W), integers in [0, C) or `ignore_index`, as for `perpixel.weighted_cross_entropy`; they need not
            be of the size of the logits. The image's labels are those of what is in it: those of a crop, for a crop.
        pooling, sharpness: as for `pool_maps`.
        exclude: classes that do not count, such as a background that is in every image: it teaches nothing.
        ignore_index: void label. An image that is all void says nothing, and does not count.

    Returns:
        A scalar, float32 (float64 for float64); zero, attached to the graph, where no image counts.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, shape, device or value; no class left that counts.
    """
    check_tensor("logits", logits, ndim=4, shape="(N, C, H, W)", floating=True)
    looks = logits.device.type == "cpu" and not torch.compiler.is_compiling()
    labels = check_labels(labels, logits, ignore_index, values=looks).flatten(1)
    valid, classes = valid_mask(labels, ignore_index), max(2, logits.shape[1])
    present = valid.new_zeros(len(labels), classes + 1)
    present = present.scatter(1, torch.where(valid, labels, classes), True)[:, :classes][:, -logits.shape[1] :]
    if exclude:
        kept = _kept(exclude, logits.shape[1])
        logits, present = logits[:, kept], present[:, kept]
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    counts = valid.any(1)
    clean = torch.where(counts[:, None, None, None], logits, 0.0).to(wide)
    scores = pool_maps(clean, pooling, sharpness=sharpness)
    losses = F.binary_cross_entropy_with_logits(scores, present.to(wide), reduction="none")
    return masked_mean(losses, counts[:, None].expand_as(losses))


def _kept(exclude: Sequence[int], channels: int) -> list[int]:
    """The channels of the classes that count; the one channel of a binary network is class 1."""
    left_out = {check_integer("exclude", c, low=0, high=max(channels, 2) - 1) for c in exclude}
    kept = [c for c in range(channels) if (1 if channels == 1 else c) not in left_out]
    if not kept:
        raise ValueError(complain("exclude", "at least one class that counts", sorted(left_out), "Leave one out."))
    return kept


class ImageLabelLoss(nn.Module):
    """`image_label_loss` with its options stored; as `base=` of `perpixel.attach` it takes the place of cross-entropy.

    `forward(logits, labels)` -> scalar.
    """

    def __init__(
        self,
        *,
        pooling: Pooling = "logsumexp",
        sharpness: float = 4.0,
        exclude: Sequence[int] = (),
        ignore_index: int = 255,
    ) -> None:
        super().__init__()
        self.pooling: Pooling = check_option("pooling", pooling, POOLINGS)
        self.sharpness = check_number("sharpness", sharpness, low=0, open_low=True)
        self.exclude = tuple(check_integer("exclude", c, low=0) for c in exclude)
        self.ignore_index = check_integer("ignore_index", ignore_index)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return image_label_loss(
            logits,
            labels,
            pooling=self.pooling,
            sharpness=self.sharpness,
            exclude=self.exclude,
            ignore_index=self.ignore_index,
        )

    def extra_repr(self) -> str:
        return f"pooling={self.pooling!r}, sharpness={self.sharpness}, exclude={self.exclude}"
