"""Bootstrap intervals against SciPy's, and at the edges."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from sam_gym.metrics import Interval, bootstrap_mean


@pytest.mark.parametrize("confidence", [0.8, 0.95])
@pytest.mark.parametrize("draw", ["normal", "exponential"])
def test_agrees_with_scipy(draw: str, confidence: float) -> None:
    values = getattr(np.random.default_rng(0), draw)(size=60)
    ours = bootstrap_mean(values, confidence=confidence)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, confidence_level=confidence, n_resamples=10_000, method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    assert ours.mean == pytest.approx(values.mean())
    width = theirs.high - theirs.low
    assert ours.low == pytest.approx(theirs.low, abs=0.04 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.04 * width)


def test_same_seed_same_interval() -> None:
    values = np.random.default_rng(2).random(40)
    assert bootstrap_mean(values, seed=3) == bootstrap_mean(values.tolist(), seed=3)
    assert bootstrap_mean(values, seed=3) != bootstrap_mean(values, seed=4)


def test_shifting_and_scaling_carry_over() -> None:
    values = np.random.default_rng(2).random(40)
    one, other = bootstrap_mean(values), bootstrap_mean(5 + 2 * values)
    np.testing.assert_allclose([other.mean, other.low, other.high], [5 + 2 * v for v in (one.mean, one.low, one.high)])


def test_many_values_are_done_in_blocks() -> None:
    values = np.random.default_rng(0).random(20_000)
    interval = bootstrap_mean(values, resamples=600)  # 250 resamples a block
    error = values.std() / len(values) ** 0.5
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert interval.low < interval.mean < interval.high


def test_a_single_value_and_equal_values() -> None:
    assert bootstrap_mean([0.25]) == Interval(0.25, 0.25, 0.25)
    assert bootstrap_mean([0.5] * 9) == Interval(0.5, 0.5, 0.5)
    assert str(bootstrap_mean([-0.5, -0.5])) == "-0.500 [-0.500, -0.500]"


@pytest.mark.parametrize("values", [[], [0.1, float("nan")], [[0.1, 0.2]], 0.5, [float("inf"), 1.0]])
def test_refuses_what_has_no_mean(values: object) -> None:
    with pytest.raises(ValueError, match="list of finite numbers"):
        bootstrap_mean(values)
