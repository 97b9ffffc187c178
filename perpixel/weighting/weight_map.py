"""What every loss with a weight map of its own shares: arguments, schedule, normalisation, cross-entropy."""

import weakref
from typing import Any

import torch
from torch import Tensor, nn

from perpixel.borrow import borrowed, dtype_of, unwrap
from perpixel.checks import check_flag, check_integer, check_number, check_same_device, check_tensor, complain
from perpixel.losses import weighted_cross_entropy
from perpixel.outputs import check_labels, class_logits, logits_at
from perpixel.reduction import fingerprint, masked_mean, valid_mask

_KEPT = ("kept_map", "kept_key", "label_scores")


class WeightMapLoss(nn.Module):
    """Cross-entropy whose weight map comes from running the model once more; the base of such terms for `attach`.

    A subclass gives `scores`, s in [0, 1] at every pixel. Over the V valid pixels of the batch

        w_p = (1 + strength · s_p) / mean_V(1 + strength · s),   in [1/(1 + strength), 1 + strength], mean 1, 0 at void

    and the loss is Σ_V w_p ce_p / Σ_V w_p. No gradient flows through w. Every process has its own map.

    per_label: divide by the mean over the valid pixels of p's own label instead, so that no label gains weight over
    another and only the place within it counts; the overall mean is 1 as well.
    every: compute the scores at every `every`-th step; in between, a batch with the very images and labels of the last
    refresh gets its map again, any other the mean score of each label at the last refresh that had it (a label never
    seen: the mean of the others), normalised anew; another model's batch scores of its own. A step is a `forward` in
    training mode that gradients flow from, or a `weight_map` in training mode; all other calls compute a map of their
    own and leave the schedule alone.
    The schedule is part of `state_dict`: `steps`, and with every > 1 the last map and the labels' scores.
    """

    def __init__(self, weight: float, strength: float, per_label: bool, every: int, ignore_index: int) -> None:
        super().__init__()
        self.weight = check_number("weight", weight, low=0.0)
        self.strength = check_number("strength", strength, low=0.0)
        self.per_label = check_flag("per_label", per_label)
        self.every = check_integer("every", every, low=1)
        self.ignore_index = check_integer("ignore_index", ignore_index)
        self.steps: Tensor
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self._taken: int | None = 0  # `steps` as a number, so that no step waits for the device
        self._kept_of: weakref.ref[nn.Module] | None = None  # the model that the kept map is of; None: not known
        self._kept: dict[str, Tensor] = {}  # no buffers: DistributedDataParallel would send them to other processes

    def forward(self, model: nn.Module, images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss, a scalar: float32, float64 for float64 logits. Zero, attached to the graph, where all is void.

        model: what gave `logits` (N, C, h, w) for `images` (N, channels, H, W), at its output's size or another.
        labels: int (N, H', W'), at the size of the images or of the logits, which are brought to theirs. For a binary
            network, C = 1, 0 and 1 of any dtype, (N, H', W') or (N, 1, H', W'). Other values raise on the CPU, and
            count as void elsewhere.
        """
        labels = self._check(model, images, logits, labels)
        learns = self.training and torch.is_grad_enabled() and logits.requires_grad
        weights = self._map(model, images, logits, labels, scheduled=learns)
        logits = logits_at(logits, labels.shape[-2:])
        return weighted_cross_entropy(logits, labels, weights, ignore_index=self.ignore_index)

    def weight_map(self, model: nn.Module, images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """The weights (N, H', W') of the pixels of `labels`, detached; arguments as in `forward`."""
        labels = self._check(model, images, logits, labels)
        return self._map(model, images, logits, labels, scheduled=self.training)

    def scores(
        self, model: nn.Module, images: Tensor, logits: Tensor, labels: Tensor, valid: Tensor, fresh: bool
    ) -> Tensor:
        """s (N, H', W') in [0, 1] at the pixels of `labels`; those that are not `valid` may hold anything.

        Called with the model in evaluation mode, without gradients; logits have a channel for each of two classes or
        more. fresh: whether they are what it would give for the images now; otherwise they come from training mode or
        lower precision.
        """
        raise NotImplementedError

    @torch._disable_dynamo  # torch.compiler.disable would load the compiler, for seconds, when this file is imported
    @torch.no_grad()
    def _map(self, model: nn.Module, images: Tensor, logits: Tensor, labels: Tensor, *, scheduled: bool) -> Tensor:
        logits = class_logits(logits)
        groups = _Groups(labels, valid_mask(labels, self.ignore_index), logits.shape[1])
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        due = self._step() % self.every == 0 if scheduled else True
        of_another = self._kept_of is not None and self._kept_of() is not unwrap(model)
        if not due and self._kept and not of_another:
            return self._reused(images, labels, groups).to(dtype)
        scores = self._scores(model, images, logits, labels, groups.valid).to(dtype)
        weights = self._weights(scores, groups)
        if scheduled and self.every > 1:
            means = groups.means(scores, -1.0)
            before = means if of_another else self._kept.get("label_scores", means).to(means)
            self._kept_of = weakref.ref(unwrap(model))
            self._kept = {
                "kept_map": weights,
                "kept_key": fingerprint(images, labels),
                "label_scores": torch.where(means < 0, before, means),  # -1: never seen
            }
        return weights

    def _scores(self, model: nn.Module, images: Tensor, logits: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
        if labels.numel() == 0:
            return torch.zeros(labels.shape, device=labels.device)
        model = unwrap(model)
        of_model = dtype_of(model, images)
        with borrowed(model, images.device) as evaluated:
            fresh = evaluated and logits.dtype == of_model and not torch.is_autocast_enabled(images.device.type)
            return self.scores(model, images.detach().to(of_model), logits.detach(), labels, valid, fresh)

    def _weights(self, scores: Tensor, groups: "_Groups") -> Tensor:
        raw = torch.where(groups.valid, 1 + self.strength * scores, 0.0)
        if self.per_label:
            return raw / groups.means(raw, 1.0)[groups.labels]
        return raw / torch.where(groups.valid.any(), masked_mean(raw, groups.valid), 1.0)

    def _step(self) -> int:
        taken = int(self.steps) if self._taken is None else self._taken
        self._taken = taken + 1
        self.steps += 1
        return taken

    def _reused(self, images: Tensor, labels: Tensor, groups: "_Groups") -> Tensor:
        weights, key, by_label = (self._kept[name].to(labels.device) for name in _KEPT)
        if len(by_label) != groups.classes:
            came = f"{groups.classes} channels"
            remedy = "Use one loss module per model."
            raise ValueError(complain("logits", f"{len(by_label)} classes as at the last refresh", came, remedy))
        scores = by_label[groups.labels]
        seen = groups.valid & (scores >= 0)
        other = self._weights(torch.where(seen, scores, masked_mean(scores, seen)), groups)
        if weights.shape != other.shape:
            return other
        return torch.where((fingerprint(images, labels) == key).all(), weights, other)

    def _check(self, model: nn.Module, images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        if not isinstance(model, nn.Module):
            raise TypeError(complain("model", "a torch.nn.Module", model, "Pass the network itself."))
        check_tensor("images", images, ndim=4, shape="(N, channels, H, W)", floating=True)
        check_tensor("logits", logits, ndim=4, shape="(N, C, h, w)", floating=True)
        labels = check_labels(labels, logits, self.ignore_index, values=logits.device.type == "cpu")
        check_same_device(images=images, logits=logits)
        if images.shape[0] != logits.shape[0]:
            came = f"{images.shape[0]} images for the logits of {logits.shape[0]}"
            raise ValueError(complain("images", "the images the logits were computed from", came, "Pass that batch."))
        check_label_size(labels, images, logits)
        return labels

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept_of": None}  # a copy goes on with a copy of the model

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.update({prefix + name: value for name, value in self._kept.items()})

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        self._kept = {name: state_dict[prefix + name] for name in _KEPT if prefix + name in state_dict}
        self._taken = self._kept_of = None
        own = {prefix + name for name in _KEPT}
        super()._load_from_state_dict({k: v for k, v in state_dict.items() if k not in own}, prefix, *args)


def check_label_size(labels: Tensor, images: Tensor, logits: Tensor) -> None:
    """ValueError if labels (N, H, W) have neither the size of the images nor that of the logits."""
    size, of_images, of_logits = (tuple(t.shape[-2:]) for t in (labels, images, logits))
    if size not in (of_images, of_logits):
        expected = f"the images' size {of_images} or the logits' {of_logits}"
        remedy = "Crop or pad them as the images were, or bring them there by nearest neighbour."
        raise ValueError(complain("labels", expected, f"{size}", remedy))


class _Groups:
    """The valid pixels of a batch by label; `labels` has zero at void."""

    def __init__(self, labels: Tensor, valid: Tensor, classes: int) -> None:
        self.valid, self.classes = valid, classes
        self.labels = torch.where(valid, labels, 0)
        self.group = torch.where(valid, labels, classes).flatten()

    def means(self, values: Tensor, absent: float) -> Tensor:
        """Mean of values (N, H, W) over the valid pixels of each label (C,); `absent` where there are none."""
        sums = values.new_zeros(self.classes + 1)
        counts = sums.index_add(0, self.group, torch.ones_like(values).flatten())
        sums = sums.index_add(0, self.group, torch.where(self.valid, values, 0.0).flatten())
        return torch.where(counts > 0, sums / counts.clamp(min=1), absent)[: self.classes]
