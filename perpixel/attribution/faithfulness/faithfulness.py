"""Does the network rest on what an attribution shows? Perturbation curves and sanity checks in one call."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from perpixel.attribution.baselines import Baselines, baseline_images
from perpixel.attribution.captum.explain_again import Again, explainer_of
from perpixel.attribution.faithfulness.baselines import Completeness, baseline_sensitivity, completeness
from perpixel.attribution.faithfulness.curves import Cells, Curve, removal_curves
from perpixel.attribution.faithfulness.infidelity import infidelity, sensitivity
from perpixel.attribution.faithfulness.object_alone import alone, context_of
from perpixel.attribution.faithfulness.randomised_weights import randomised_weights
from perpixel.attribution.faithfulness.region_scores import RegionScores
from perpixel.attribution.faithfulness.result import Faithfulness
from perpixel.attribution.inputs import SCORES, check_images, check_label
from perpixel.attribution.measures.context import Attribution, context_share, distances
from perpixel.attribution.measures.evidence import as_map, as_mass
from perpixel.borrow import borrowed
from perpixel.checks import check_flag, check_integer, check_option, complain


def faithfulness(
    model: nn.Module,
    images: Tensor,
    attribution: Attribution | Tensor,
    label: int | Tensor | None = None,
    *,
    region: Tensor | None = None,
    score: str | None = None,
    steps: int = 20,
    patch: int | tuple[int, int] | None = None,
    baselines: Baselines = "mean",
    seeds: int | Iterable[int] = 5,
    batch_size: int = 16,
    freeze_object: bool = True,
    exclude_border: float = 0,
    explainer: Callable[..., Tensor | Attribution] | str | None = None,
    stages: int = 5,
    compare_baselines: Sequence[Baselines] = ("zero", "mean", "blur"),
    samples: int = 0,
) -> Faithfulness:
    """Test an attribution against the network itself: `Faithfulness`, with `.summary()` and `.to_dict()`.

    Curves: pixels are replaced by the baseline, highest value first (deletion), or put back into it (insertion), and
    one forward pass per picture gives the region's mean logit and margin and the IoU of the label's mask with the
    unperturbed one. Only the order of the values counts. (Petsiuk et al. 2018, arXiv 1806.07421.)

    attribution: what `explain` gave, or signed values, float (N, C, H, W) (summed over C) or (N, H, W).
    label, region, score: as for `RegionTarget`; by default those of the attribution. A region must be at image size,
        or at that of the output.
    steps: points of a curve after the first. patch: remove squares (or (height, width)) of a grid, ranked by summed
        value; None: single pixels, whose random removal is noise rather than missing context. baselines: as for
        `explain`; "mean" hides colours, which "blur" keeps. seeds: random orders, a number or the seeds.
    freeze_object: the region, and `exclude_border` pixels around it, never change; only context is removed. Without,
        everything is. batch_size: pictures per forward pass.
    explainer: `explainer(network, images) -> values` (or an `Attribution`), or the name of a method of `explain`; by
        default that of the attribution. Needed for the randomised-weights check, at `stages` resets (0: skip), and for
        the comparison of baselines (empty: skip), for which a callable must take `baselines=`, images. Plain values
        without it: neither is run.
    samples: draws for captum's infidelity and, with an explainer, sensitivity_max; 0: skip.

    Passes per image: (2 · orders + seeds) · (steps - 1) + seeds + 5, orders being up to 3 (`Faithfulness.deletion`),
    and what the explainer needs. Model and inputs come back as they were. ValueError or TypeError, naming argument and
    remedy, for unknown labels, scores or methods, empty regions, other sizes, NaN, a frozen region without context.
    """
    images = check_images(images)
    numbers = _seeds(seeds)
    settings = _Settings(
        size=_patch(patch, images),
        steps=check_integer("steps", steps, low=1),
        seeds=numbers,
        batch_size=check_integer("batch_size", batch_size, low=1),
        stages=check_integer("stages", stages, low=0),
        compared=tuple(compare_baselines),
        samples=check_integer("samples", samples, low=0),
    )
    check_flag("freeze_object", freeze_object)
    label, region, score = _explained(attribution, label, region, score)
    values = as_map("attribution", attribution, (len(images), *images.shape[-2:])).to(images.device)
    baseline = baseline_images(baselines, images)
    with borrowed(_network(model), gradients=True, restore_all=True):
        scores = RegionScores(model, images, label, region, batch_size)
        _check_margin(score, scores)
        context = context_of(scores.region, exclude_border)
        cells = Cells.of(settings.size, context if freeze_object else torch.ones_like(context))
        again = explainer_of(explainer, attribution, scores.label, scores.region, score)
        found = _repeated(model, images, cells.removable, again, settings)
        reset = None if found["randomised"] is None else found["randomised"].reset
        orders = {"attribution": values} if reset is None else {"attribution": values, "reset network": reset}
        found |= _curves(images, orders, baseline, scores, cells, settings)
        found["object_alone"] = alone(images, baseline, scores, context, numbers, batch_size)
        found["completeness"] = _completeness(attribution, values, images, baseline, scores, score)
        if samples:
            found["infidelity"] = infidelity(model, images, values, baseline, scores, cells, score, samples, batch_size)
    mass = as_mass("attribution", attribution).to(images.device)
    left = None if found["randomised"] is None else found["randomised"].reset_mass
    for name, each in (("share", mass), ("area", torch.ones_like(mass)), ("share_reset", left)):
        share = None if each is None else context_share(each, scores.region, exclude_border=exclude_border)
        found[f"context_{name}"] = share
    return Faithfulness(
        label=scores.label,
        region=scores.region,
        score=score,
        baselines=baselines if isinstance(baselines, str) else "own",
        patch=settings.size,
        freeze_object=freeze_object,
        exclude_border=float(exclude_border),
        seeds=numbers,
        **found,
    )


@dataclass(frozen=True)
class _Settings:
    size: tuple[int, int]
    steps: int
    seeds: tuple[int, ...]
    batch_size: int
    stages: int
    compared: tuple[Baselines, ...]
    samples: int


def _curves(
    images: Tensor,
    orders: dict[str, Tensor],
    baseline: Tensor,
    scores: RegionScores,
    cells: Cells,
    settings: _Settings,
) -> dict[str, Curve]:
    """Deletion and insertion along the maps (N, H, W) of `orders`, and from near to far where the object stays."""
    ranked = {name: cells.total(each) for name, each in orders.items()}
    if not bool((cells.removable & scores.region).any()):
        ranked["nearest first"] = -cells.mean(distances(scores.region).to(images.device))
    how: dict[str, Any] = {"steps": settings.steps, "seeds": settings.seeds, "batch_size": settings.batch_size}
    deletion, insertion = removal_curves(images, baseline, ranked, cells, scores, names=scores.names, **how)
    for curve in (deletion, insertion):
        if not all(bool(torch.isfinite(held["logit"]).all()) for held in (curve.scores, curve.random)):
            came = f"NaN or infinity in the {curve.kind} curve"
            raise ValueError(complain("model", "finite logits for perturbed images", came, "Try another baseline."))
    return {"deletion": deletion, "insertion": insertion}


def _repeated(
    model: nn.Module, images: Tensor, where: Tensor, again: Again | None, settings: _Settings
) -> dict[str, Any]:
    """The checks that explain again; `where`: the pixels that count."""
    found: dict[str, Any] = {"randomised": None, "baseline_sensitivity": None, "sensitivity": None}
    if again is None:
        return found
    if settings.stages:
        found["randomised"] = randomised_weights(model, images, again.call, stages=settings.stages, where=where)
    if settings.compared and again.takes_baselines:
        compared = settings.compared
        found["baseline_sensitivity"] = baseline_sensitivity(
            model, images, again.with_baseline, baselines=compared, where=where
        )
    if settings.samples:
        found["sensitivity"] = sensitivity(model, images, again.call, settings.samples)
    return found


def _explained(
    attribution: Attribution | Tensor, label: int | Tensor | None, region: Tensor | None, score: str | None
) -> tuple[int | Tensor, Tensor | None, str]:
    """Label, region and score: as given, else those that were explained."""
    if isinstance(attribution, Attribution):
        if label is not None and _each(label, attribution) != _each(attribution.label, attribution):
            remedy = "Leave label out, or pass attribution.values to test them for another label."
            raise ValueError(complain("label", f"the label explained, {attribution.label}", label, remedy))
        label = attribution.label
        region = attribution.region if region is None else region
        score = attribution.score if score is None else score
    if label is None:
        raise ValueError(complain("label", "the label that plain values explain", "None", "Pass label=."))
    return label, region, check_option("score", "logit" if score is None else score, SCORES)


def _completeness(
    attribution: Attribution | Tensor,
    values: Tensor,
    images: Tensor,
    baseline: Tensor,
    scores: RegionScores,
    score: str,
) -> Completeness | None:
    """As `explain` found for its own baseline, if the method promises a sum; plain values: for the one at hand."""
    if isinstance(attribution, Attribution):
        if attribution.delta is None or attribution.layer is not None:
            return None
        total = values.sum((1, 2))
        return Completeness(total, total - attribution.delta.to(total))
    return completeness(values, images, baseline, scores, score)


def _each(label: int | Tensor, attribution: Attribution) -> list[int]:
    checked = check_label(label)
    return [checked] * len(attribution.values) if isinstance(checked, int) else checked.tolist()


def _network(model: nn.Module) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise TypeError(complain("model", "a torch.nn.Module", model, "Pass the network itself."))
    return model


def _check_margin(score: str, scores: RegionScores) -> None:
    if score == "margin" and bool(scores.before[:, scores.names.index("margin")].isnan().any()):
        raise ValueError(complain("score", "'logit' for a network of one class", "'margin'", "It has no other class."))


def _patch(patch: int | tuple[int, int] | None, images: Tensor) -> tuple[int, int]:
    if patch is None:
        return (1, 1)
    if isinstance(patch, (tuple, list)):
        if len(patch) != 2:
            raise ValueError(complain("patch", "an integer, (height, width) or None", patch, "Pass two integers."))
        height, width = patch
    else:
        height = width = patch
    sides = zip((height, width), images.shape[-2:])
    first, second = (check_integer("patch", side, low=1, high=limit) for side, limit in sides)
    return first, second


def _seeds(seeds: int | Iterable[int]) -> tuple[int, ...]:
    if isinstance(seeds, Iterable):
        numbers = tuple(check_integer("seeds", seed, low=0) for seed in seeds)
    else:
        numbers = tuple(range(check_integer("seeds", seeds, low=1)))
    if not numbers:
        raise ValueError(complain("seeds", "at least one", "none", "Pass a number of random orders."))
    return numbers
