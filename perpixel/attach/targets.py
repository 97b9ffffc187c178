"""Labels as the base and the terms take them; the default base."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perpixel.attach.recorder import ForwardPass
from perpixel.checks import complain
from perpixel.outputs import check_labels, class_logits, logits_at

_AS_LOGITS = ("torch.nn.modules.loss", "segmentation_models_pytorch.losses")  # losses that want masks like logits


def is_mask_per_class(labels: object, logits: Tensor) -> bool:
    """Whether labels are (N, C, H, W) for logits (N, C, h, w) of more than one class: multi-label, one-hot or soft."""
    return isinstance(labels, Tensor) and labels.ndim == 4 and labels.shape[1] == logits.shape[1] > 1


def class_numbers(labels: Tensor, logits: Tensor, ignore_index: int, values: bool, asked_by: list[str]) -> Tensor:
    """Labels as int64 (N, H, W), see `check_labels`; asked_by: what needs class numbers, for the error."""
    if is_mask_per_class(labels, logits):
        remedy = (
            "Turn one-hot or soft labels into .argmax(1); for masks that overlap give a base that takes them, "
            "nn.BCEWithLogitsLoss(), and no terms, or train a binary network for each class."
        )
        came = f"one mask per class, {tuple(labels.shape)}"
        raise ValueError(complain("labels", f"class numbers (N, H, W), for {', '.join(asked_by)}", came, remedy))
    return check_labels(labels, logits, ignore_index, values=values)


def target_of(base: Callable[..., object], labels: Tensor, classes: Tensor | None, logits: Tensor) -> Tensor:
    """The labels as `base` takes them: class numbers, if there are; masks of a binary network as given, or like logits.

    ValueError for nn.CrossEntropyLoss of a binary network, which is zero whatever the labels.
    """
    if classes is None or logits.shape[1] > 1:
        return labels if classes is None else classes
    if isinstance(base, nn.CrossEntropyLoss):
        remedy = "Leave it out: the default is binary then; or pass nn.BCEWithLogitsLoss()."
        raise ValueError(complain("base", "a loss of one channel", "nn.CrossEntropyLoss, zero there", remedy))
    if not type(base).__module__.startswith(_AS_LOGITS):
        return labels
    masks = labels.to(torch.promote_types(logits.dtype, torch.float32))
    return masks if masks.ndim == 4 else masks[:, None]


def labels_of_cells(labels: Tensor, last: ForwardPass, void: int) -> Tensor:
    """Labels (N, H, W), which cover the output, as a term is given them: (N, h, w), those at the centres of the cells.

    `void` where a cell's centre lies outside the image. Where the model declares no cells, labels are left as they are.
    """
    if last.cells is None or last.grid is None:
        return labels
    (stride, offset), outside = last.cells, torch.zeros((), dtype=torch.bool, device=labels.device)
    sizes = zip(last.grid.shape[-2:], labels.shape[-2:], last.logits.shape[-2:], strict=True)
    for axis, (cells, length, output) in enumerate(sizes, start=1):
        centre = offset + 0.5 + stride * torch.arange(cells, dtype=torch.float64, device=labels.device)
        place = (centre * (length / output)).floor().long()
        beyond = (place < 0) | (place >= length)
        outside = outside | (beyond[:, None] if axis == 1 else beyond)
        labels = labels.index_select(axis, place.clamp(0, length - 1))
    return labels.masked_fill(outside, void)


def check_size(labels: Tensor, logits: Tensor, last: ForwardPass) -> None:
    """ValueError unless labels have the size of the images, or of the logits as given or as the model returned them.

    An output larger than the images may have been made of images that the model padded: then not that of the images.
    """
    images, output = last.size, last.logits.shape[-2:]
    if images is not None and any(of_output > of_images for of_output, of_images in zip(output, images, strict=True)):
        images = None
    allowed = {"the images'": images, "the output's": output, "the logits'": logits.shape[-2:]}
    if labels.shape[-2:] not in allowed.values():
        listed = " or ".join(f"{what} size {tuple(size)}" for what, size in allowed.items() if size is not None)
        remedy = (
            "Load labels at the size of their images, and resize or pad both alike (labels with ignore_index); or, if "
            "the output covers all of the labels and nothing else, resize it to their size."
        )
        raise ValueError(complain("labels", listed, str(tuple(labels.shape[-2:])), remedy))


def cross_entropy(logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """Mean cross-entropy of logits (N, C, h, w) at label size, binary for C = 1, over pixels not `ignore_index`.

    Summed in float32 or better; what lies at void, NaN too, has no say. Zero, not NaN, where every pixel is void. On
    the CPU void pixels are replaced only where there is need: that would take as long again as the rest. Labels as in
    `check_labels`.
    """
    looks = logits.device.type == "cpu" and not torch.compiler.is_compiling()
    labels = check_labels(labels, logits, ignore_index, values=looks)
    logits = class_logits(logits_at(logits, labels.shape[-2:]))
    if torch.finfo(logits.dtype).bits < 32:
        logits = logits.float()
    valid = labels != ignore_index
    logs = F.log_softmax(logits, 1) if looks else logits
    if not looks or not bool(logs.detach()[:, 0].sum().isfinite()):  # NaN of one class is NaN of all
        logs = F.log_softmax(torch.where(valid[:, None], logits, 0.0), 1)
    total = F.nll_loss(logs, labels, ignore_index=ignore_index, reduction="sum")
    return total / valid.sum().clamp(min=1)
