"""Cross-entropy with a weight for every pixel."""

import torch
from torch import Tensor
from torch.nn import functional as F

from perpixel.checks import check_same_device, check_tensor, complain
from perpixel.outputs import check_labels, class_logits
from perpixel.reduction import masked_mean, valid_mask


def weighted_cross_entropy(logits: Tensor, labels: Tensor, weight_map: Tensor, *, ignore_index: int = 255) -> Tensor:
    """Weighted mean of the per-pixel cross-entropy: Σ_p w_p · ce_p / Σ_p w_p over the valid pixels.

    Args:
        logits: (N, C, H, W), any floating dtype; C = 1 for a binary network, whose cross-entropy is the binary one.
        labels: (N, H, W), integers in [0, C) or `ignore_index`; for a binary network 0, 1 or `ignore_index` of any
            dtype, (N, H, W) or (N, 1, H, W). Any other raises on the CPU, and counts as void elsewhere.
        weight_map: (N, H, W), non-negative; only ratios matter. Negative or NaN weights at valid pixels raise on the
            CPU (no wait for other devices). No gradient flows to it unless it requires one; if not, a pixel of weight
            zero is as good as void: what its logits are, NaN too, has no say.
        ignore_index: void label.

    Returns:
        A scalar, float32 (float64 for float64); zero, attached to the graph, where the valid weights add up to zero.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, shape, device or value.
    """
    check_tensor("logits", logits, ndim=4, shape="(N, C, H, W)", floating=True)
    looks = logits.device.type == "cpu" and not torch.compiler.is_compiling()
    labels = check_labels(labels, logits, ignore_index, values=looks)
    check_tensor("weight_map", weight_map, ndim=3, shape="(N, H, W)", floating=True)
    check_same_device(logits=logits, weight_map=weight_map)
    expected = (logits.shape[0], *logits.shape[2:])
    for name, value in (("labels", labels), ("weight_map", weight_map)):
        if tuple(value.shape) != expected:
            raise ValueError(complain(name, f"shape {expected} to match the logits", value, "Resize it to the logits."))
    valid = valid_mask(labels, ignore_index)
    if looks and not bool((torch.where(valid, weight_map, 0.0) >= 0).all()):
        came = f"a smallest of {float(torch.where(valid, weight_map, 0.0).min())}"
        raise ValueError(complain("weight_map", "non-negative weights at valid pixels", came, "Clamp it at zero."))
    if not weight_map.requires_grad:
        valid = valid & (weight_map != 0)
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    clean = torch.where(valid[:, None], logits, 0.0).to(wide)
    losses = F.cross_entropy(class_logits(clean), torch.where(valid, labels, 0), reduction="none")
    return masked_mean(losses, valid, weights=weight_map.to(wide))
