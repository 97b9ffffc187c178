"""What becomes of an object when its discriminative part is hidden: measured, and drawn (Ganeshan 2017, 2.4)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from perpixel.borrow import borrowed, dtype_of, unwrap
from perpixel.checks import check_integer, check_same_device, check_tensor, complain
from perpixel.fixations import FixationRules
from perpixel.fixations.options import FixationOptions, K, Shift
from perpixel.outputs import check_labels, class_logits, dense_logits, logits_at, predicted_labels
from perpixel.report.charts.salient_parts import salient_sheet
from perpixel.report.theme import Figure
from perpixel.weighting.regions import Fill, Region, Regions, activation
from perpixel.weighting.weight_map import check_label_size


@dataclass(frozen=True)
class SalientParts:
    """M objects, each with and without its discriminative region; every tensor is at the size (H, W) of the labels.

    image, label: int64 (M,), which images and labels the objects are. labels: int64 (N, H, W) as given.
    region, rest: bool (M, H, W), what was hidden, and the object's pixels outside it.
    segmentation, without: int64 (M, H, W), the labels found with the region and without it.
    before, after: float (M, H, W), the activation (logit) of the object's label with and without the region.
    pictures, hidden: float (M, channels, h, w), the images as given, and without the region.
    """

    image: Tensor
    label: Tensor
    labels: Tensor
    region: Tensor
    rest: Tensor
    segmentation: Tensor
    without: Tensor
    before: Tensor
    after: Tensor
    pictures: Tensor
    hidden: Tensor
    ignore_index: int

    def __len__(self) -> int:
        return len(self.label)

    @property
    def lost(self) -> Tensor:
        """Activation the rest of the object lost, float (M,): the mean of before − after; NaN without a rest."""
        return _mean(self.before - self.after, self.rest)

    @property
    def held(self) -> Tensor:
        """Activation of the rest of the object before, float (M,): what `lost` is to be compared with."""
        return _mean(self.before, self.rest)

    @property
    def gained(self) -> Tensor:
        """Activation of the label that came up elsewhere, float (M,): the mean of max(0, after − before) there.

        Elsewhere are the valid pixels that are neither of the object nor hidden; NaN without any.
        """
        elsewhere = self._valid & ~self.rest & ~self.region & ~self._of_label(self._truth)
        return _mean((self.after - self.before).clamp(min=0), elsewhere)

    @property
    def kept(self) -> Tensor:
        """Share of the rest's pixels found to be of the label before that still are, float (M,); NaN without any."""
        return _mean(self._of_label(self.without).to(self.before.dtype), self.rest & self._of_label(self.segmentation))

    @property
    def iou_before(self) -> Tensor:
        """Intersection over union of the label at the valid pixels outside the region, float (M,)."""
        return self._iou(self.segmentation)

    @property
    def iou_after(self) -> Tensor:
        """The same, without the region."""
        return self._iou(self.without)

    def rows(self) -> list[dict[str, float]]:
        """One row of numbers per object, for a table: image, label, pixels, and the six measures."""
        pixels = {f"{name}_pixels": getattr(self, name).flatten(1).sum(1) for name in ("region", "rest")}
        measures = ("held", "lost", "gained", "kept", "iou_before", "iou_after")
        numbers = {"image": self.image, "label": self.label, **pixels}
        numbers |= {name: getattr(self, name) for name in measures}
        columns = [values.tolist() for values in numbers.values()]
        return [dict(zip(numbers, row)) for row in zip(*columns)]

    def figure(
        self,
        *,
        classes: Sequence[str] | None = None,
        colors: Tensor | None = None,
        pictures: Tensor | None = None,
        title: str = "",
    ) -> Figure:
        """A matplotlib figure, a row per object: image, labels found, and change of the activation, region outlined.

        classes: names; colors: uint8 (C, 3). pictures: float (N, 3, h, w) in [0, 1] to show in place of normalised
        images; without it, values outside [0, 1] are stretched.
        """
        return salient_sheet(
            _shown(self.pictures if pictures is None else pictures[self.image]),
            self.region,
            [self.segmentation, self.without],
            self.after - self.before,
            self._of_label(self._truth),
            rows=self.rows(),
            classes=classes,
            colors=colors,
            title=title,
        )

    @property
    def _truth(self) -> Tensor:
        return self.labels[self.image]

    @property
    def _valid(self) -> Tensor:
        return self._truth != self.ignore_index

    def _of_label(self, labels: Tensor) -> Tensor:
        """Where a map (M, H, W) shows the label of its object."""
        return labels == self.label[:, None, None]

    def _iou(self, predicted: Tensor) -> Tensor:
        counted = self._valid & ~self.region
        true, positive = self._of_label(self._truth) & counted, self._of_label(predicted) & counted
        both, either = (mask.flatten(1).sum(1).to(self.before.dtype) for mask in (true & positive, true | positive))
        return both / either


def salient_parts(
    model: nn.Module,
    images: Tensor,
    labels: Tensor | None = None,
    *,
    label: int | None = None,
    region: Region = "activation",
    share: float = 0.1,
    fill: Fill = "mean",
    cell: int = 16,
    candidates: int = 4,
    rules: str | FixationRules = "modern",
    k: K = 1,
    shift: Shift = "partial",
    ignore_index: int = 255,
) -> SalientParts:
    """Hide the discriminative region of one object after the other, and see what becomes of the rest of it.

    An object is the pixels of one label in one image. Each costs one pass without gradients (and what its region
    costs, see `DiscriminativeRegionLoss`) over its image, in evaluation mode; the model is left as it was.

    images: float (N, channels, H, W) or one image (channels, H, W). labels: int (N, H', W') or (H', W'), at the size of
        the images or of the model's output; None for the labels the model finds. label: the one whose objects to
        examine; None for every label of every image.
    region, share, fill, cell, candidates, rules, k, shift: as in `DiscriminativeRegionLoss`.

    TypeError or ValueError for unfit arguments, or where no pixel has the label. Ganeshan 2017, experiment 2.4.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(complain("model", "a torch.nn.Module", model, "Pass the network itself."))
    ignore_index = check_integer("ignore_index", ignore_index)
    regions = Regions(region, share, fill, cell, candidates, FixationOptions(rules, k, shift))
    if isinstance(images, Tensor) and images.ndim == 3:
        images = images[None]
        labels = labels[None] if isinstance(labels, Tensor) and labels.ndim == 2 else labels
    check_tensor("images", images, ndim=4, shape="(N, channels, H, W) or (channels, H, W)", floating=True)
    model = unwrap(model)
    with borrowed(model, images.device):
        images = images.detach().to(dtype_of(model, images))
        own = dense_logits(model(images))
        logits = class_logits(own)
        if labels is None:
            labels = predicted_labels(own)
        check_same_device(images=images, logits=logits)
        labels = check_labels(labels, own, ignore_index, values=True)
        check_label_size(labels, images, logits)
        objects = _objects(labels, label, logits.shape[1], ignore_index)
        examined = []
        for i, c in objects:
            image, own, truth = (given[i : i + 1] for given in (images, logits, labels))
            examined.append(_examine(model, image, own, truth, c, regions))
    where = torch.tensor(objects, device=labels.device)
    parts = {name: torch.cat([one[name] for one in examined]) for name in examined[0]}
    return SalientParts(where[:, 0], where[:, 1], labels, **parts, ignore_index=ignore_index)


def _objects(labels: Tensor, label: int | None, classes: int, ignore_index: int) -> list[tuple[int, int]]:
    present = [(i, c) for i, one in enumerate(labels) for c in one.unique().tolist() if c != ignore_index]
    if label is not None:
        label = check_integer("label", label, low=0, high=classes - 1)
        present = [(i, c) for i, c in present if c == label]
    if not present:
        which = "a label" if label is None else f"label {label}"
        raise ValueError(complain("labels", f"pixels of {which}", "none", "Pass images that show it."))
    return present


def _examine(
    model: nn.Module, image: Tensor, logits: Tensor, labels: Tensor, label: int, regions: Regions
) -> dict[str, Tensor]:
    counted = labels == label
    region = regions.find(model, image, logits, labels, counted)
    hidden = regions.hide(image, region)
    without = class_logits(dense_logits(model(hidden)))
    everywhere, size = torch.full_like(labels, label), labels.shape[-2:]
    return {
        "region": region,
        "rest": counted & ~region,
        "segmentation": logits_at(logits, size).argmax(1),
        "without": logits_at(without, size).argmax(1),
        "before": activation(logits, everywhere),
        "after": activation(without, everywhere),
        "pictures": image,
        "hidden": hidden,
    }


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, values, 0.0).flatten(1).sum(1) / mask.flatten(1).sum(1)


def _shown(pictures: Tensor) -> Tensor:
    """Pictures that can be drawn: three channels, in [0, 1]."""
    shown = pictures.detach().float()
    if shown.shape[1] != 3:
        shown = shown.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    low, high = shown.amin((1, 2, 3), keepdim=True), shown.amax((1, 2, 3), keepdim=True)
    outside = (low < 0) | (high > 1)
    return torch.where(outside, (shown - low) / (high - low).clamp(min=1e-12), shown)
