"""Masks and curves by hand; bootstrap intervals against SciPy's, and at the edges."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from scipy.ndimage import binary_erosion, gaussian_filter

from sam_gym.evaluation.bootstrap import Interval, bootstrap, bootstrap_mean, bootstrap_runs
from sam_gym.evaluation.metrics import (
    NEVER,
    boundary_iou,
    boundary_width,
    mask_boundary,
    mask_dice,
    mask_iou,
    prompts_to_reach,
)


def parse(*rows: str) -> np.ndarray:
    return np.array([[pixel == "#" for pixel in row] for row in rows])


EMPTY = np.zeros((4, 4), np.bool_)


def test_overlap_by_hand() -> None:
    mask, truth = parse("##..", "##..", "....", "...."), parse(".#..", ".##.", "....", "....")
    assert mask_iou(mask, truth) == 2 / 5
    assert mask_dice(mask, truth) == 4 / 7
    assert mask_iou(mask, mask) == mask_dice(mask, mask) == boundary_iou(mask, mask) == 1


@pytest.mark.parametrize("measure", [mask_iou, mask_dice, boundary_iou])
def test_empty_masks(measure) -> None:
    some = parse("....", ".#..", "....", "....")
    assert measure(EMPTY, EMPTY) == 1  # nothing was to be found, nothing was
    assert measure(EMPTY, some) == measure(some, EMPTY) == 0
    with pytest.raises(ValueError, match=r"of equal shape, got bool \(4, 4\) and bool \(3, 4\)"):
        measure(EMPTY, EMPTY[:3])


def test_the_boundary_by_hand() -> None:
    mask = parse("#####.", "#####.", "#####.", "#####.", "..##..")
    one = parse("#####.", "#...#.", "#...#.", "#####.", "..##..")
    np.testing.assert_array_equal(mask_boundary(mask, 1), one)
    np.testing.assert_array_equal(mask_boundary(mask, 2), mask)
    np.testing.assert_array_equal(
        mask_boundary(np.ones((5, 5), bool), 2), parse("#####", "#####", "##.##", "#####", "#####")
    )


def test_boundary_iou_sees_what_iou_does_not() -> None:
    truth = np.zeros((100, 100), np.bool_)
    truth[10:90, 10:90] = True
    mask = truth.copy()
    mask[10, :] = mask[89, :] = mask[:, 10] = mask[:, 89] = False  # one pixel too small all around
    assert boundary_width(truth.shape) == 3
    assert mask_iou(mask, truth) == 78**2 / 80**2
    rings = 80**2 - 74**2, 78**2 - 72**2
    shared = 78**2 - 74**2
    assert boundary_iou(mask, truth) == shared / (sum(rings) - shared)


@pytest.mark.parametrize("width", [1, 2, 7, None])
@pytest.mark.parametrize("shape", [(60, 90), (256, 200)])
def test_the_boundary_is_what_erosions_take_away(shape: tuple[int, int], width: int | None) -> None:
    """As the authors of Boundary IoU write it: a border of nothing, then so many erosions by 3 x 3."""
    rng = np.random.default_rng(0)
    for smooth in (2, 6):
        mask = gaussian_filter(rng.standard_normal(shape), smooth) > 0
        assert mask[0].any()  # it reaches the image's border
        padded = np.pad(mask, 1)
        eroded = binary_erosion(padded, np.ones((3, 3)), iterations=width or round(0.02 * np.hypot(*shape)))
        np.testing.assert_array_equal(mask_boundary(mask, width), mask & ~eroded[1:-1, 1:-1])


def test_prompts_to_reach_by_hand() -> None:
    curves = [[0.9, 0.5], [0.5, 0.9], [0.5, 0.89], [0.85, 0.85]]
    assert prompts_to_reach(curves, 0.9).tolist() == [0, 1, NEVER, NEVER]
    assert prompts_to_reach(curves, 0.85).tolist() == [0, 1, 1, 0]
    with pytest.raises(ValueError, match="one row an object"):
        prompts_to_reach(curves[0], 0.9)


def test_axes_are_drawn_by_themselves() -> None:
    """A product of two independent means has, to first order, the sum of their relative variances."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(5, 1, 200), rng.normal(3, 1, 100)
    found = bootstrap(lambda i, j: a[i].mean(axis=1) * b[j].mean(axis=1), [200, 100], cells=300)
    assert found.mean == pytest.approx(a.mean() * b.mean())
    spread = found.mean * np.hypot(a.std() / 200**0.5 / a.mean(), b.std() / 100**0.5 / b.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * spread, rel=0.05)


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


def test_bootstrap_over_runs_resamples_runs_and_objects() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(3, 200))
    among_objects = bootstrap_runs(noise)
    assert among_objects.mean == pytest.approx(noise.mean())
    assert among_objects.high - among_objects.low == pytest.approx(2 * 1.96 / np.sqrt(600), rel=0.5)
    among_runs = bootstrap_runs(np.repeat([[-1.0], [0.0], [1.0]], 200, axis=1))
    assert (among_runs.low, among_runs.high) == pytest.approx((-1, 1))
    for wrong in ([1.0], [[]], [[np.nan]]):
        with pytest.raises(ValueError, match="table of finite numbers"):
            bootstrap_runs(wrong)
