"""Our statistics beside rliable's, the package of Agarwal et al. 2021, on scores of ten runs and six tasks.

There a task has one score a run, and runs of a task are drawn independently of other tasks: `iqm_over_datasets` on
datasets of one column. Where we draw objects and seeds together, rliable draws otherwise, and only means are compared.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from sam_gym.evaluation.bootstrap import bootstrap
from sam_gym.evaluation.comparison import interquartile_mean, iqm_over_datasets, probability_of_improvement

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what rliable imports
    from rliable import library, metrics

RUNS, TASKS, RESAMPLES = 10, 6, 4000


@pytest.fixture(scope="module")
def scores() -> Any:
    """(RUNS, TASKS): tasks of different height and spread, and an outlier."""
    rng = np.random.default_rng(3)
    table = rng.normal(np.linspace(0.1, 0.9, TASKS), np.linspace(0.02, 0.2, TASKS), (RUNS, TASKS))
    table[0, 0] = -4
    return table


@pytest.mark.parametrize("shape", [(3, 1), (3, 5), (10, 6), (7, 26)])
def test_interquartile_means_are_equal(shape: tuple[int, int]) -> None:
    table = np.random.default_rng(0).normal(size=shape)
    assert interquartile_mean(table.ravel()) == pytest.approx(metrics.aggregate_iqm(table), abs=1e-12)


def test_stratified_intervals_agree(scores: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each end within what 4,000 resamples can tell: a twentieth of the interval's width."""
    rng = np.random.default_rng(0)
    monkeypatch.setattr(np.random, "choice", rng.choice)  # rliable draws from numpy's global generator
    points, intervals = library.get_interval_estimates(
        {"agent": scores}, lambda table: np.array([metrics.aggregate_iqm(table), metrics.aggregate_mean(table)]),
        reps=RESAMPLES,
    )  # fmt: skip
    columns = [column[:, None] for column in scores.T]
    ours = iqm_over_datasets(columns, resamples=RESAMPLES)
    mean = bootstrap(
        lambda *drawn: np.mean([scores[rows, task].mean(axis=1) for task, rows in enumerate(drawn)], axis=0),
        [RUNS] * TASKS, cells=scores.size, resamples=RESAMPLES,
    )  # fmt: skip
    for number, interval in enumerate((ours, mean)):
        low, high = intervals["agent"][:, number]
        assert interval.mean == pytest.approx(points["agent"][number], abs=1e-12)
        assert interval.low == pytest.approx(low, abs=(high - low) / 20)
        assert interval.high == pytest.approx(high, abs=(high - low) / 20)
    assert ours.high - ours.low < 0.5 * (mean.high - mean.low)  # the outlier: these are two statistics


def test_probabilities_of_improvement_are_equal(scores: Any) -> None:
    others = np.roll(scores, 1, axis=1)[:7] + 0.01
    others[2] = scores[2]  # ties count half
    ours = probability_of_improvement(scores, others, resamples=10).mean
    assert ours == pytest.approx(metrics.probability_of_improvement(scores, others), abs=1e-12)
