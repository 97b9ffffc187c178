"""The options of `faithfulness`, checked once."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

from torch import Tensor

from perpixel.attribution.baselines import Baselines
from perpixel.checks import check_flag, check_integer, complain


@dataclass(frozen=True)
class FaithfulnessOptions:
    """How the perturbation curves and the checks are made. ValueError or TypeError for values that are not fit.

    steps: points of a curve after the first. patch: remove squares (or (height, width)) of a grid, ranked by summed
        value; None: single pixels, whose random removal is noise rather than missing context. baselines: as for
        `explain`; "mean" hides colours, which "blur" keeps. seeds: random orders, a number or the seeds.
    freeze_object: the region, and `exclude_border` pixels around it, never change; only context is removed. Without,
        everything is. batch_size: pictures per forward pass.
    stages: resets of the randomised-weights check; 0: skip it. compare_baselines: those whose maps are compared;
        empty: skip it. samples: draws for captum's infidelity and, with an explainer, sensitivity_max; 0: skip.
    """

    steps: int = 20
    patch: int | tuple[int, int] | None = None
    baselines: Baselines = "mean"
    seeds: int | Iterable[int] = 5
    batch_size: int = 16
    freeze_object: bool = True
    exclude_border: float = 0
    stages: int = 5
    compare_baselines: Sequence[Baselines] = ("zero", "mean", "blur")
    samples: int = 0

    def __post_init__(self) -> None:
        for name, low in (("steps", 1), ("batch_size", 1), ("stages", 0), ("samples", 0)):
            check_integer(name, getattr(self, name), low=low)
        check_flag("freeze_object", self.freeze_object)
        if isinstance(self.seeds, Iterable):
            seeds = tuple(check_integer("seeds", seed, low=0) for seed in self.seeds)
        else:
            seeds = tuple(range(check_integer("seeds", self.seeds, low=1)))
        if not seeds:
            raise ValueError(complain("seeds", "at least one", "none", "Pass a number of random orders."))
        object.__setattr__(self, "seeds", seeds)
        object.__setattr__(self, "compare_baselines", tuple(self.compare_baselines))

    @property
    def orders(self) -> tuple[int, ...]:
        """The seeds of the random orders."""
        return cast("tuple[int, ...]", self.seeds)

    def cell(self, images: Tensor) -> tuple[int, int]:
        """Height and width of what is removed at once, no larger than the images."""
        patch = self.patch if isinstance(self.patch, (tuple, list)) else (1 if self.patch is None else self.patch,) * 2
        if len(patch) != 2:
            raise ValueError(complain("patch", "an integer, (height, width) or None", patch, "Pass two integers."))
        height, width = (check_integer("patch", side, low=1, high=h) for side, h in zip(patch, images.shape[-2:]))
        return height, width
