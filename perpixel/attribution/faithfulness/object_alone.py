"""What a network says of an object when all around it is gone, beside a piece of the same shape elsewhere."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from perpixel.attribution.baselines import Baselines, baseline_images
from perpixel.attribution.faithfulness.curves import random_key
from perpixel.attribution.faithfulness.region_scores import RegionScores
from perpixel.attribution.inputs import check_images
from perpixel.attribution.measures.context import outside
from perpixel.borrow import Caller, called
from perpixel.checks import check_integer, complain

_OVERLAP = 0.1  # of the region may be seen in the control, or it is no control


@dataclass(frozen=True, eq=False)
class ObjectAlone:
    """Scores on the region with all context hidden: the object alone, and a same-shaped piece elsewhere alone.

    kept: (N,), share of the region that has the label, object alone; kept_before: (N,), in the image as it is.
    logit_drop, margin_drop: (N,), mean over the region, image minus object alone.
    kept_elsewhere: (S, N), share of the region that has the label while the object is hidden and a piece of the same
    shape, at a random place, is seen; NaN where no place keeps 90 % of the region hidden.
    """

    kept: Tensor
    kept_before: Tensor
    logit_drop: Tensor
    margin_drop: Tensor
    kept_elsewhere: Tensor


def object_alone(
    model: nn.Module,
    images: Tensor,
    label: int | Tensor,
    region: Tensor | None = None,
    *,
    exclude_border: float = 0,
    baselines: Baselines = "mean",
    seeds: int = 5,
    batch_size: int = 16,
    call: Caller | None = None,
) -> ObjectAlone:
    """Hide everything outside the region (and outside `exclude_border` pixels around it), and read the region again.

    Arguments as in `faithfulness`. The piece elsewhere is the region moved, around the picture's edges, to a place
    drawn among those that overlap it least.
    """
    images = check_images(images)
    count, batch = check_integer("seeds", seeds, low=1), check_integer("batch_size", batch_size, low=1)
    scores = RegionScores(called(model, call), images, label, region, baseline_images(baselines, images), batch)
    return alone(scores, context_of(scores.region, exclude_border), tuple(range(count)))


def alone(scores: RegionScores, context: Tensor, seeds: tuple[int, ...]) -> ObjectAlone:
    """`object_alone` for scores that are at hand; context: bool (N, H, W), what is hidden."""
    moved = [_elsewhere(scores.region, ~context, seed) for seed in seeds]
    hidden = torch.stack([context, *(~piece for piece, _ in moved)])
    jobs = torch.cartesian_prod(torch.arange(len(hidden)), torch.arange(len(context))).to(context.device)
    mask, image = jobs.unbind(1)
    found = scores.hiding(image, lambda rows: hidden[mask[rows], image[rows]], "object alone")
    found = found.view(*hidden.shape[:2], -1)
    kept = scores.column("kept")
    drop = scores.before - found[0]
    covered = torch.stack([little for _, little in moved])
    return ObjectAlone(
        kept=found[0, :, kept],
        kept_before=scores.before[:, kept],
        logit_drop=drop[:, scores.column("logit")],
        margin_drop=drop[:, scores.column("margin")],
        kept_elsewhere=torch.where(covered, found[1:, :, kept], torch.nan),
    )


def context_of(region: Tensor, exclude_border: float) -> Tensor:
    """Pixels farther from the region, bool (N, H, W), than `exclude_border` pixels; ValueError if that leaves none."""
    context = outside(region, exclude_border)
    if exclude_border >= 1 and not bool(context.flatten(1).any(1).all()):
        expected = "a border that leaves some context in every image"
        raise ValueError(complain("exclude_border", expected, exclude_border, "Make it narrower."))
    return context


def _elsewhere(region: Tensor, shape: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """`shape`, bool (N, H, W), rolled to where it covers least of the region; (N,), whether that is little enough."""
    size = region.shape[-2:]
    spectra = [torch.fft.rfft2(mask.float()) for mask in (region, shape)]
    overlap = torch.fft.irfft2(spectra[0] * spectra[1].conj(), s=tuple(size)).round().flatten(1)
    key = random_key(overlap.shape[1], seed, region.device)
    least = overlap.amin(1, keepdim=True)
    place = torch.where(overlap == least, key, -1.0).argmax(1)
    rolled = [mask.roll((int(at) // size[1], int(at) % size[1]), (0, 1)) for mask, at in zip(shape, place.tolist())]
    return torch.stack(rolled), least[:, 0] <= _OVERLAP * region.flatten(1).sum(1)
