"""Similarity of every pixel to class templates, and its closed-form gradient, as one operator.

Let u_p be the unit vector of pixel p (centred first for the correlation), t_c the template of class c, û_c its unit
vector and sim_pc = u_p · û_c. The operator gives one value per pixel,

    similarity: m_p = (1/|P|) Σ_{c∈P} s_pc sim_pc,  s_pc = −1 where y_p = c, else +1
    contrast:   m_p = −log softmax_{c∈P}(sim_pc / temperature)[y_p]

With w_pc = ∂m_p/∂sim_pc and the incoming g_p,

    ∂/∂f_p = g_p (Σ_c w_pc û_c − (Σ_c w_pc sim_pc) u_p) / |f_p|,      ∂/∂û_c = Σ_p g_p w_pc u_p,

so both directions are two thin matrix products, taken over blocks of channels (see `directions`). A vector without
direction has similarity 0 to everything, and no gradient.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, Sequence  # noqa: UP035 - torch 2.6 knows no other sequence

import torch
from torch import Tensor

from perpixel.losses.template_similarity.directions import (
    channel_blocks,
    compute_dtype,
    norms_and_products,
    pixel_norms,
    products_with,
    unit_rows,
    weighted_sums,
)

Maps = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def _without_autocast(operator: Callable[..., Any]) -> Callable[..., Any]:
    """Runs the operator with autocast off, whatever the caller, or the caller of backward, has switched on."""

    @wraps(operator)
    def run(first: Tensor, *rest: Any) -> Any:
        with torch.autocast(first.device.type, enabled=False):
            return operator(first, *rest)

    return run


def _class_shares(labels: Tensor, valid: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """(N, C, P): 1 / (pixels of the class) at its valid pixels, else 0."""
    hot = torch.zeros(labels.shape[0], classes, labels.shape[1], dtype=dtype, device=labels.device)
    hot.scatter_(1, labels[:, None], valid[:, None].to(dtype))
    return hot / hot.sum((0, 2)).clamp_(min=1.0)[None, :, None]


def _empty_gradient(features: Tensor) -> Tensor:
    """Room for the gradient, channels_last where the features are, else contiguous: either way (N, D, P) is a view."""
    is_channels_last = features.is_contiguous(memory_format=torch.channels_last)
    return torch.empty_like(
        features, memory_format=torch.channels_last if is_channels_last else torch.contiguous_format
    )


def _tangent(pull: Tensor, unit: Tensor, inverse: Tensor) -> Tensor:
    """Gradient (C, D) for templates from that for their unit vectors: the part across them, over their norms."""
    return (pull - (pull * unit).sum(1, keepdim=True) * unit) * inverse[:, None]


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
    rows = templates
    if peaks is not None:
        rows = x[peaks // x.shape[2], :, peaks % x.shape[2]]
    if rows is None:
        inverse, mean = pixel_norms(x, valid, centred)
        shares = _class_shares(labels, valid, len(present), inverse.dtype)
        rows = weighted_sums(x, valid, mean, shares.mul_(inverse[:, None]))
        unit, template_inverse = unit_rows(torch.where(present[:, None], rows, 0.0), centred)
        sims = products_with(x, valid, mean, unit)
    else:
        unit, template_inverse = unit_rows(torch.where(present[:, None], rows, 0.0), centred)
        unit = unit.to(compute_dtype(x.dtype))
        inverse, mean, sims = norms_and_products(x, valid, centred, unit)
    sims.mul_(inverse[:, None])
    if temperature > 0:
        logs, _ = _contrast(sims, labels, present, temperature)
        values = -logs.gather(1, labels[:, None])[:, 0]
    else:
        values = sims.mul_(_signs(labels, present, sims.dtype)).sum(1)
    kept_mean = inverse.new_zeros(0) if mean is None else mean
    return values, inverse, kept_mean, unit, template_inverse.to(inverse.dtype)


@template_similarity_map.register_fake
def _(features: Tensor, _1: Any, _2: Any, labels: Tensor, _3: Any, present: Tensor, centred: bool, *_: Any) -> Maps:
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
    maps: Sequence[Tensor],
    temperature: float,
    detach_templates: bool,
    given: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients for the features (N, D, h, w) and, if `given`, for the templates (C, D), else an empty tensor.

    maps: what `template_similarity_map` returned.
    """
    values, inverse, kept_mean, unit, template_inverse = maps
    x = features.flatten(2)
    mean = kept_mean if kept_mean.numel() else None
    incoming = torch.where(valid, incoming, 0.0)
    # weights: g_p w_pc / |f_p|, (N, C, P);  along: Σ_c g_p w_pc sim_pc, (N, P)
    if temperature > 0:
        sims = products_with(x, valid, mean, unit).mul_(inverse[:, None])
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
    pull = None if detach_templates else torch.empty_like(unit)  # Σ_p g_p w_pc u_p
    template_grad, class_means = no_templates, peaks is None and not given and not detach_templates
    if class_means:  # every pixel of the class carries its share of the pull
        template_grad = _tangent(weighted_sums(x, valid, mean, weights), unit, template_inverse)
        shares = _class_shares(labels, valid, len(present), unit.dtype).mul_(inverse[:, None])
        along = along + products_with(x, valid, mean, template_grad).mul_(shares).sum(1)
        rows, weights = torch.cat([unit, template_grad]), torch.cat([weights, shares], 1)
    grad = _empty_gradient(features)
    flat = grad.flatten(2)
    lengths = (along * inverse.square()).neg_()[:, None]
    for part, block in channel_blocks(x, valid, mean):
        if pull is not None and not class_means:
            pull[:, part] = torch.bmm(weights, block.transpose(1, 2)).sum(0)
        block.mul_(lengths).baddbmm_(rows[:, part].T.expand(len(x), -1, -1), weights)
        flat[:, part] = block
    if pull is not None and not class_means:
        template_grad = _tangent(pull, unit, template_inverse)
    if peaks is not None and not detach_templates:
        image, channel, pixel = peaks // x.shape[2], torch.arange(x.shape[1], device=x.device), peaks % x.shape[2]
        place = (image[:, None], channel, pixel[:, None])
        flat.index_put_(place, template_grad.to(flat.dtype), accumulate=True)
    return grad, template_grad if given else no_templates


@template_similarity_backward.register_fake
def _(_: Any, features: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    maps, given = rest[4], rest[-1]
    unit = maps[3]
    return _empty_gradient(features), torch.empty_like(unit) if given else unit.new_empty(0)


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Maps) -> None:
    features, templates, peaks, labels, valid, present, _, temperature, detach_templates = inputs
    ctx.save_for_backward(features, peaks, labels, valid, present, *output)
    ctx.mark_non_differentiable(*output[1:])
    ctx.options = (temperature, detach_templates or (templates is not None and not templates.requires_grad))
    ctx.given, ctx.template_dtype = templates is not None, None if templates is None else templates.dtype


def _backward(ctx: Any, incoming: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    inputs, maps = ctx.saved_tensors[:5], ctx.saved_tensors[5:]
    grad, template_grad = template_similarity_backward(incoming, *inputs, list(maps), *ctx.options, ctx.given)
    wanted = ctx.given and not ctx.options[1]
    return grad, template_grad.to(ctx.template_dtype) if wanted else None, *(None,) * 7


template_similarity_map.register_autograd(_backward, setup_context=_keep_for_backward)
