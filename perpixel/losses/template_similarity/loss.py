"""Per-pixel template similarity (Ganeshan 2017, arXiv 1712.02861, chapter 3)."""

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from perpixel.checks import (
    check_finite,
    check_flag,
    check_integer,
    check_number,
    check_option,
    check_same_device,
    check_tensor,
    complain,
)
from perpixel.losses.template_similarity.directions import compute_dtype, unit_rows
from perpixel.losses.template_similarity.operator import template_similarity_map
from perpixel.losses.template_similarity.ranks import Joined, Ranks
from perpixel.losses.template_similarity.templates import (
    RunningTemplates,
    TemplateFunction,
    class_counts,
    class_sums_of_units,
    peak_positions,
    peak_rows_over_ranks,
)
from perpixel.outputs import check_labels, class_logits
from perpixel.reduction import labels_on_grid, masked_sum, valid_mask

Similarity = Literal["cosine", "correlation"]
Objective = Literal["similarity", "contrast"]
Template = Literal["peak", "mean"] | TemplateFunction
Reduction = Literal["mean", "sum"]
_SIMILARITIES, _OBJECTIVES, _REDUCTIONS = get_args(Similarity), get_args(Objective), get_args(Reduction)
_OPTIONS = ["similarity", "selective", "objective", "temperature", "detach_templates", "reduction"]
_OPTIONS += ["ignore_index", "validate"]


def template_similarity_loss(
    features: Tensor,
    logits: Tensor,
    labels: Tensor,
    *,
    similarity: Similarity = "cosine",
    selective: bool = False,
    objective: Objective = "similarity",
    temperature: float = 0.1,
    template: Template = "peak",
    detach_templates: bool = False,
    reduction: Reduction = "mean",
    ignore_index: int = 255,
    share_templates: bool | Ranks = False,
    validate: bool = False,
) -> Tensor:
    """Pulls every pixel's features towards the template of its class and away from those of the other classes.

    With V the counted pixels (valid; if `selective`, also arg-max ≠ label), P the classes with a valid pixel, and t_c
    the features of the valid pixel of class c whose logit c is highest in the batch (first of equal ones):

        L = (1/|P|) Σ_{c∈P} Σ_{p∈V} s_pc · sim(f_p, t_c),   s_pc = −1 where y_p = c, else +1     (Algorithm 3)

    divided by |V| for `reduction="mean"`, so that it lies in [−1, 1]. Gradients flow through features and templates.

    Args:
        features: (N, D, h, w), float64, float32, bfloat16 or float16; sums are taken in float32 (float64 for float64).
        logits: (N, C, h, w), any floating dtype; chooses templates and wrong pixels, receives no gradient. One channel
            is a binary network's: two classes, of which the background's template is where it is lowest.
        labels: (N, h, w) or (N, H, W), integers in [0, C) or `ignore_index`; brought to the grid by nearest neighbour.
            For a binary network 0, 1 or `ignore_index` of any dtype, with a channel (N, 1, ...) or without.
        similarity: "cosine" f·t / |f||t|, or "correlation", the cosine after centring each vector over its channels.
        selective: count only the pixels that the logits get wrong. Templates still come from all valid pixels.
        objective: "similarity" as above; "contrast": the cross-entropy −log softmax_{c∈P}(sim/temperature)[y_p].
        temperature: of "contrast", > 0.
        template: "peak"; "mean", the mean of the class's unit vectors (centred ones for "correlation"); or a callable
            (features, logits, labels on the grid) -> (C, D), through which gradients flow; a binary network's logits
            come with both classes, (N, 2, h, w).
        detach_templates: no gradient through the templates.
        reduction: "mean" or "sum".
        ignore_index: void label, inside [0, C) or not.
        share_templates: under torch.distributed, templates, classes and counts of the joined batch; the loss is scaled
            by the number of processes, so that the gradients that DDP averages are those of the joined batch. Every
            process must call it equally often, if with an empty batch; see `TemplateSimilarityLoss` for `Join`.
        validate: check every label on any device, and that features and logits are finite where they count (waits for
            the device). Without it labels are checked on the CPU, those that the grid picks; elsewhere those that are
            no class count as void.

    Returns:
        A scalar, float32 (float64 for float64), differentiable once. Zero, with zero gradients, where nothing counts.
        A vector without direction (zero, or constant for "correlation"; exact thresholds in `directions`) has
        similarity 0 and no gradient.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, shape, device or value.
    """
    _check_options(similarity, objective, temperature, template, reduction)
    features, logits, labels = _check_inputs(features, logits, labels, ignore_index, validate)
    centred = similarity == "correlation"
    ranks = share_templates if isinstance(share_templates, Ranks) else Ranks(share_templates)
    batch = _Batch(logits, labels, ignore_index, ranks)
    counted = batch.counted(selective)
    templates, peaks = None, None
    if callable(template):
        templates = _check_templates(template(features, logits, labels), features, logits)
    elif ranks.count > 1:
        templates = batch.templates(features, template, centred)
    elif template == "peak":
        peaks, _ = peak_positions(batch.logits, batch.labels, batch.valid)
    if templates is not None and detach_templates:
        templates = templates.detach()

    temperature = float(temperature) if objective == "contrast" else 0.0
    pixels = (batch.labels, batch.valid, batch.present)
    values, *_ = template_similarity_map(features, templates, peaks, *pixels, centred, temperature, detach_templates)
    loss = masked_sum(values, counted) * ranks.count
    return loss / ranks.sum(counted.sum()).clamp(min=1) if reduction == "mean" else loss


class TemplateSimilarityLoss(nn.Module):
    """`template_similarity_loss` as a term for `perpixel.attach`, with its options and, besides, running templates.

    Args:
        weight: factor with which `attach` adds the term, >= 0; `forward` itself returns the unweighted loss. 0.05 is
            what we measured to be of use beside a mean cross-entropy; the default 1 only makes the term visible.
        running_momentum: None, or m in [0, 1): the loss compares with t_c ← m t_c + (1 − m) û_c, a moving average of
            the batch's unit templates û_c kept in buffers (part of `state_dict`), updated in training mode before use;
            no gradient flows through it. In evaluation mode they are used as they are.
        The others: see `template_similarity_loss`.

    With `share_templates` every process must take the same number of steps. Where one has fewer batches, either give
    the loss empty ones, or train inside `with Join([term.joinable(ddp)]): ...` of torch: a process that has run out
    adds nothing to what the others share, and gets their running templates at the end. A `Join` of the model alone
    cannot be told from a lost process: give it `throw_on_early_termination=True`, and it stops in all processes.

    `forward(features, logits, labels)` -> scalar. Raises what the function raises.
    """

    name = "template_similarity"

    def __init__(
        self,
        weight: float = 1.0,
        *,
        similarity: Similarity = "cosine",
        selective: bool = False,
        objective: Objective = "similarity",
        temperature: float = 0.1,
        template: Template = "peak",
        detach_templates: bool = False,
        reduction: Reduction = "mean",
        ignore_index: int = 255,
        share_templates: bool = False,
        validate: bool = False,
        running_momentum: float | None = None,
    ) -> None:
        super().__init__()
        self.weight = check_number("weight", weight, low=0.0)
        _check_options(similarity, objective, temperature, template, reduction)
        self.similarity, self.objective, self.reduction = similarity, objective, reduction
        self.selective = check_flag("selective", selective)
        self.temperature = float(temperature)
        self.template: Template = template
        self.detach_templates = check_flag("detach_templates", detach_templates)
        self.ignore_index = check_integer("ignore_index", ignore_index)
        self._ranks = Ranks(check_flag("share_templates", share_templates))
        self.validate = check_flag("validate", validate)
        self.running: RunningTemplates | None = None
        if running_momentum is not None:
            if callable(template):
                remedy = "Leave running_momentum out, or use template='peak' or 'mean'."
                raise ValueError(
                    complain("running_momentum", "None beside a callable template", running_momentum, remedy)
                )
            momentum = check_number("running_momentum", running_momentum, low=0.0, high=1.0, open_high=True)
            self.running = RunningTemplates(momentum)

    def forward(self, features: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        options = {name: getattr(self, name) for name in _OPTIONS}
        template = self._template(features, logits, labels)
        return template_similarity_loss(
            features, logits, labels, template=template, share_templates=self._ranks, **options
        )

    @property
    def share_templates(self) -> bool:
        return self._ranks.share

    @share_templates.setter
    def share_templates(self, share: bool) -> None:
        self._ranks.share = check_flag("share_templates", share)

    def joinable(self, model: Any) -> Joined:
        """The model and this term as one, for torch's `Join`; model: DistributedDataParallel, or what this gave."""
        if not hasattr(model, "join_hook"):
            remedy = "Pass the DistributedDataParallel itself."
            raise TypeError(complain("model", "DistributedDataParallel, or another joinable", model, remedy))
        return Joined(model, self, self._ranks)

    def extra_repr(self) -> str:
        shown = ("weight", "similarity", "selective", "objective", "template", "reduction", "ignore_index")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in shown)

    @torch.no_grad()
    def _template(self, features: Tensor, logits: Tensor, labels: Tensor) -> Template:
        """The option, or the running templates once there are any; in training mode the batch moves them first."""
        running = self.running
        if running is None or not isinstance(self.template, str):
            return self.template
        features, logits, labels = _check_inputs(features, logits, labels, self.ignore_index, self.validate)
        if self.training:
            centred = self.similarity == "correlation"
            batch = _Batch(logits, labels, self.ignore_index, self._ranks)
            unit, _ = unit_rows(batch.templates(features, self.template, centred), centred)
            running.update(unit, batch.present)
        current = running.templates
        return self.template if current is None else lambda *_: current


class _Batch:
    """What the labels and logits of a batch say: valid pixels, classes present, peaks, counts. No host sync."""

    def __init__(self, logits: Tensor, labels: Tensor, ignore_index: int, ranks: Ranks) -> None:
        # integers, masks and detached logits only: nothing to switch off with torch.no_grad, which torch 2.6 as a
        # decorator cannot compile
        self.valid = valid_mask(labels, ignore_index).flatten(1)
        self.labels = torch.where(self.valid, labels.flatten(1), 0)
        self.logits = logits.detach().flatten(2)
        self.ranks = ranks
        self.own_counts = class_counts(self.labels, self.valid, logits.shape[1])
        self.counts = ranks.sum(self.own_counts)
        self.present = self.counts > 0

    def counted(self, selective: bool) -> Tensor:
        return self.valid & (self.logits.argmax(1) != self.labels) if selective else self.valid

    def templates(self, features: Tensor, template: str, centred: bool) -> Tensor:
        """Templates (C, D) of the batch, over all ranks if shared, by plain autograd."""
        x = features.flatten(2)
        if template == "peak":
            peaks, best = peak_positions(self.logits, self.labels, self.valid)
            rows = x[peaks // x.shape[2], :, peaks % x.shape[2]].to(compute_dtype(x.dtype))
            if self.ranks.count > 1:
                return peak_rows_over_ranks(rows, best, self.own_counts > 0, self.ranks)
            return torch.where(self.present[:, None], rows, 0.0)
        sums = self.ranks.sum(class_sums_of_units(x, self.labels, self.valid, len(self.counts), centred))
        return sums / self.counts.clamp(min=1)[:, None]


def _check_options(similarity: str, objective: str, temperature: float, template: Template, reduction: str) -> None:
    check_option("similarity", similarity, _SIMILARITIES)
    check_option("objective", objective, _OBJECTIVES)
    check_number("temperature", temperature, low=0.0, open_low=True)
    if not callable(template):
        check_option("template", template, ("peak", "mean"))
    check_option("reduction", reduction, _REDUCTIONS)


def _check_inputs(
    features: Tensor, logits: Tensor, labels: Tensor, ignore_index: int, validate: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Checks the three tensors and brings the labels to the feature grid; where no pixel is, there is a void one then.

    So an empty batch goes the way of all others, and takes part in what processes share.
    """
    check_tensor("features", features, ndim=4, shape="(N, D, h, w)", floating=True)
    check_tensor("logits", logits, ndim=4, shape="(N, C, h, w)", floating=True)
    check_same_device(features=features, logits=logits)
    n, channels, h, w = features.shape
    if logits.shape[2:] != features.shape[2:] or logits.shape[0] != n or logits.shape[1] < 1:
        remedy = "Pass the logits on the feature grid, before upsampling."
        raise ValueError(complain("logits", f"shape ({n}, C, {h}, {w}) to match the features", logits, remedy))
    if channels < 1:
        raise ValueError(complain("features", "at least one channel", features, "Pass the input of the classifier."))
    looks = not torch.compiler.is_compiling() and (validate or logits.device.type == "cpu")
    size = None if validate or n * h * w == 0 else (h, w)
    labels = check_labels(labels, logits, ignore_index, values=looks, size=size)
    logits = class_logits(logits)
    if n * h * w == 0:
        features = features.new_zeros(1, channels, 1, 1) + features.sum()
        logits = logits.new_zeros(1, logits.shape[1], 1, 1)
    if labels.numel() == 0 or n * h * w == 0:
        return features, logits, labels.new_full((len(features), *features.shape[2:]), ignore_index)
    labels = labels_on_grid(labels, (h, w))
    if validate and looks:
        valid = valid_mask(labels, ignore_index)
        check_finite("features", features, valid)
        check_finite("logits", logits, valid)
    return features, logits, labels


def _check_templates(templates: Tensor, features: Tensor, logits: Tensor) -> Tensor:
    shape = (logits.shape[1], features.shape[1])
    if not isinstance(templates, Tensor) or tuple(templates.shape) != shape or not templates.is_floating_point():
        returned, expected = "template(features, logits, labels)", f"a floating (C, D) = {shape}"
        raise ValueError(complain(returned, expected, templates, "Return one row per class."))
    return templates
