"""captum's infidelity and sensitivity for the label of a region, each with something to compare it with."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from perpixel.attribution.captum.target import RegionTarget
from perpixel.attribution.faithfulness.curves import Cells, random_key
from perpixel.attribution.faithfulness.explainer import Explainer
from perpixel.attribution.faithfulness.region_scores import RegionScores
from perpixel.attribution.measures.evidence import as_map
from perpixel.borrow import random_numbers

NOISE = 0.02  # half width of the noise for the sensitivity, in standard deviations of the image


@dataclass(frozen=True, eq=False)
class Infidelity:
    """How badly sums of values predict what removing pixels costs; unlike a curve, it asks for their size too.

    value: (N,), min over b of E[(b · Σ_{p removed} v_p - (score - score without p))²] / E[(score - score without p)²],
    over random sets of patches: 0 = the values predict the cost, but for one factor; 1 = no better than no values.
    shuffled: (N,), the same for the patches' values in random order. NaN where removing costs nothing.
    captum.metrics.infidelity, normalised; Yeh et al. 2019 (arXiv 1901.09392).
    """

    value: Tensor
    shuffled: Tensor


def infidelity(values: Tensor, scores: RegionScores, cells: Cells, score: str, samples: int) -> Infidelity:
    """Infidelity of a map (N, H, W), from `samples` random sets of cells replaced by the baseline."""
    batches = torch.arange(len(values), device=values.device).split(scores.batch)
    parts = [_infidelity(values, scores, cells, score, samples, rows) for rows in batches]
    return Infidelity(*(torch.cat(found) for found in zip(*parts)))


def _infidelity(
    values: Tensor, scores: RegionScores, cells: Cells, score: str, samples: int, rows: Tensor
) -> tuple[Tensor, Tensor]:
    """Value and control of the images `rows` (B,): each (B,)."""
    from captum.metrics import infidelity as captum_infidelity

    images, baseline, values = scores.images[rows], scores.baseline[rows], values[rows]
    cells = Cells(cells.number, cells.count, cells.removable[rows])
    units = cells.used.sum(1)
    target = RegionTarget(scores.model, scores.label[rows], scores.region[rows], score)

    def measured(worth: Tensor, normalize: bool) -> Tensor:
        done = 0

        def removed(inputs: Tensor) -> tuple[Tensor, Tensor]:
            nonlocal done
            each = len(inputs) // len(images)  # captum repeats every image that often, one after the other
            seeds = range(done, done + each)
            ranks = torch.stack([cells.rank(_key(cells, seed, images)) for seed in seeds], 1)
            share = torch.stack([random_key(1, seed, images.device) for seed in seeds], 1)
            gone = ranks < 1 + ((units[:, None] - 1) * share).round()[:, :, None]  # (N, each, cells)
            done += each
            mask = gone.flatten(0, 1)[:, cells.number.flatten()].view(len(inputs), 1, *images.shape[-2:])
            mask = mask & cells.removable.repeat_interleave(each, 0)[:, None]
            perturbed = torch.where(mask, baseline.repeat_interleave(each, 0), inputs)
            return mask.expand_as(inputs).to(worth.dtype) / inputs.shape[1], perturbed

        return captum_infidelity(
            target,
            removed,
            images,
            worth[:, None].expand(-1, images.shape[1], -1, -1),
            additional_forward_args=target.arguments(images),
            n_perturb_samples=samples,
            max_examples_per_batch=len(images) * min(samples, max(1, scores.batch // len(images))),
            normalize=normalize,
        ).double()

    with torch.no_grad():
        cost = measured(torch.zeros_like(values), normalize=False)
        cost = torch.where(cost > 0, cost, torch.nan)
        return measured(values, True) / cost, measured(_shuffled(values, cells), True) / cost


def _key(cells: Cells, seed: int, images: Tensor) -> Tensor:
    return random_key(cells.count, seed, images.device).expand(len(images), -1)


def _shuffled(values: Tensor, cells: Cells) -> Tensor:
    """The removable cells' totals in random order, each spread evenly over the pixels of its new cell."""
    totals, size = cells.total(values), cells.total(cells.removable.to(values.dtype))
    place = cells.rank(_key(cells, 0, values)).argsort(1)  # used cells in random order, the others behind
    moved = torch.zeros_like(totals)
    first = cells.used.to(torch.int8).argsort(dim=1, descending=True, stable=True)
    moved.scatter_(1, first, totals.gather(1, place))
    return (moved / size.clamp(min=1))[:, cells.number.flatten()].view_as(values) * cells.removable


def sensitivity(model: nn.Module, images: Tensor, explainer: Explainer, samples: int, seed: int = 0) -> Tensor:
    """max over noisy images of |values(noisy) - values| / |values|: (N,), captum.metrics.sensitivity_max.

    The noise is uniform, 2 % of each image's standard deviation either way. Stable is not the same as true: a map that
    ignores the network is perfectly stable.
    """
    from captum.metrics import sensitivity_max

    def noisy(inputs: Tensor) -> Tensor:
        width = NOISE * inputs.std((1, 2, 3), keepdim=True)
        return inputs + width * (2 * torch.rand_like(inputs) - 1)

    def values(inputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor]:
        given = inputs if isinstance(inputs, Tensor) else inputs[0]
        with torch.enable_grad():
            found = explainer(model, given.detach().clone())
        return (as_map("explainer", found, (len(given), *given.shape[-2:])),)

    with torch.inference_mode(False), random_numbers(images.device, seed):
        found = sensitivity_max(
            values, images.clone(), noisy, n_perturb_samples=samples, max_examples_per_batch=len(images)
        )
    return found.detach().double()
