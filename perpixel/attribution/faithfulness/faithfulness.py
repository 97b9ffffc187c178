"""Does the network rest on what an attribution shows? Perturbation curves and sanity checks in one call."""

from typing import Any

import torch
from torch import Tensor, nn

from perpixel.attribution.baselines import baseline_images
from perpixel.attribution.faithfulness.baselines import Completeness, baseline_sensitivity, completeness
from perpixel.attribution.faithfulness.curves import Cells, Curve, removal_curves
from perpixel.attribution.faithfulness.explainer import Explainer, explainer_of, takes_baselines
from perpixel.attribution.faithfulness.infidelity import infidelity, sensitivity
from perpixel.attribution.faithfulness.object_alone import alone, context_of
from perpixel.attribution.faithfulness.options import FaithfulnessOptions
from perpixel.attribution.faithfulness.randomised_weights import randomised_weights
from perpixel.attribution.faithfulness.region_scores import RegionScores
from perpixel.attribution.faithfulness.result import Faithfulness
from perpixel.attribution.inputs import SCORES, check_images, check_label, check_model, check_score
from perpixel.attribution.measures.context import Attribution, context_share, distances
from perpixel.attribution.measures.evidence import as_map, as_mass
from perpixel.borrow import borrowed
from perpixel.checks import check_option, complain


def faithfulness(
    model: nn.Module,
    images: Tensor,
    attribution: Attribution | Tensor,
    label: int | Tensor | None = None,
    *,
    region: Tensor | None = None,
    score: str | None = None,
    explainer: Explainer | str | None = None,
    **options: Any,
) -> Faithfulness:
    """Test an attribution against the network itself: `Faithfulness`, with `.summary()` and `.to_dict()`.

    Curves: pixels are replaced by the baseline, highest value first (deletion), or put back into it (insertion), and
    one forward pass per picture gives the region's mean logit and margin and the IoU of the label's mask with the
    unperturbed one. Only the order of the values counts. (Petsiuk et al. 2018, arXiv 1806.07421.)

    attribution: what `explain` gave, or signed values, float (N, C, H, W) (summed over C) or (N, H, W).
    label, region, score: as for `RegionTarget`; by default those of the attribution. A region must be at image size,
        or at that of the output.
    explainer: `explainer(network, images) -> values` (or an `Attribution`), or the name of a method of `explain`; by
        default that of the attribution. Needed for the randomised-weights check and for the comparison of baselines,
        for which a callable must take `baselines=`, images. Plain values without it: neither is run.
    options: the fields of `FaithfulnessOptions`, by name: steps, patch, baselines, seeds, batch_size, freeze_object,
        exclude_border, stages, compare_baselines, samples.

    Passes per image: (2 · orders + seeds) · (steps - 1) + seeds + 5, orders being up to 3 (`Faithfulness.deletion`),
    and what the explainer needs. Model and inputs come back as they were. ValueError or TypeError, naming argument and
    remedy, for unknown labels, scores or methods, empty regions, other sizes, NaN, a frozen region without context.
    """
    model, images = check_model(model), check_images(images)
    given = FaithfulnessOptions(**options)
    label, region, score = _question(attribution, label, region, score)
    values = as_map("attribution", attribution, (len(images), *images.shape[-2:])).to(images.device)
    baseline = baseline_images(given.baselines, images)
    with borrowed(model, gradients=True, restore_all=True):
        scores = RegionScores(model, images, label, region, baseline, given.batch_size)
        if score == "margin":
            check_score(score, scores.classes)
        context = context_of(scores.region, given.exclude_border)
        cells = Cells.of(given.cell(images), context if given.freeze_object else torch.ones_like(context))
        explainer = explainer_of(explainer, attribution, scores.label, scores.region, score)
        found = {} if explainer is None else _explained_again(explainer, scores, cells, given)
        reset = found.get("randomised")
        orders = {"attribution": values} if reset is None else {"attribution": values, "reset network": reset.reset}
        found |= _curves(orders, scores, cells, given)
        found["object_alone"] = alone(scores, context, given.orders)
        found["completeness"] = _completeness(attribution, values, scores, score)
        if given.samples:
            found["infidelity"] = infidelity(values, scores, cells, score, given.samples)
    mass = as_mass("attribution", attribution).to(images.device)
    masses = {"share": mass, "area": torch.ones_like(mass), "share_reset": None if reset is None else reset.reset_mass}
    for name, each in masses.items():
        share = None if each is None else context_share(each, scores.region, exclude_border=given.exclude_border)
        found[f"context_{name}"] = share
    return Faithfulness(
        label=scores.label,
        region=scores.region,
        score=score,
        baselines=given.baselines if isinstance(given.baselines, str) else "own",
        patch=given.cell(images),
        freeze_object=given.freeze_object,
        exclude_border=float(given.exclude_border),
        seeds=given.orders,
        **found,
    )


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


def _each(label: int | Tensor, attribution: Attribution) -> list[int]:
    checked = check_label(label)
    return [checked] * len(attribution.values) if isinstance(checked, int) else checked.tolist()


def _explained_again(
    explainer: Explainer, scores: RegionScores, cells: Cells, options: FaithfulnessOptions
) -> dict[str, Any]:
    """The checks that explain again, on the pixels that may be removed."""
    found: dict[str, Any] = {}
    model, images, where = scores.model, scores.images, cells.removable
    if options.stages:
        found["randomised"] = randomised_weights(model, images, explainer, stages=options.stages, where=where)
    if options.compare_baselines and takes_baselines(explainer):
        found["baseline_sensitivity"] = baseline_sensitivity(
            model,
            images,
            lambda network, x, baseline: explainer(network, x, baselines=baseline),
            baselines=options.compare_baselines,
            where=where,
        )
    if options.samples:
        found["sensitivity"] = sensitivity(model, images, explainer, options.samples)
    return found


def _curves(
    orders: dict[str, Tensor], scores: RegionScores, cells: Cells, options: FaithfulnessOptions
) -> dict[str, Curve]:
    """Deletion and insertion along the maps (N, H, W) of `orders`, and from near to far where the object stays."""
    ranked = {name: cells.total(each) for name, each in orders.items()}
    if not bool((cells.removable & scores.region).any()):
        ranked["nearest first"] = -cells.mean(distances(scores.region).to(cells.removable.device))
    deletion, insertion = removal_curves(scores, ranked, cells, steps=options.steps, seeds=options.orders)
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
