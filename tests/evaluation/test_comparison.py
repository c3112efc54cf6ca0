"""Comparisons of entries on cases made by hand, against SciPy, and with intervals that cover what they should."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from sam_gym.evaluation.bootstrap import Interval, bootstrap_mean
from sam_gym.evaluation.comparison import (
    interquartile_mean,
    iqm,
    iqm_over_datasets,
    normalise,
    normalised_score,
    paired_difference,
    probability_of_improvement,
)

FEW = {"resamples": 2000}


def numbers(interval: Interval) -> list[float]:
    return [interval.mean, interval.low, interval.high]


@pytest.mark.parametrize("count", [1, 3, 4, 5, 7, 8, 101])
def test_the_interquartile_mean_is_scipys_trimmed_mean(count: int) -> None:
    values = np.random.default_rng(0).normal(size=(6, count))
    np.testing.assert_allclose(interquartile_mean(values), scipy.stats.trim_mean(values, 0.25, axis=1))


def test_an_outlier_moves_the_mean_and_not_the_interquartile_mean() -> None:
    scores = np.tile([0.4, 0.5, 0.6, 0.5], 5)
    wild = np.append(scores, -30.0)
    assert wild.mean() < -0.9
    assert iqm(wild).mean == pytest.approx(0.5, abs=0.01)
    assert 0.4 < iqm(wild).low < iqm(wild).high < 0.6


def test_the_scale_by_hand() -> None:
    random, oracle = [0.2, 0.4], [0.7, 0.9]
    assert normalise(random, random, oracle).mean() == pytest.approx(0)
    assert normalise(oracle, random, oracle).mean() == pytest.approx(1)
    np.testing.assert_allclose(normalise([[0.55, 0.55], [0.2, 0.2]], random, oracle), [[0.5, 0.5], [-0.2, -0.2]])
    assert normalised_score([0.55, 0.55], random, oracle).mean == pytest.approx(0.5)


def test_agent_random_and_oracle_vary_together() -> None:
    """Objects differ much, the agent is half-way on each: the score is certain though no mean is."""
    random = np.random.default_rng(0).random(40)
    found = normalised_score(random + 0.1, random, random + 0.2)
    assert numbers(found) == pytest.approx([0.5, 0.5, 0.5])
    assert bootstrap_mean(random).high - bootstrap_mean(random).low > 0.15


def test_an_oracle_that_is_no_better_makes_no_scale() -> None:
    with pytest.raises(ValueError, match=r"oracle's mean, 0\.5, is not above that of random, 0\.5"):
        normalise([0.1], [0.5], [0.5])
    with pytest.raises(ValueError, match="resamples of these 3 objects"):
        normalised_score([0.5, 0.5, 0.5], [0.5, 0.5, 0.5], [0.4, 0.9, 0.5])


def test_datasets_count_alike() -> None:
    """Four datasets; the last has many objects, the first many seeds of one score."""
    datasets = [[[0.1]], [[0.3]], [[0.5]], np.full((1, 500), 0.9)]
    assert iqm_over_datasets(datasets).mean == pytest.approx(0.4)
    seeds = [[[0.0], [0.2]], [[0.4], [0.6]]]  # two datasets, two seeds: 0, .2, .4, .6
    assert iqm_over_datasets(seeds).mean == pytest.approx(0.3)


def test_the_bootstrap_is_stratified_by_dataset() -> None:
    """Seeds of one dataset agree; only what differs within a dataset makes the interval wide."""
    apart = [np.full((3, 1), value) for value in (0.1, 0.4, 0.6, 0.9)]
    assert numbers(iqm_over_datasets(apart)) == pytest.approx([0.5, 0.5, 0.5])
    pooled = iqm(np.repeat([0.1, 0.4, 0.6, 0.9], 3))
    assert pooled.high - pooled.low > 0.3


def test_other_seeds_and_other_objects_make_intervals_wide() -> None:
    rng = np.random.default_rng(0)
    by_object, by_seed = rng.normal(0, 0.1, (1, 60)), np.array([[-0.1], [0.0], [0.1]])

    def width(scores: np.ndarray) -> float:
        found = iqm(scores)
        return found.high - found.low

    objects, both = width(np.repeat(by_object, 3, axis=0)), width(by_object + by_seed)
    assert objects == pytest.approx(width(by_object), rel=0.05)  # three times the same run tells nothing new
    assert both > 1.5 * objects


def test_pairs_by_hand() -> None:
    one, other = [0.5, 0.9, 0.7, 0.2], [0.4, 0.9, 0.6, 0.3]
    assert paired_difference(one, other).mean == pytest.approx(0.025)
    assert probability_of_improvement(one, other).mean == (1 + 0.5 + 1 + 0) / 4
    seeds = [[0.5, 0.1], [0.3, 0.3]]
    against = [[0.4, 0.3]]
    assert probability_of_improvement(seeds, against).mean == (1 / 2 + (0 + 0.5) / 2) / 2
    assert paired_difference(seeds, against).mean == pytest.approx((0.0 - 0.1) / 2)


def test_pairs_of_one_seed_are_the_paired_bootstrap() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.random(50), rng.random(50)
    assert numbers(paired_difference(one, other)) == pytest.approx(numbers(bootstrap_mean(one - other)))


def test_pairing_takes_out_what_objects_have_in_common() -> None:
    rng = np.random.default_rng(0)
    hard = rng.random(80)
    one, other = hard + 0.02 + rng.normal(0, 0.01, 80), hard + rng.normal(0, 0.01, 80)
    assert paired_difference(one, other).low > 0.01
    shuffled = paired_difference(one, rng.permutation(other))
    assert shuffled.low < 0 < shuffled.high


def test_the_probability_is_that_of_mann_and_whitney() -> None:
    """On one object it is U over the number of pairs of seeds."""
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 6, (9, 1)).astype(float), rng.integers(0, 6, (7, 1)).astype(float)
    u = scipy.stats.mannwhitneyu(one[:, 0], other[:, 0]).statistic
    found = probability_of_improvement(one, other)
    assert found.mean == pytest.approx(u / 63)
    assert found.mean == pytest.approx(1 - probability_of_improvement(other, one).mean)
    assert 0 <= found.low < found.mean < found.high <= 1


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        found = iqm(rng.normal(0.5, 0.2, 60), **FEW)
        hits += found.low <= 0.5 <= found.high
    assert 180 <= hits <= 199  # 95 % of 200 is 190, three standard errors are 9


@pytest.mark.parametrize("function", [iqm, lambda a, **o: iqm_over_datasets([a, a], **o),
                                      lambda a, **o: paired_difference(a, a[::-1, ::-1], **o),
                                      lambda a, **o: probability_of_improvement(a, a[:, ::-1], **o),
                                      lambda a, **o: normalised_score(a, a - 0.5, a + 1, **o)])  # fmt: skip
def test_same_seed_same_interval(function) -> None:
    scores = np.random.default_rng(0).random((3, 20))
    assert function(scores, seed=1, **FEW) == function(scores, seed=1, **FEW)
    assert function(scores, confidence=0.5, **FEW).low >= function(scores, **FEW).low
    narrow, wide = (function(scores, confidence=c, **FEW) for c in (0.5, 0.95))
    assert narrow.mean == wide.mean


@pytest.mark.parametrize("scores", [[], [[0.1, float("nan")]], [[[0.1]]]])
def test_refuses_what_are_no_scores(scores: object) -> None:
    with pytest.raises(ValueError, match="one row a seed and one column an object"):
        iqm(scores)


def test_refuses_other_objects() -> None:
    for compare in (paired_difference, probability_of_improvement):
        with pytest.raises(ValueError, match=r"same objects, but these have \[2, 3\] of them"):
            compare([0.1, 0.2], [0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match=r"\[2, 2, 3\]"):
        normalise([0.1, 0.2], [0.1, 0.2], [0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="at least one dataset"):
        iqm_over_datasets([])
