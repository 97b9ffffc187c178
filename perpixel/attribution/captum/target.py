"""One number per image out of a dense prediction: what captum is to explain."""

import torch
from torch import Tensor, nn

from perpixel.attribution.inputs import (
    SCORES,
    check_images,
    check_label,
    check_model,
    check_region,
    dense,
    labels_for,
    region_for,
)
from perpixel.borrow import Caller, borrowed, called
from perpixel.checks import check_finite, check_integer, check_option, complain
from perpixel.outputs import class_logits, logits_at, predicted_labels

_ARGUMENTS = "additional_forward_args=target.arguments(images)"


class RegionTarget(nn.Module):
    """How strongly a network puts a label on a region, as the `forward_func` of any captum class: images -> (N,).

    logit:  s_n = Σ_{p in region_n} z_{n,label_n,p}
    margin: s_n = Σ_{p in region_n} (z_{n,label_n,p} − max_{k≠label_n} z_{n,k,p})

    z are the logits at the region's size: as they come, or brought to image size bilinearly. Scores are float32, or
    float64 where the logits are. A binary network's one channel z has the logits −z/2 (label 0) and z/2 (label 1): the
    margin of label 1 is z, its logit half of it.

    model: a network with dense output, run in evaluation mode; its flags are put back after every call.
    label: an int, or ints (N,), one per image. region: bool (N, H, W), or (H, W) for all, at the size of the output
        or of the images. None: where the network predicts the label on the unperturbed images, at image size.
    call: (model, images) -> output, for a model that wants more than the images; None: model(images).

    A forward function is not told which image captum made a row of. So every call with labels or regions that differ
    needs `additional_forward_args=target.arguments(images)`, which captum copies and cuts together with the images.
    Without, all rows get the one label and the one region: an int, or (1,), with (H, W), or (1, H, W), given or
    predicted on one image by `freeze`. ValueError for any other call without. ValueError or TypeError also for an
    unknown label or score, an empty region (naming the row), a region of another size, and an output that is not dense.
    """

    def __init__(
        self,
        model: nn.Module,
        label: int | Tensor,
        region: Tensor | None = None,
        score: str = "logit",
        *,
        call: Caller | None = None,
    ) -> None:
        super().__init__()
        self.model = called(check_model(model), call)
        self.score = check_option("score", score, SCORES)
        label = check_label(label)
        with torch.inference_mode(False):  # copies that autograd may keep, and nobody else writes to
            self.label = label.clone() if isinstance(label, Tensor) else label
            self.region = None if region is None else check_region(region).clone()
        self.readout = Readout(score)
        self.training = model.training
        self._predicted = region is None
        self._dtype: torch.dtype | None = None

    def freeze(self, images: Tensor, batch_size: int | None = None) -> "RegionTarget":
        """Check the target on these unperturbed images, NaN in the region too; the target itself comes back.

        A predicted region is found on them, anew if need be, and kept for whatever images come; so is their dtype, for
        captum's noise is float32.
        batch_size: images per forward pass; None: all.
        """
        region = self._checked(images, batch_size)[1]
        self.region = region if self._predicted else self.region
        self._dtype = images.dtype
        return self

    @torch.inference_mode(False)
    def arguments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Labels int64 (N,) and regions bool (N, H, W) of unperturbed images, for captum's `additional_forward_args`.

        A predicted region that no `freeze` has kept is that of these images, in one forward pass. ValueError for
        another number of images than there are labels or regions.
        """
        count = len(check_images(images))
        self._dtype = images.dtype
        if self.region is None:
            return self._checked(images)
        label = torch.full((count,), self.label) if isinstance(self.label, int) else self.label
        region = self.region.expand(count, -1, -1) if self.region.ndim == 2 else self.region
        if not len(label) == len(region) == count:
            expected = f"as many as there are labels ({len(label)}) and regions ({len(region)})"
            raise ValueError(complain("images", expected, f"{count} images", "Make a target for these."))
        return label.to(images.device), region.to(images.device)

    @torch.inference_mode(False)
    @torch.no_grad()
    def _checked(self, images: Tensor, batch_size: int | None = None) -> tuple[Tensor, Tensor]:
        """Labels (N,) and regions (N, H, W) of unperturbed images, held against the network's output for them."""
        images = check_images(images)
        given = None if self._predicted else self.region
        size = (images if given is None else given).shape[-2:]
        finite, predicted = [], []
        for part in images.split(len(images) if batch_size is None else check_integer("batch_size", batch_size, low=1)):
            logits = self._logits(part)
            full = logits_at(logits, size)
            finite.append(full.isfinite().all(1))
            if given is None:
                predicted.append(predicted_labels(full))
        output = logits.new_empty(()).expand(len(images), *logits.shape[1:])
        labels = labels_for(self.label, output)
        found = None
        if given is None:
            found = torch.cat(predicted)
            given = found == labels[:, None, None]
        region = region_for(given, output, labels, images.shape[-2:], predicted=found)
        check_finite("output", torch.where(torch.cat(finite), 0.0, torch.nan)[:, None], region)
        return labels, region

    def forward(self, images: Tensor, label: Tensor | None = None, region: Tensor | None = None) -> Tensor:
        """Scores (N,) of images (N, channels, H, W), for the label (N,) and region (N, H, W) of each row, if given."""
        if (label is None) != (region is None):
            came = f"no {'label' if label is None else 'region'}"
            raise TypeError(complain("label, region", "both, or neither", came, "Pass what `arguments` gives."))
        if label is None or region is None:
            label, region = self._same_for_all(len(images))
        if self._dtype is not None:  # captum's noise is float32, whatever the images are
            images = images.to(self._dtype)
        logits = self._logits(images)
        label = labels_for(check_label(label), logits)
        region = check_region(region.to(torch.bool))  # captum's LRP adds 0 to it
        region = region_for(region, logits, label, images.shape[-2:])
        return self.readout(logits, label=label, region=region)

    def _same_for_all(self, count: int) -> tuple[Tensor, Tensor]:
        if self.region is None:
            expected, came = "one that is fixed", "None, and no images that it is predicted on"
            remedy = "Call target.freeze(images) with the unperturbed images, or pass " + _ARGUMENTS
            raise ValueError(complain("region", expected, came, remedy))
        labels, regions = (1 if isinstance(self.label, int) else len(self.label)), self.region.shape[:-2].numel()
        if labels != 1 or regions != 1:
            came = f"{labels} labels and {regions} regions, and no word on which row has which"
            remedy = f"Pass {_ARGUMENTS}, which captum copies together with the images."
            raise ValueError(complain("label, region", "one of each for all rows", came, remedy))
        return torch.full((count,), int(self.label)), self.region.expand(count, -1, -1)

    def _logits(self, images: Tensor) -> Tensor:
        with borrowed(self.model, gradients=True):
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


def region_scores(logits: Tensor, labels: Tensor, region: Tensor, score: str) -> Tensor:
    """The scores (N,) of `RegionTarget`: logits (N, C, h, w), labels int64 (N,), region bool (N, H, W)."""
    logits = class_logits(logits)
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
