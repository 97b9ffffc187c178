"""Does a difference between two models outlast another draw of the evaluation images?"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perpixel.checks import check_integer, check_number, complain

Floats = NDArray[np.float64]


def ratio(part: Any, whole: Any) -> Floats:
    """part / whole of two arrays, element by element; NaN where the whole is not positive."""
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(whole > 0, part / whole, np.nan)


@dataclass(frozen=True)
class BootstrapInterval:
    """A statistic on all images and the interval that holds `level` of its resampled values."""

    value: float
    low: float
    high: float
    level: float

    @property
    def excludes_zero(self) -> bool:
        """True where both ends lie on the same side of zero (and neither on it)."""
        return self.low > 0 or self.high < 0


def bootstrap_images(
    statistic: Callable[[Floats], Any],
    images: int,
    *,
    level: float = 0.95,
    resamples: int = 4999,
    seed: int = 0,
) -> BootstrapInterval:
    """Bias-corrected and accelerated (BCa) bootstrap interval of a statistic, resampling whole images.

    `statistic` takes float64 weights (R, images), row r telling how often each image was drawn in resample r, and gives
    (R,) values; for a score of summed confusion matrices M (images, C, C) that is `score(weights @ M)`. Computing a
    difference of two models inside the statistic makes the comparison paired: both are scored on the same draw.

    The interval covers the choice of images for *these* trained models, nothing else: not their random seeds.
    Resampling is `scipy.stats.bootstrap` (Efron 1987), seeded. Where BCa is undefined (a statistic that never varies,
    as for two equal models, or that is NaN on some draws) the interval is that of the percentiles of the defined draws.
    A statistic that is NaN on all images gives NaN.
    Errors: fewer than two images; a statistic of the wrong shape.
    """
    from scipy.stats import DegenerateDataWarning, bootstrap

    check_integer("images", images, low=2)
    check_number("level", level, low=0, high=1, open_low=True, open_high=True)
    check_integer("resamples", resamples, low=100)
    check_integer("seed", seed, low=0)

    def of_weights(weights: Floats) -> Floats:
        values = np.asarray(statistic(weights), dtype=np.float64)
        if values.shape != (len(weights),):
            expected = f"values of shape ({len(weights)},) for weights of shape {weights.shape}"
            remedy = "Score every row of the weights on its own."
            raise ValueError(complain("statistic", expected, f"shape {values.shape}", remedy))
        return values

    def of_drawn(drawn: NDArray[np.int64], axis: int = -1) -> Any:
        drawn = np.moveaxis(drawn, axis, -1).astype(np.int64)
        rows = drawn.reshape(-1, drawn.shape[-1])
        cells = (np.arange(len(rows))[:, None] * images + rows).ravel()
        weights = np.bincount(cells, minlength=len(rows) * images).reshape(len(rows), images)
        return of_weights(weights.astype(np.float64)).reshape(drawn.shape[:-1])

    value = float(of_weights(np.ones((1, images)))[0])
    if np.isnan(value):
        return BootstrapInterval(value, value, value, level)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateDataWarning)
        warnings.simplefilter("ignore", RuntimeWarning)
        result = bootstrap(
            (np.arange(images),),
            of_drawn,
            n_resamples=resamples,
            batch=500,
            vectorized=True,
            confidence_level=level,
            method="BCa",
            random_state=np.random.default_rng(seed),
        )
    low, high = (float(end) for end in result.confidence_interval)
    if not (np.isfinite(low) and np.isfinite(high)):
        low, high = (
            float(end) for end in np.nanquantile(result.bootstrap_distribution, [0.5 - level / 2, 0.5 + level / 2])
        )
    return BootstrapInterval(value, low, high, level)
