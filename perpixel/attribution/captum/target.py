"""One number per image out of a dense prediction: what captum is to explain."""

import torch
from torch import Tensor, nn

from perpixel.attribution.captum.calls import CaptumCall
from perpixel.borrow import borrowed
from perpixel.checks import check_finite, check_integer, check_option, check_tensor, complain
from perpixel.outputs import dense_logits, logits_at

SCORES = ("logit", "margin")


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
        images captum was given (not on what it made of them), and kept; other images want a new target.

    captum copies and mixes the rows of a batch. Given `additional_forward_args=target.arguments(images)`, it copies
    labels and regions with them; without, the target reads the order off captum's call, and raises ValueError where
    it cannot. ValueError or TypeError also for an unknown label or score, an empty region (naming the image), a region
    of another size, an output that is not dense, and NaN in the region.
    """

    def __init__(
        self, model: nn.Module, label: int | Tensor, region: Tensor | None = None, score: str = "logit"
    ) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise TypeError(complain("model", "a torch.nn.Module", model, "Pass the network itself."))
        self.score = check_option("score", score, SCORES)
        self.label = check_label(label)
        self.region = None if region is None else check_region(region)
        self.model = model
        self.readout = Readout(score)
        self.training = model.training
        self._given = self.region
        self._alike = isinstance(self.label, int) and region is not None and region.ndim == 2
        self._frozen: tuple[Tensor, Tensor] | None = None
        self._dtype = torch.float32

    def freeze(self, images: Tensor) -> "RegionTarget":
        """Fix labels and regions, anew if need be, for these unperturbed images; the target itself comes back."""
        self._freeze(images)
        return self

    @torch.inference_mode(False)
    @torch.no_grad()
    def _freeze(self, images: Tensor) -> tuple[Tensor, Tensor]:
        images = check_images(images)
        logits = self._logits(images, captum_hooks=False)
        labels = labels_for(self.label, logits)
        region = region_for(self._given, logits, labels, images.shape[-2:])
        if self.score == "margin" and logits.shape[1] < 2:
            raise ValueError(
                complain("score", "'logit' for a network of one class", "'margin'", "It has no other class.")
            )
        check_finite("output", logits_at(logits, region.shape[-2:]), region)
        labels, region = (t.clone() if t.is_inference() else t for t in (labels, region))  # autograd wants to keep them
        self._frozen, self._dtype = (labels, region), images.dtype
        self.region = region[0] if self._alike else region
        return self._frozen

    def arguments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Labels int64 (N,) and regions bool (N, H, W), frozen if not yet, for captum's `additional_forward_args`."""
        labels, region = self._frozen or self._freeze(images)
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
        call = CaptumCall()
        labels, region = self._frozen or self._freeze(images if call.images is None else call.images)
        if self._alike or len(labels) == 1:
            return labels[:1].expand(len(images)), region[:1].expand(len(images), -1, -1)
        examples = call.examples(len(labels), images).to(labels.device)
        return labels[examples], region[examples]

    def _logits(self, images: Tensor, captum_hooks: bool = True) -> Tensor:
        with borrowed(self.model, gradients=True, captum_hooks=captum_hooks):
            return dense(self.model(images), images)

    def extra_repr(self) -> str:
        label = self.label if isinstance(self.label, int) else self.label.tolist()
        return (
            f"label={label}, score={self.score!r}, region={None if self.region is None else tuple(self.region.shape)}"
        )


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


def check_images(images: object) -> Tensor:
    """`images`, detached, if they are float (N, channels, H, W) and not empty, else TypeError or ValueError."""
    images = check_tensor("images", images, ndim=4, shape="(N, channels, H, W)", floating=True).detach()
    if images.numel() == 0:
        raise ValueError(complain("images", "at least one image with pixels", images, "Skip empty batches."))
    return images


def check_label(label: object) -> int | Tensor:
    """`label` as an int, or as int64 (N,), else TypeError or ValueError."""
    if isinstance(label, (list, tuple)):
        label = torch.as_tensor(label)
    if not isinstance(label, Tensor) or (label.ndim == 0 and label.dtype != torch.bool):
        return check_integer("label", label, low=0)
    label = check_tensor("label", label, ndim=1, shape="(N,), one label per image", floating=False)
    if label.numel() and int(label.min()) < 0:
        raise ValueError(complain("label", "class numbers", int(label.min()), "Count the classes from 0."))
    return label.detach().long()


def check_region(region: object) -> Tensor:
    """`region` if it is bool (N, H, W) or (H, W), else TypeError or ValueError."""
    expected = "a bool tensor (N, H, W) or (H, W)"
    if not isinstance(region, Tensor) or region.dtype != torch.bool:
        remedy = "Pass labels == label, or None for where the label is predicted."
        raise TypeError(complain("region", expected, region, remedy))
    if region.ndim not in (2, 3):
        remedy = "Use region[:, 0]." if region.ndim == 4 and region.shape[1] == 1 else "One map per image."
        raise ValueError(complain("region", expected, region, remedy))
    return region.detach()


def labels_for(label: int | Tensor, logits: Tensor) -> Tensor:
    """`label` as int64 (N,) for the N images of `logits`; ValueError if the network has no such class."""
    count, classes = logits.shape[:2]
    labels = torch.full((count,), label) if isinstance(label, int) else label
    if len(labels) != count:
        remedy = "Pass one label per image, or an int for all."
        raise ValueError(complain("label", f"an int, or {count} ints for {count} images", labels, remedy))
    high = int(labels.max())
    if high >= classes:
        raise ValueError(complain("label", f"a class in [0, {classes})", high, "The network's output has no more."))
    return labels.to(logits.device)


def region_for(region: Tensor | None, logits: Tensor, labels: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """`region` as bool (N, H, W), not empty; None: where `logits` (N, C, h, w), at `size`, predict the label."""
    count, given = len(logits), region is not None
    if region is None:
        logits = logits_at(logits, size)
        predicted = (logits[:, 0] <= 0).long() if logits.shape[1] == 1 else logits.argmax(1)
        region = predicted == labels[:, None, None]
    elif tuple(region.shape[-2:]) not in {tuple(logits.shape[-2:]), tuple(size)}:
        expected = f"the output's size {tuple(logits.shape[-2:])} or the images' {tuple(size)}"
        raise ValueError(complain("region", expected, region, "Bring it there with nearest-neighbour interpolation."))
    if region.ndim == 2:
        region = region.expand(count, -1, -1)
    if len(region) != count:
        raise ValueError(complain("region", f"one map for each of {count} images", region, "Pass (N, H, W) or (H, W)."))
    region = region.to(logits.device)
    empty = (~region.flatten(1).any(1)).nonzero().flatten().tolist()
    if empty:
        came = f"none in image {empty[0]}" + (f" (nor in {len(empty) - 1} more)" if len(empty) > 1 else "")
        which = "" if given else f" The network predicts label {int(labels[empty[0]])} nowhere there."
        raise ValueError(complain("region", "at least one pixel per image", came, f"Leave the image out.{which}"))
    return region


def dense(output: object, images: Tensor) -> Tensor:
    """The logits (N, C, h, w) in a network's output for `images`; an error if it gives nothing dense for each."""
    try:
        logits = dense_logits(output)
    except (TypeError, ValueError) as error:
        expected = "a network that gives a logit map per class, (N, C, H, W)"
        came = f"nothing dense ({error})"
        raise type(error)(
            complain("model", expected, came, "A classifier labels no pixels: use captum as it is.")
        ) from None
    if len(logits) != len(images):
        came = f"{len(logits)} for {len(images)} images"
        raise ValueError(complain("output", "one logit map per image", came, "Return the maps of this very batch."))
    return logits
