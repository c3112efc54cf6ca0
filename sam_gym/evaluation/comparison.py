"""Comparing entries of a leaderboard: normalised scores, interquartile means, paired differences, who is better.

After Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice". Scores are those of
one dataset, (S, M): a row for each seed that was trained and a column for each object; scripted prompters have one row,
and (M,) is taken as that. Seeds and objects are resampled each by itself, so that an interval covers other trainings
and other objects. All entries of a comparison are measured on the same objects, in the same order; whether they are, is
for the caller to see to (`episode_list` in records). Numbers come in, numbers go out: no records, no files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sam_gym.evaluation.bootstrap import Interval, bootstrap

Scores = NDArray[np.float64]
Indices = NDArray[np.int64]


def interquartile_mean(values: ArrayLike) -> Any:
    """IQM along the last axis: the mean without the lowest and the highest quarter, each rounded down to whole values.

    Example:
        >>> float(interquartile_mean([0, 1, 2, 100])), float(interquartile_mean([0, 1, 100]))
        (1.5, 33.666666666666664)
    """
    array = np.asarray(values, np.float64)
    count = array.shape[-1]
    cut = count // 4
    if not cut:
        return array.mean(axis=-1)
    return np.partition(array, [cut, count - cut - 1], axis=-1)[..., cut : count - cut].mean(axis=-1)


def normalise(scores: ArrayLike, random: ArrayLike, oracle: ArrayLike) -> Scores:
    """Scores of one dataset on the scale on which random prompts have mean 0 and the oracle has mean 1.

    Args:
        scores: (S, M) or (M,), for example last IoUs.
        random: (S', M) or (M,), of random prompts.
        oracle: (S'', M) or (M,), of the oracle.

    Returns:
        Like `scores`. The mean over objects is (agent - random) / (oracle - random) of the means.

    Raises:
        ValueError: The oracle is no better than random on average, or the numbers of objects differ.

    Example:
        >>> normalise([0.7, 0.9], [0.4, 0.6], [0.8, 1.0])
        array([0.5, 1. ])
    """
    low, high = (_checked(one).mean() for one in (random, oracle))
    _same_objects(scores, random, oracle)
    if not high > low:
        raise ValueError(f"the oracle's mean, {high:.6g}, is not above that of random, {low:.6g}: there is no scale")
    return (np.asarray(scores, np.float64) - low) / (high - low)


def normalised_score(scores: ArrayLike, random: ArrayLike, oracle: ArrayLike, **options: Any) -> Interval:
    """(agent - random) / (oracle - random) of one dataset, with an interval in which all three vary.

    Args:
        scores: (S, M) or (M,) of the agent.
        random: (S', M) or (M,).
        oracle: (S'', M) or (M,).
        **options: confidence, resamples, seed of `sam_gym.evaluation.bootstrap.bootstrap`.

    Raises:
        ValueError: As `normalise`; or in a resample the oracle is no better than random.
    """
    normalise(scores, random, oracle)
    three = [_checked(one) for one in (scores, random, oracle)]

    def score(*drawn: Indices) -> Scores:
        *seeds, objects = drawn
        agent, low, high = (_mean(one, rows, objects) for one, rows in zip(three, seeds, strict=True))
        if not (high > low).all():
            raise ValueError(
                f"in some resamples of these {objects.shape[1]} objects the oracle is not above random: "
                "there are too few of them for an interval"
            )
        return (agent - low) / (high - low)

    sizes = [*(len(one) for one in three), three[0].shape[1]]
    return bootstrap(score, sizes, cells=sum(one.size for one in three), **options)


def iqm(scores: ArrayLike, **options: Any) -> Interval:
    """Interquartile mean over all objects and seeds of one dataset.

    Args:
        scores: (S, M) or (M,).
        **options: confidence, resamples, seed of `sam_gym.evaluation.bootstrap.bootstrap`.
    """
    array = _checked(scores)

    def middle(seeds: Indices, objects: Indices) -> Scores:
        return interquartile_mean(_drawn(array, seeds, objects).reshape(len(seeds), -1))

    return bootstrap(middle, array.shape, cells=array.size, **options)


def iqm_over_datasets(datasets: Sequence[ArrayLike], **options: Any) -> Interval:
    """Interquartile mean over datasets and seeds of the mean scores of objects, with a stratified interval.

    Every dataset counts alike, however many objects it has, and is resampled by itself.

    Args:
        datasets: Normalised scores (`normalise`), (S, M) or (M,) of each dataset; numbers of seeds and objects may
            differ. A dataset of one number per seed is (S, 1).
        **options: confidence, resamples, seed of `sam_gym.evaluation.bootstrap.bootstrap`.

    Raises:
        ValueError: There is no dataset.

    Example:
        >>> iqm_over_datasets([[0.0], [1.0], [2.0], [100.0]]).mean
        1.5
    """
    arrays = [_checked(scores) for scores in datasets]
    if not arrays:
        raise ValueError("an interquartile mean over datasets needs at least one dataset")

    def middle(*drawn: Indices) -> Scores:
        pairs = zip(arrays, drawn[::2], drawn[1::2], strict=True)
        runs = [_drawn(array, seeds, objects).mean(axis=-1) for array, seeds, objects in pairs]
        return interquartile_mean(np.concatenate(runs, axis=1))

    sizes = [size for array in arrays for size in array.shape]
    return bootstrap(middle, sizes, cells=sum(array.size for array in arrays), **options)


def paired_difference(scores: ArrayLike, others: ArrayLike, **options: Any) -> Interval:
    """Mean score of one entry minus that of another on the same objects: the paired bootstrap.

    Args:
        scores: (S, M) or (M,).
        others: (S', M) or (M,), column by column the same objects.
        **options: confidence, resamples, seed of `sam_gym.evaluation.bootstrap.bootstrap`.

    Raises:
        ValueError: The numbers of objects differ.

    Example:
        >>> print(paired_difference([0.5, 0.9, 0.7], [0.25, 0.65, 0.45]))
        0.250 [0.250, 0.250]
    """
    return _paired(_differences(scores, others), options)


def probability_of_improvement(scores: ArrayLike, others: ArrayLike, **options: Any) -> Interval:
    """How likely one entry is better than another on an object, a tie counting half (Agarwal et al. 2021, section 4.3).

    For each object all pairs of seeds are compared; the result is the mean over objects.

    Args:
        scores: (S, M) or (M,).
        others: (S', M) or (M,), column by column the same objects.
        **options: confidence, resamples, seed of `sam_gym.evaluation.bootstrap.bootstrap`.

    Raises:
        ValueError: The numbers of objects differ.

    Example:
        >>> probability_of_improvement([0.5, 0.9, 0.7, 0.2], [0.4, 0.9, 0.6, 0.3]).mean
        0.625
    """
    return _paired((np.sign(_differences(scores, others)) + 1) / 2, options)


def _differences(scores: ArrayLike, others: ArrayLike) -> Scores:
    """(S, S', M): every seed of the one minus every seed of the other, object by object."""
    _same_objects(scores, others)
    return _checked(scores)[:, None] - _checked(others)[None]


def _paired(pairs: Scores, options: dict[str, Any]) -> Interval:
    """The mean of (S, S', M) with both kinds of seeds and the objects resampled."""

    def mean(one: Indices, other: Indices, objects: Indices) -> Scores:
        chosen = one[:, :, None, None], other[:, None, :, None], objects[:, None, None, :]
        return pairs[chosen].reshape(len(one), -1).mean(axis=1)

    return bootstrap(mean, pairs.shape, cells=pairs.size, **options)


def _drawn(array: Scores, seeds: Indices, objects: Indices) -> Scores:
    """(B, S, M): for each of B resamples the same drawn objects of each drawn seed."""
    return array[seeds[:, :, None], objects[:, None, :]]


def _mean(array: Scores, seeds: Indices, objects: Indices) -> Scores:
    return _drawn(array, seeds, objects).mean(axis=(1, 2))


def _checked(scores: ArrayLike) -> Scores:
    """Scores as (S, M) float64."""
    array = np.atleast_2d(np.asarray(scores, np.float64))
    if array.ndim != 2 or not array.size or not np.isfinite(array).all():
        raise ValueError(f"scores are finite numbers, one row a seed and one column an object; got {array}")
    return array


def _same_objects(*scores: ArrayLike) -> None:
    counts = [_checked(one).shape[1] for one in scores]
    if len(set(counts)) > 1:
        raise ValueError(f"entries are compared on the same objects, but these have {counts} of them")
