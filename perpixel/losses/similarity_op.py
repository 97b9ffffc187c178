"""Similarity of every pixel to class templates, and its closed-form gradient, as one operator.

Let u_p be the unit vector of pixel p (centred first for the correlation), t_c the template of class c, û_c its unit
vector and sim_pc = u_p · û_c. The operator gives one value per pixel,

    similarity: m_p = (1/|P|) Σ_{c∈P} s_pc sim_pc,  s_pc = −1 where y_p = c, else +1
    contrast:   m_p = −log softmax_{c∈P}(sim_pc / temperature)[y_p]

With w_pc = ∂m_p/∂sim_pc and the incoming g_p,

    ∂/∂f_p = g_p (Σ_c w_pc û_c − (Σ_c w_pc sim_pc) u_p) / |f_p|,      ∂/∂û_c = Σ_p g_p w_pc u_p,

so both directions are two thin matrix products. The features are read in blocks of channels through one small float32
(float64 for float64) scratch block: no normalised copy, no loss of precision in half types, sums that cannot overflow
(every vector is scaled by its largest entry), and pixels that do not count cannot leak a NaN.

A vector whose norm is at most 1e-8 (float16: 6e-5), or whose centred norm is at most √eps of its norm (half types:
8 eps), has no direction: its similarities are 0 and so is their gradient.
"""

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import torch
from torch import Tensor

Maps = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def _without_autocast(operator: Callable[..., Any]) -> Callable[..., Any]:
    """Runs the operator with autocast off, whatever the caller, or the caller of backward, has switched on."""

    @wraps(operator)
    def run(first: Tensor, *rest: Any) -> Any:
        with torch.autocast(first.device.type, enabled=False):
            return operator(first, *rest)

    return run


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, else float32: the dtype in which sums are taken."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _thresholds(dtype: torch.dtype) -> tuple[float, float]:
    """Smallest norm, and smallest centred norm as a share of the norm, that still has a direction in `dtype`."""
    info, wide = torch.finfo(dtype), torch.finfo(compute_dtype(dtype))
    return max(1e-8, info.tiny), max(wide.eps**0.5, 8 * info.eps if dtype.itemsize == 2 else 0.0)


def _blocks(x: Tensor, valid: Tensor, mean: Tensor | None) -> Iterator[tuple[slice, Tensor]]:
    """(channels, block) over x (N, D, P): the block centred by `mean` and zero where not `valid`, reused each time."""
    channels = x.shape[1]
    step = max(channels // 16, 8) if x.device.type == "cpu" else max(channels // 4, 64)
    scratch = torch.empty_like(x[:, :step], dtype=compute_dtype(x.dtype))
    # and-ing the bits with all ones or all zeros drops pixels, NaN included, several times faster than masked_fill_
    bits = torch.int64 if scratch.dtype == torch.float64 else torch.int32
    kept = -valid[:, None].to(bits)
    for start in range(0, channels, step):
        part = slice(start, min(start + step, channels))
        block = scratch[:, : part.stop - part.start]
        if mean is None and x.dtype == scratch.dtype:
            torch.bitwise_and(x[:, part].view(bits), kept, out=block.view(bits))
        else:
            block.copy_(x[:, part])
            if mean is not None:
                block.sub_(mean[:, None])
            block.view(bits).bitwise_and_(kept)
        yield part, block


def _inverse_norm(largest: Tensor, squares: Tensor, mean: Tensor | None, channels: int, dtype: torch.dtype) -> Tensor:
    """1/norm from the largest entry and the squares summed in its units; 0 where the vector has no direction."""
    smallest_norm, smallest_share = _thresholds(dtype)
    norm = squares.sqrt()
    clear = norm * largest > smallest_norm
    if mean is not None:
        whole = (squares + channels * (mean / torch.where(largest > 0, largest, 1.0)) ** 2).sqrt()
        clear = clear & (norm > smallest_share * whole)
    safe = torch.where(clear, norm, 1.0)
    return torch.where(clear, 1.0 / safe / torch.where(clear, largest, 1.0), 0.0)


def pixel_norms(x: Tensor, valid: Tensor, centred: bool) -> tuple[Tensor, Tensor | None]:
    """Inverse norm (N, P) of every pixel's vector, and its mean over the channels if `centred`."""
    wide = compute_dtype(x.dtype)
    shape = (x.shape[0], x.shape[2])
    largest, mean = x.new_zeros(shape, dtype=wide), None
    if centred:
        mean = x.new_zeros(shape, dtype=wide)
        for _, block in _blocks(x, valid, None):
            mean.add_(block.sum(1), alpha=1.0 / x.shape[1])
    for _, block in _blocks(x, valid, mean):
        torch.maximum(largest, block.abs_().amax(1), out=largest)
    unit = torch.where(largest > torch.finfo(wide).tiny, largest, 1.0).reciprocal_()[:, None]
    squares = torch.zeros_like(largest)
    for _, block in _blocks(x, valid, mean):
        squares += block.mul_(unit).square_().sum(1)
    return _inverse_norm(largest, squares, mean, x.shape[1], x.dtype), mean


def unit_rows(rows: Tensor, centred: bool) -> tuple[Tensor, Tensor]:
    """Unit vectors (C, D) of the rows and their inverse norms (C,); a row without direction gives zeros."""
    wide = rows.to(compute_dtype(rows.dtype))
    mean = wide.mean(1) if centred else None
    if mean is not None:
        wide = wide - mean[:, None]
    largest = wide.abs().amax(1)
    scaled = wide / torch.where(largest > torch.finfo(wide.dtype).tiny, largest, 1.0)[:, None]
    inverse = _inverse_norm(largest, scaled.square().sum(1), mean, rows.shape[1], rows.dtype)
    return wide * inverse[:, None], inverse


def _products(x: Tensor, valid: Tensor, mean: Tensor | None, rows: Tensor) -> Tensor:
    """Dot products (N, K, P) of the (centred) pixels with rows (K, D)."""
    sums = rows.new_zeros(x.shape[0], rows.shape[0], x.shape[2])
    for part, block in _blocks(x, valid, mean):
        sums.baddbmm_(rows[:, part].expand(x.shape[0], -1, -1), block)
    return sums


def _weighted_sums(x: Tensor, valid: Tensor, mean: Tensor | None, weights: Tensor) -> Tensor:
    """Sums (K, D) over all pixels of weights (N, K, P) times the (centred) pixels."""
    sums = weights.new_empty(weights.shape[1], x.shape[1])
    for part, block in _blocks(x, valid, mean):
        sums[:, part] = torch.bmm(weights, block.transpose(1, 2)).sum(0)
    return sums


def _class_shares(labels: Tensor, valid: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """(N, C, P): 1 / (pixels of the class) at its valid pixels, else 0."""
    hot = torch.zeros(labels.shape[0], classes, labels.shape[1], dtype=dtype, device=labels.device)
    hot.scatter_(1, labels[:, None], valid[:, None].to(dtype))
    return hot / hot.sum((0, 2)).clamp_(min=1.0)[None, :, None]


def _signs(labels: Tensor, present: Tensor, dtype: torch.dtype) -> Tensor:
    """(N, C, P): s_pc / |P| for the present classes, 0 for the others."""
    share = present.to(dtype) / present.sum().clamp(min=1)
    signs = share[None, :, None].repeat(labels.shape[0], 1, labels.shape[1])
    return signs.scatter_(1, labels[:, None], -share[labels][:, None])


def _contrast(sims: Tensor, labels: Tensor, present: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-softmax (N, C, P) over the present classes, and present as a (1, C, 1) mask."""
    shown = present[None, :, None]
    scaled = torch.where(shown, sims / temperature, torch.finfo(sims.dtype).min)
    return torch.log_softmax(scaled, 1), shown


@torch.library.custom_op("perpixel::template_similarity_map", mutates_args=())
@_without_autocast
def template_similarity_map(
    features: Tensor,
    templates: Tensor | None,
    peaks: Tensor | None,
    labels: Tensor,
    valid: Tensor,
    present: Tensor,
    centred: bool,
    temperature: float,
    detach_templates: bool,
) -> Maps:
    """Per-pixel objective (N, P) of features (N, D, h, w), then what its gradient needs.

    `templates` (C, D) are used as given; or `peaks` (C,), flat positions n·P + p, name the pixels that are templates;
    without both, the means of the classes' unit vectors are. labels (N, P) int64 in [0, C); valid (N, P) and present
    (C,) bool. `temperature` 0 means the plain similarity. Also returned: inverse norms and means of the pixels (N, P),
    unit templates (C, D) and their inverse norms (C,).
    """
    x = features.flatten(2)
    inverse, mean = pixel_norms(x, valid, centred)
    if templates is not None:
        rows = templates
    elif peaks is not None:
        rows = x[peaks // x.shape[2], :, peaks % x.shape[2]]
    else:
        shares = _class_shares(labels, valid, len(present), inverse.dtype)
        rows = _weighted_sums(x, valid, mean, shares.mul_(inverse[:, None]))
    rows = torch.where(present[:, None], rows, 0.0)
    unit, template_inverse = unit_rows(rows, centred)
    unit = unit.to(inverse.dtype)
    sims = _products(x, valid, mean, unit).mul_(inverse[:, None])
    if temperature > 0:
        logs, _ = _contrast(sims, labels, present, temperature)
        values = -logs.gather(1, labels[:, None])[:, 0]
    else:
        values = sims.mul_(_signs(labels, present, sims.dtype)).sum(1)
    kept_mean = inverse.new_zeros(0) if mean is None else mean
    return values, inverse, kept_mean, unit, template_inverse.to(inverse.dtype)


@template_similarity_map.register_fake
def _(
    features: Tensor,
    templates: Tensor | None,
    peaks: Tensor | None,
    labels: Tensor,
    valid: Tensor,
    present: Tensor,
    centred: bool,
    temperature: float,
    detach_templates: bool,
) -> Maps:
    wide = compute_dtype(features.dtype)
    values = features.new_empty(labels.shape, dtype=wide)
    mean = torch.empty_like(values) if centred else values.new_empty(0)
    unit = values.new_empty(len(present), features.shape[1])
    return values, torch.empty_like(values), mean, unit, values.new_empty(len(present))


@torch.library.custom_op("perpixel::template_similarity_backward", mutates_args=())
@_without_autocast
def template_similarity_backward(
    incoming: Tensor,
    features: Tensor,
    peaks: Tensor | None,
    labels: Tensor,
    valid: Tensor,
    present: Tensor,
    values: Tensor,
    inverse: Tensor,
    kept_mean: Tensor,
    unit: Tensor,
    template_inverse: Tensor,
    temperature: float,
    detach_templates: bool,
    given: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients for the features (N, D, h, w) and, if `given`, for the templates (C, D), else an empty tensor."""
    x = features.flatten(2)
    mean = kept_mean if kept_mean.numel() else None
    incoming = torch.where(valid, incoming, 0.0)
    # weights: g_p w_pc / |f_p|, (N, C, P);  along: Σ_c g_p w_pc sim_pc, (N, P)
    if temperature > 0:
        sims = _products(x, valid, mean, unit).mul_(inverse[:, None])
        logs, shown = _contrast(sims, labels, present, temperature)
        weights = torch.where(shown, logs.exp_(), 0.0)
        weights.scatter_add_(1, labels[:, None], torch.full_like(weights[:, :1], -1.0)).div_(temperature)
        weights.mul_(incoming[:, None])
        along = sims.mul_(weights).sum(1)
        del sims, logs
    else:
        weights = _signs(labels, present, unit.dtype).mul_(incoming[:, None])
        along = values * incoming
    weights.mul_(inverse[:, None])
    rows, no_templates = unit, unit.new_zeros(0)
    template_grad = no_templates
    if not detach_templates:
        pull = _weighted_sums(x, valid, mean, weights)
        template_grad = (pull - (pull * unit).sum(1, keepdim=True) * unit) * template_inverse[:, None]
        if not given and peaks is None:  # class means: every pixel of the class carries its share of the pull
            shares = _class_shares(labels, valid, len(present), unit.dtype).mul_(inverse[:, None])
            along = along + _products(x, valid, mean, template_grad).mul_(shares).sum(1)
            rows, weights = torch.cat([unit, template_grad]), torch.cat([weights, shares], 1)
    is_channels_last = features.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if is_channels_last else torch.contiguous_format
    grad = torch.empty_like(features, memory_format=layout)
    flat = grad.flatten(2)
    lengths = (along * inverse.square()).neg_()[:, None]
    for part, block in _blocks(x, valid, mean):
        block.mul_(lengths).baddbmm_(rows[:, part].T.expand(len(x), -1, -1), weights)
        flat[:, part] = block
    if peaks is not None and not detach_templates:
        image, channel, pixel = peaks // x.shape[2], torch.arange(x.shape[1], device=x.device), peaks % x.shape[2]
        place = (image[:, None], channel, pixel[:, None])
        flat.index_put_(place, template_grad.to(flat.dtype), accumulate=True)
    return grad, template_grad if given else no_templates


@template_similarity_backward.register_fake
def _(
    incoming: Tensor,
    features: Tensor,
    peaks: Tensor | None,
    labels: Tensor,
    valid: Tensor,
    present: Tensor,
    values: Tensor,
    inverse: Tensor,
    kept_mean: Tensor,
    unit: Tensor,
    template_inverse: Tensor,
    temperature: float,
    detach_templates: bool,
    given: bool,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(features), torch.empty_like(unit) if given else unit.new_empty(0)


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Maps) -> None:
    features, templates, peaks, labels, valid, present, _, temperature, detach_templates = inputs
    ctx.save_for_backward(features, peaks, labels, valid, present, *output)
    ctx.mark_non_differentiable(*output[1:])
    ctx.options = (temperature, detach_templates or (templates is not None and not templates.requires_grad))
    ctx.given, ctx.template_dtype = templates is not None, None if templates is None else templates.dtype


def _backward(ctx: Any, incoming: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    grad, template_grad = template_similarity_backward(incoming, *ctx.saved_tensors, *ctx.options, ctx.given)
    wanted = ctx.given and not ctx.options[1]
    return grad, template_grad.to(ctx.template_dtype) if wanted else None, *(None,) * 7


template_similarity_map.register_autograd(_backward, setup_context=_keep_for_backward)
