"""How an attribution hangs on its baseline: do other baselines rank the pixels alike, and does it add up?"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from perpixel.attribution.baselines import Baselines, baseline_images
from perpixel.attribution.faithfulness.explainer import maps_of
from perpixel.attribution.faithfulness.randomised_weights import rank_correlation
from perpixel.attribution.faithfulness.region_scores import RegionScores
from perpixel.attribution.inputs import check_images
from perpixel.attribution.measures.context import Attribution
from perpixel.attribution.progress import progress
from perpixel.checks import complain


@dataclass(frozen=True, eq=False)
class BaselineSensitivity:
    """How much the maps of N images differ between B baselines.

    baselines: their names. correlation: (B, B, N), Spearman's rank correlation of the maps, NaN for a constant one.
    spread: (N,), standard deviation over the baselines (population), mean over the pixels, over the mean |value|:
    0 = all alike, NaN = maps of zeros. maps: (B, N, H, W).
    """

    baselines: tuple[str, ...]
    correlation: Tensor
    spread: Tensor
    maps: Tensor

    @property
    def mean_correlation(self) -> Tensor:
        """Mean over the pairs of baselines: (N,)."""
        first, second = torch.triu_indices(len(self.baselines), len(self.baselines), 1)
        return self.correlation[first, second].mean(0)


@dataclass(frozen=True, eq=False)
class Completeness:
    """Whether values add up: total (N,) = Σ values, difference (N,) = score(image) - score(baseline).

    The score is `RegionTarget`'s, a sum over the region. Integrated gradients, DeepLift and Shapley values promise that
    the two are equal, for the baseline they were computed with; gradients, GradCAM and occlusion do not.
    """

    total: Tensor
    difference: Tensor

    @property
    def gap(self) -> Tensor:
        """total - difference: (N,)."""
        return self.total - self.difference

    @property
    def relative_gap(self) -> Tensor:
        """|gap| / |difference|: (N,), NaN where the scores of image and baseline are equal."""
        return torch.where(self.difference == 0, torch.nan, self.gap.abs() / self.difference.abs())


def baseline_sensitivity(
    model: nn.Module,
    images: Tensor,
    explainer: Callable[[nn.Module, Tensor, Tensor], Tensor | Attribution],
    *,
    baselines: Sequence[Baselines] = ("zero", "mean", "blur"),
    where: Tensor | None = None,
    seed: int = 0,
    show_progress: bool = False,
) -> BaselineSensitivity:
    """Compare the maps of `explainer(model, images, baseline)` over two or more baselines; it gets them as images.

    where: bool (N, H, W), the pixels whose ranks and spread count, None for all. Its random numbers are the same for
    each baseline. show_progress: a bar on the standard error.
    """
    images = check_images(images)
    if isinstance(baselines, (str, Tensor)) or len(baselines) < 2:
        raise ValueError(complain("baselines", "two or more baselines", baselines, "Pass ('zero', 'mean', 'blur')."))

    def shown(baseline: Tensor) -> Tensor:
        return maps_of(lambda network, x: explainer(network, x, baseline), model, images, seed)[0]

    bar = progress(baselines, show_progress, "faithfulness, baselines", "baseline")
    maps = [shown(baseline_images(each, images)) for each in bar]
    stacked = torch.stack(maps)
    table = [[rank_correlation(first, second, where) for second in maps] for first in maps]
    counted = torch.ones_like(maps[0], dtype=torch.bool) if where is None else where
    size = counted.sum((1, 2))
    apart = torch.where(counted, stacked.std(0, correction=0), 0).sum((1, 2)) / size
    level = torch.where(counted, stacked.abs().mean(0), 0).sum((1, 2)) / size
    names = tuple(each if isinstance(each, str) else f"baseline {i}" for i, each in enumerate(baselines))
    return BaselineSensitivity(names, torch.stack([torch.stack(row) for row in table]), apart / level, stacked)


def completeness(values: Tensor, scores: RegionScores, score: str) -> Completeness:
    """Σ values (N, H, W) against the change of `RegionTarget`'s score from the baseline to the image."""
    everyone = torch.arange(len(values), device=values.device)
    change = (scores.before - scores(scores.baseline, everyone))[:, scores.column(score)]
    return Completeness(values.sum((1, 2)), (change * scores.region.flatten(1).sum(1)).double())
