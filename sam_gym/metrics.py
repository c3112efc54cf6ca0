"""Numbers about masks and about means: small, numpy, tested against examples worked by hand."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap_mean(values: ArrayLike, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Interval:
    """Mean with its percentile bootstrap interval; given differences of pairs, it is the paired bootstrap.

    Args:
        values: (M,) one number per object.
        confidence: Coverage of the interval.
        resamples: Bootstrap resamples.
        seed: The same values and seed give the same interval.

    Returns:
        Mean, lower and upper end.

    Raises:
        ValueError: `values` is empty, holds NaN or infinity, or is no list.

    Example:
        >>> print(bootstrap_mean([0.5, 0.5, 0.5]))
        0.500 [0.500, 0.500]
    """
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or not len(array) or not np.isfinite(array).all():
        raise ValueError(f"a bootstrap needs a list of finite numbers, got {array}")
    rng = np.random.default_rng(seed)
    # In blocks, so that ten thousand resamples of ten thousand objects do not need 800 MB
    block = max(1, 5_000_000 // len(array))
    means = [
        array[rng.integers(len(array), size=(min(block, resamples - start), len(array)))].mean(axis=1)
        for start in range(0, resamples, block)
    ]
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return Interval(float(array.mean()), float(low), float(high))
