"""One number per image out of a dense prediction: what captum is to explain."""

import torch
from torch import Tensor, nn

from perpixel.attribution.captum.rows import CallStack
from perpixel.attribution.inputs import (
    SCORES,
    check_images,
    check_label,
    check_model,
    check_region,
    check_score,
    dense,
    labels_for,
    predicted_labels,
    region_for,
)
from perpixel.borrow import borrowed
from perpixel.checks import check_finite, check_integer, check_option, complain
from perpixel.outputs import logits_at


class RegionTarget(nn.Module):
    """How strongly a network puts a label on a region, as the `forward_func` of any captum class: images -> (N,).

    logit:  s_n = Σ_{p in region_n} z_{n,label_n,p}
    margin: s_n = Σ_{p in region_n} (z_{n,label_n,p} − max_{k≠label_n} z_{n,k,p})

    z are the logits at the region's size: as they come, or brought to image size bilinearly. Scores are float32, or
    float64 where the logits are.

    model: a network with dense output, run in evaluation mode; its flags are put back after every call.
    label: an int, or ints (N,), one per image. region: bool (N, H, W), or (H, W) for all, at the size of the output
        or of the images. None: where the network predicts the label on the unperturbed images, at image size; a single
        logit predicts its label 0 where it is positive. Found once, by `freeze(images)` or at the first call, on the
        images captum was given (not on what it made of them), and kept: before captum gets other images, with that
        region or one of their own, call `freeze` with those it is to be found on.

    captum copies and mixes the rows of a batch. Given `additional_forward_args=target.arguments(images)`, it copies
    labels and regions with them; without, the target reads the order off captum's call, and raises ValueError where
    it cannot. ValueError or TypeError also for an unknown label or score, an empty region (naming the image), a region
    of another size, an output that is not dense, and NaN in the region.
    """

    def __init__(
        self, model: nn.Module, label: int | Tensor, region: Tensor | None = None, score: str = "logit"
    ) -> None:
        super().__init__()
        self.model = check_model(model)
        self.score = check_option("score", score, SCORES)
        self.label = check_label(label)
        self.region = None if region is None else check_region(region)
        self.readout = Readout(score)
        self.training = model.training
        self._given = self.region
        self._alike = isinstance(self.label, int) and region is not None and region.ndim == 2
        self._frozen: tuple[Tensor, Tensor] | None = None
        self._fixed_by: Tensor | None = None  # the images whose prediction is the region, where nobody called freeze
        self._dtype = torch.float32

    def freeze(self, images: Tensor, batch_size: int | None = None) -> "RegionTarget":
        """Fix labels and regions, anew if need be, for these unperturbed images; the target itself comes back.

        batch_size: images per forward pass; None: all.
        """
        self._freeze(images, batch_size)
        self._fixed_by = None
        return self

    @torch.inference_mode(False)
    @torch.no_grad()
    def _freeze(self, images: Tensor, batch_size: int | None = None) -> tuple[Tensor, Tensor]:
        images = check_images(images)
        size = (images if self._given is None else self._given).shape[-2:]
        finite, predicted = [], []
        for part in images.split(len(images) if batch_size is None else check_integer("batch_size", batch_size, low=1)):
            logits = self._logits(part, captum_hooks=False)
            full = logits_at(logits, size)
            finite.append(full.isfinite().all(1))
            if self._given is None:
                predicted.append(predicted_labels(full))
        output = logits.new_empty(()).expand(len(images), *logits.shape[1:])
        labels = labels_for(self.label, output)
        region = torch.cat(predicted) == labels[:, None, None] if self._given is None else self._given
        region = region_for(region, output, labels, images.shape[-2:], predicted=self._given is None)
        check_score(self.score, output.shape[1])
        check_finite("output", torch.where(torch.cat(finite), 0.0, torch.nan)[:, None], region)
        labels, region = (t.clone() if t.is_inference() else t for t in (labels, region))  # autograd wants to keep them
        self._frozen, self._dtype = (labels, region), images.dtype
        self.region = region[0] if self._alike else region
        return self._frozen

    def arguments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Labels int64 (N,) and regions bool (N, H, W), frozen if not yet, for captum's `additional_forward_args`."""
        labels, region = self._frozen_for(images)
        if self._alike:
            return labels[:1].expand(len(images)), region[:1].expand(len(images), -1, -1)
        if len(labels) != len(images):
            came = f"{len(images)} images"
            raise ValueError(complain("images", f"the {len(labels)} of the target", came, "Make a target for these."))
        return labels, region

    def forward(self, images: Tensor, label: Tensor | None = None, region: Tensor | None = None) -> Tensor:
        """Scores (N,) of images (N, channels, H, W), for the label (N,) and region (N, H, W) of each row, if given."""
        if label is None and region is None:
            label, region = self._of_rows(images)
        if label is None or region is None:
            came = f"no {'label' if label is None else 'region'}"
            raise TypeError(complain("label, region", "both, or neither", came, "Pass what `arguments` gives."))
        if self._frozen is not None:  # captum's noise is float32, whatever the images are
            images = images.to(self._dtype)
        logits = self._logits(images)
        label, region = label.to(logits.device), region.to(logits.device, torch.bool)  # captum's LRP adds 0 to them
        return self.readout(logits, label=label, region=region)

    def _of_rows(self, images: Tensor) -> tuple[Tensor, Tensor]:
        stack = CallStack()
        frozen = self._frozen
        if frozen is None or (self._fixed_by is not None and stack.images is not None):
            frozen = self._frozen_for(images if stack.images is None else stack.images)
        labels, region = frozen
        if self._alike or len(labels) == 1:
            return labels[:1].expand(len(images)), region[:1].expand(len(images), -1, -1)
        examples = stack.examples(len(labels), images).to(labels.device)
        return labels[examples], region[examples]

    def _frozen_for(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Labels and regions, frozen if not yet; ValueError if the region was found on other images than these."""
        if self._frozen is None:
            frozen = self._freeze(images)
            self._fixed_by = images.detach().clone() if self._given is None else None
            return frozen
        if self._fixed_by is not None and not _same(self._fixed_by, images):
            expected, remedy = "those whose prediction fixed the region", "Call freeze(images), or make a new target."
            raise ValueError(complain("images", expected, f"others, {tuple(images.shape)}", remedy))
        return self._frozen

    def _logits(self, images: Tensor, captum_hooks: bool = True) -> Tensor:
        with borrowed(self.model, gradients=True, captum_hooks=captum_hooks):
            return dense(self.model(images), images)

    def extra_repr(self) -> str:
        label = self.label if isinstance(self.label, int) else self.label.tolist()
        region = None if self.region is None else tuple(self.region.shape)
        return f"label={label}, score={self.score!r}, region={region}"


class Readout(nn.Module):
    """Logits (N, C, h, w), labels (N,), regions (N, H, W) -> scores (N,).

    A module of its own so that captum's LRP has a layer for the sum: the epsilon rule, since the score is linear.
    """

    def __init__(self, score: str) -> None:
        super().__init__()
        self.score = score

    def forward(self, logits: Tensor, *, label: Tensor, region: Tensor) -> Tensor:
        return region_scores(logits, label, region, self.score)

    @property
    def rule(self) -> object:
        from captum.attr._utils.lrp_rules import EpsilonRule

        return self.__dict__.setdefault("_rule", EpsilonRule())

    @rule.deleter
    def rule(self) -> None:
        self.__dict__.pop("_rule", None)


def _same(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and bool((first == second).all())


def region_scores(logits: Tensor, labels: Tensor, region: Tensor, score: str) -> Tensor:
    """The scores (N,) of `RegionTarget`: logits (N, C, h, w), labels int64 (N,), region bool (N, H, W)."""
    if torch.finfo(logits.dtype).bits < 32:
        logits = logits.float()
    rows = torch.arange(len(logits), device=logits.device)
    if score == "logit":  # upsampling is linear: that of the one class is enough
        values = logits_at(logits[rows, labels][:, None], region.shape[-2:])[:, 0]
    else:
        logits = logits_at(logits, region.shape[-2:])
        own = torch.arange(logits.shape[1], device=logits.device) == labels[:, None]
        others = logits.masked_fill(own[:, :, None, None], -torch.inf).amax(1)
        values = logits[rows, labels] - others
    return torch.where(region, values, 0.0).sum((1, 2))
