"""Means with bootstrap intervals: over objects, over runs and objects, and of any other number about a sample.

What compares entries with one another is in `sam_gym.evaluation.comparison`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Interval:
    """A mean, or another number about a sample, with its confidence interval."""

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
    return bootstrap(
        lambda rows: array[rows].mean(axis=-1), [len(array)],
        cells=len(array), confidence=confidence, resamples=resamples, seed=seed,
    )  # fmt: skip


def bootstrap(
    statistic: Callable[..., NDArray[np.float64]],
    sizes: Sequence[int],
    *,
    cells: int,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Any number about a sample with its percentile bootstrap interval; each axis of the sample is drawn by itself.

    Args:
        statistic: Takes one array of indices (B, size) for each of `sizes`, and returns B numbers, one for each sample
            that they choose.
        sizes: Lengths of the axes that are resampled, such as seeds and objects.
        cells: Numbers that one resample looks at. It bounds memory: so many resamples are done together that they look
            at 5 million.
        confidence: Coverage of the interval.
        resamples: Bootstrap resamples.
        seed: The same sample and seed give the same interval.

    Returns:
        The statistic of the sample itself, lower and upper end.
    """
    rng = np.random.default_rng(seed)
    block = max(1, 5_000_000 // cells)
    found = [
        statistic(*(rng.integers(size, size=(min(block, resamples - start), size)) for size in sizes))
        for start in range(0, resamples, block)
    ]
    whole = statistic(*(np.arange(size)[None] for size in sizes))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(found), [tail, 1 - tail])
    return Interval(float(whole[0]), float(low), float(high))


def bootstrap_runs(values: ArrayLike, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Interval:
    """Mean over runs and objects with its percentile bootstrap interval: runs and objects are resampled both.

    Args:
        values: (S, M) a number for each run and object, the same objects in each run; or differences of such.
        confidence: Coverage of the interval.
        resamples: Bootstrap resamples.
        seed: The same values and seed give the same interval.

    Returns:
        Mean, lower and upper end.

    Raises:
        ValueError: `values` is empty, holds NaN or infinity, or is no table.

    Example:
        >>> print(bootstrap_runs([[0.5, 0.5], [0.5, 0.5]]))
        0.500 [0.500, 0.500]
    """
    table = np.asarray(values, np.float64)
    if table.ndim != 2 or not table.size or not np.isfinite(table).all():
        raise ValueError(f"a bootstrap over runs needs a table of finite numbers, got {table}")
    return bootstrap(
        lambda runs, objects: table[runs[:, :, None], objects[:, None]].mean(axis=(1, 2)), table.shape,
        cells=table.size, confidence=confidence, resamples=resamples, seed=seed,
    )  # fmt: skip
