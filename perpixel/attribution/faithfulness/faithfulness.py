"""Does the network rest on what an attribution shows? Perturbation curves and sanity checks in one call."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from perpixel.attribution.baselines import Baselines, baseline_images
from perpixel.attribution.faithfulness.baselines import Completeness, baseline_sensitivity, completeness
from perpixel.attribution.faithfulness.curves import Cells, Curve, removal_curves
from perpixel.attribution.faithfulness.explainer import Explainer, explainer_of, takes_baselines
from perpixel.attribution.faithfulness.infidelity import infidelity, sensitivity
from perpixel.attribution.faithfulness.object_alone import alone, context_of
from perpixel.attribution.faithfulness.randomised_weights import randomised_weights
from perpixel.attribution.faithfulness.region_scores import RegionScores
from perpixel.attribution.faithfulness.result import Faithfulness
from perpixel.attribution.inputs import SCORES, check_images, check_label, check_model
from perpixel.attribution.measures.context import Attribution, context_share, distances
from perpixel.attribution.measures.evidence import as_map, as_mass
from perpixel.borrow import Caller, borrowed, called
from perpixel.checks import check_flag, check_integer, check_option, complain
from perpixel.reduction import fingerprint


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
    explainer: Explainer | str | None = None,
    stages: int = 5,
    compare_baselines: Sequence[Baselines] = ("zero", "mean", "blur"),
    samples: int = 0,
    show_progress: bool = False,
    call: Caller | None = None,
) -> Faithfulness:
    """Test an attribution against the network itself: `Faithfulness`, with `.summary()` and `.to_dict()`.

    Curves: pixels are replaced by the baseline, highest value first (deletion), or put back into it (insertion), and
    one forward pass per picture gives the region's mean logit and margin and the IoU of the label's mask with the
    unperturbed one. Only the order of the values counts. (Petsiuk et al. 2018, arXiv 1806.07421.)

    attribution: what `explain` gave, or signed values, float (N, C, H, W) (summed over C) or (N, H, W).
    label, region, score, call: as for `RegionTarget`; the first three by default those of the attribution. A region
        must be at image size, or at that of the output.
    steps: points of a curve after the first. patch: remove squares (or (height, width)) of a grid, ranked by summed
        value; None: single pixels, whose random removal is noise rather than missing context. baselines: as for
        `explain`; "mean" hides colours, which "blur" keeps. seeds: random orders, a number or the seeds.
    freeze_object: the region, and `exclude_border` pixels around it, never change; only context is removed. Without,
        everything is. batch_size: pictures per forward pass, but for those of the explainer, which knows its own, and
        for the statistics of batch norms that are reset: these are of all images at once.
    explainer: `explainer(network, images) -> values` (or an `Attribution`), or the name of a method of `explain`; by
        default that of the attribution. Needed for the randomised-weights check, at `stages` resets (0: skip), and for
        the comparison of baselines (`compare_baselines`; empty: skip), for which a callable must take `baselines=`,
        images. Plain values without it: neither is run.
    samples: draws for captum's infidelity and, with an explainer, sensitivity_max; 0: skip.
    show_progress: a bar on the standard error for each of the checks that take long.

    Passes per image: (2 · orders + seeds) · (steps - 1) + seeds + 5, orders being up to 3 (`Faithfulness.deletion`),
    and what the explainer needs. Model and inputs come back as they were. ValueError or TypeError, naming argument and
    remedy, for unknown labels, scores or methods, empty regions, other sizes, NaN, a frozen region without context.
    """
    model, images = called(check_model(model), call), check_images(images)
    numbers = {"steps": (steps, 1), "batch_size": (batch_size, 1), "stages": (stages, 0), "samples": (samples, 0)}
    for name, (number, low) in numbers.items():
        check_integer(name, number, low=low)
    check_flag("freeze_object", freeze_object)
    check_flag("show_progress", show_progress)
    drawn, cell = _seeds(seeds), _cell(patch, images)
    label, region, score = _question(attribution, label, region, score)
    values = as_map("attribution", attribution, (len(images), *images.shape[-2:])).to(images.device)
    _check_images_explained(attribution, images)
    baseline = baseline_images(baselines, images)
    with borrowed(model, gradients=True, restore_all=True):
        scores = RegionScores(model, images, label, region, baseline, batch_size, show_progress)
        context = context_of(scores.region, exclude_border)
        cells = Cells.of(cell, context if freeze_object else torch.ones_like(context))
        explainer = explainer_of(explainer, attribution, scores.label, scores.region, score)
        found: dict[str, Any] = {}
        if explainer is not None:
            found = _explainer_checks(explainer, scores, cells, stages, tuple(compare_baselines), samples)
        orders = {"attribution": values}
        mass = as_mass("attribution", attribution).to(images.device)
        masses = {"share": mass, "area": torch.ones_like(mass)}
        if "randomised" in found:
            orders["reset network"] = found["randomised"].reset
            masses["share_reset"] = found["randomised"].reset_mass
        found |= _curves(orders, scores, cells, steps, drawn)
        found["object_alone"] = alone(scores, context, drawn)
        found["completeness"] = _completeness(attribution, values, scores, score)
        if samples:
            found["infidelity"] = infidelity(values, scores, cells, score, samples)
    for name, each in masses.items():
        found[f"context_{name}"] = context_share(each, scores.region, exclude_border=exclude_border)
    return Faithfulness(
        label=scores.label,
        region=scores.region,
        score=score,
        baselines=baselines if isinstance(baselines, str) else "own",
        patch=cell,
        freeze_object=freeze_object,
        exclude_border=float(exclude_border),
        seeds=drawn,
        **found,
    )


def _seeds(seeds: int | Iterable[int]) -> tuple[int, ...]:
    if not isinstance(seeds, Iterable):
        return tuple(range(check_integer("seeds", seeds, low=1)))
    given = tuple(check_integer("seeds", seed, low=0) for seed in seeds)
    if not given:
        raise ValueError(complain("seeds", "at least one", "none", "Pass a number of random orders."))
    return given


def _cell(patch: int | tuple[int, int] | None, images: Tensor) -> tuple[int, int]:
    """Height and width of what is removed at once, no larger than the images."""
    sides = patch if isinstance(patch, (tuple, list)) else (1 if patch is None else patch,) * 2
    if len(sides) != 2:
        raise ValueError(complain("patch", "an integer, (height, width) or None", patch, "Pass two integers."))
    height, width = (check_integer("patch", side, low=1, high=high) for side, high in zip(sides, images.shape[-2:]))
    return height, width


def _question(
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


def _check_images_explained(attribution: Attribution | Tensor, images: Tensor) -> None:
    explained = attribution.of_images if isinstance(attribution, Attribution) else None
    if explained is not None and not torch.equal(explained.cpu(), fingerprint(images).cpu()):
        remedy = "Pass attribution.values, to test them on others."
        raise ValueError(complain("images", "those that were explained, in the same order and dtype", images, remedy))


def _each(label: int | Tensor, attribution: Attribution) -> list[int]:
    checked = check_label(label)
    return [checked] * len(attribution.values) if isinstance(checked, int) else checked.tolist()


def _explainer_checks(
    explainer: Explainer, scores: RegionScores, cells: Cells, stages: int, compared: tuple[Baselines, ...], samples: int
) -> dict[str, Any]:
    """The checks that explain anew, on the pixels that may be removed."""
    found: dict[str, Any] = {}
    model, images = scores.model, scores.images
    how: dict[str, Any] = {"where": cells.removable, "show_progress": scores.show_progress}
    if stages:
        found["randomised"] = randomised_weights(model, images, explainer, stages=stages, **how)
    if compared and takes_baselines(explainer):

        def on_baseline(network: nn.Module, x: Tensor, baseline: Tensor) -> Tensor | Attribution:
            return explainer(network, x, baselines=baseline)

        found["baseline_sensitivity"] = baseline_sensitivity(model, images, on_baseline, baselines=compared, **how)
    if samples:
        found["sensitivity"] = sensitivity(model, images, explainer, samples)
    return found


def _curves(
    orders: dict[str, Tensor], scores: RegionScores, cells: Cells, steps: int, seeds: tuple[int, ...]
) -> dict[str, Curve]:
    """Deletion and insertion along the maps (N, H, W) of `orders`, and from near to far where the object stays."""
    ranked = {name: cells.total(each) for name, each in orders.items()}
    if not bool((cells.removable & scores.region).any()):
        ranked["nearest first"] = -cells.mean(distances(scores.region).to(cells.removable.device))
    deletion, insertion = removal_curves(scores, ranked, cells, steps=steps, seeds=seeds)
    for curve in (deletion, insertion):
        if not all(bool(torch.isfinite(held["logit"]).all()) for held in (curve.scores, curve.random)):
            came = f"NaN or infinity in the {curve.kind} curve"
            raise ValueError(complain("model", "finite logits for perturbed images", came, "Try another baseline."))
    return {"deletion": deletion, "insertion": insertion}


def _completeness(
    attribution: Attribution | Tensor, values: Tensor, scores: RegionScores, score: str
) -> Completeness | None:
    """As `explain` found for its own baseline, if the method promises a sum; plain values: for the one at hand."""
    if not isinstance(attribution, Attribution):
        return completeness(values, scores, score)
    if attribution.delta is None or attribution.layer is not None:
        return None
    total = values.sum((1, 2))
    return Completeness(total, total - attribution.delta.to(total))
