"""What a study found, as numbers: every arm against no skip, ranks, the best against the others."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from perpixel.evaluation import (
    METRICS,
    SIZES,
    BootstrapInterval,
    Floats,
    ScoreDifference,
    SegmentationScores,
    compare_scores,
    judged,
    mean_score,
)
from recipes.kit.settings import EvaluationSettings
from recipes.skip_connections.landing import PLACES, Landing
from recipes.skip_connections.layers import BOTH, NONE, Arms
from recipes.skip_connections.training import ByArm, Cost

TESTED = ("mIoU", "boundary F", "interior accuracy")
OF_SIZE = tuple(f"IoU of {size} objects" for size in SIZES)
CLAIMED = ("helped", "hurt")


@dataclass(frozen=True)
class Rank:
    """Place by mIoU among the single skips, 1 the best; low, high: of draws of images and seeds."""

    value: int
    low: int
    high: int


@dataclass
class Results:
    """All comparisons; `landing`: of the first seed's networks, by arm."""

    arms: Arms
    trained: ByArm
    classes: tuple[str, ...]
    evaluation: EvaluationSettings
    landing: Mapping[str, Landing]
    cost: Cost | None

    @property
    def single(self) -> list[str]:
        """The arms with one skip, by depth."""
        return [arm for arm in self.arms if arm not in (NONE, BOTH)]

    @property
    def seeds(self) -> list[int]:
        """Of every arm."""
        return list(self.trained[NONE])

    @property
    def images(self) -> int:
        """How many are scored."""
        return len(self.scores(NONE)[0].confusion)

    def scores(self, arm: str) -> list[SegmentationScores]:
        """Of its seeds."""
        return [one.scores for one in self.trained[arm].values()]

    def score(self, arm: str, metric: str) -> float:
        """Mean over seeds, in percent."""
        return mean_score(metric, self.scores(arm))

    def parameters(self, arm: str) -> int:
        """Of the scores of an arm: the 1×1 convolutions."""
        weights = next(iter(self.trained[arm].values())).weights
        return sum(one.numel() for name, one in weights.items() if not name.startswith("backbone."))

    @cached_property
    def gains(self) -> dict[str, dict[str, ScoreDifference]]:
        """By arm and metric, less no skip, in points; all of TESTED are one table."""
        arms = [arm for arm in self.arms if arm != NONE]
        found = [self._compare(NONE, arm, TESTED) for arm in arms]
        table = iter(judged([one for some in found for one in some]))
        return {arm: {one.metric: next(table) for one in some} for arm, some in zip(arms, found)}

    @cached_property
    def best(self) -> str:
        """The single skip of the highest mIoU."""
        return max(self.single, key=lambda arm: self.score(arm, "mIoU"))

    @cached_property
    def behind(self) -> dict[str, ScoreDifference]:
        """mIoU of the best less that of every other single skip, by arm: one table."""
        others = [arm for arm in self.single if arm != self.best]
        return dict(zip(others, judged([self._compare(arm, self.best, ("mIoU",))[0] for arm in others])))

    @cached_property
    def against_both(self) -> ScoreDifference | None:
        """mIoU of FCN-8s' own two skips less that of the best single one."""
        return self._compare(self.best, BOTH, ("mIoU",))[0] if BOTH in self.arms else None

    def _compare(self, control: str, arm: str, metrics: tuple[str, ...]) -> list[ScoreDifference]:
        options = {"level": self.evaluation.level, "resamples": self.evaluation.resamples}
        return compare_scores(self.scores(control), self.scores(arm), metrics=metrics, **options)  # type: ignore[arg-type]

    @cached_property
    def ranks(self) -> dict[str, Rank]:
        """Of the single skips; the ends hold `level` of the ranks on draws of images and of seeds, both at once."""
        rng = np.random.default_rng(0)
        draws, images, seeds = self.evaluation.resamples, self.images, len(self.seeds)
        weights = np.concatenate([np.ones((1, images)), rng.multinomial(images, [1 / images] * images, draws)])
        drawn = np.concatenate([np.ones((1, seeds)), rng.multinomial(seeds, [1 / seeds] * seeds, draws)])
        values = np.stack([self._means(arm, weights.astype(np.float64), drawn) for arm in self.single])
        places = 1 + (values[None] > values[:, None]).sum(1)  # (arms, 1 + draws)
        ends = np.quantile(places[:, 1:], [(1 - self.evaluation.level) / 2, (1 + self.evaluation.level) / 2], axis=1)
        return {
            arm: Rank(int(place), int(low), int(np.ceil(high)))
            for arm, place, low, high in zip(self.single, places[:, 0], *ends)
        }

    def _means(self, arm: str, weights: Floats, drawn: Floats) -> Floats:
        """mIoU (R,) on draws of images, mean over draws of the seeds."""
        each = np.stack([METRICS["mIoU"](one, weights) for one in self.scores(arm)], 1)
        return (each * drawn).sum(1) / drawn.sum(1)

    @cached_property
    def landed(self) -> dict[str, dict[str, BootstrapInterval]]:
        """By arm and place, less no skip, in points; of the first seed."""
        level, resamples = self.evaluation.level, self.evaluation.resamples
        return {a: one.more_than(self.landing[NONE], level, resamples) for a, one in self.landing.items() if a != NONE}

    def character(self, arm: str) -> str:
        """What a skip brings, from the gains that are shown: outline, meaning, both, or neither."""
        outline, meaning = (self.gains[arm][metric].verdict == "helped" for metric in TESTED[1:])
        names = ["outline"] * outline + ["meaning"] * meaning
        return "outline and meaning" if len(names) == 2 else names[0] if names else "neither shown"

    def seconds(self, arm: str) -> float:
        """Mean of its trainings."""
        return float(np.mean([one.seconds for one in self.trained[arm].values()]))

    def rows(self) -> list[dict[str, Any]]:
        """A row per arm, with everything."""
        rows: list[dict[str, Any]] = []
        for arm, (last, *skips) in self.arms.items():
            row: dict[str, Any] = {"network": arm, "skips from": " ".join(one.name for one in skips)}
            row |= {"stride": min((one.stride for one in skips), default=last.stride)}
            row |= {"channels": sum(one.channels for one in skips), "depth": max((s.depth for s in skips), default=0)}
            row |= {"parameters": self.parameters(arm), "seconds": self.seconds(arm)}
            row |= {metric: self.score(arm, metric) for metric in (*TESTED, *OF_SIZE)}
            for metric, one in self.gains.get(arm, {}).items():
                ends = {"": one.interval.value, " low": one.interval.low, " high": one.interval.high}
                row |= {f"{metric} gain{end}": value for end, value in ends.items()}
                row |= {f"{metric} verdict": one.verdict}
            if arm in self.ranks:
                row |= {f"rank{end}": v for end, v in zip(("", " low", " high"), asdict(self.ranks[arm]).values())}
            row |= {f"mass {p} (%)": self.landing[arm].percent[p] for p in PLACES if arm in self.landing}
            iou = 100 * torch.stack([one.iou for one in self.scores(arm)]).nanmean(0)
            rows.append(row | {f"IoU of {name}": value for name, value in zip(self.classes, iou.tolist())})
        return rows

    def content(self) -> dict[str, Any]:
        """results.json."""
        gains = {arm: {name: asdict(one) for name, one in some.items()} for arm, some in self.gains.items()}
        return {
            "rows": self.rows(),
            "gains": gains,
            "best": self.best,
            "best against the others": {arm: asdict(one) for arm, one in self.behind.items()},
            "FCN-8s' own against the best": None if self.against_both is None else asdict(self.against_both),
            "landing": {a: {p: asdict(one) for p, one in some.items()} for a, some in self.landed.items()},
            "seeds": self.seeds,
            "images": self.images,
            "cost": None if self.cost is None else asdict(self.cost),
        }
