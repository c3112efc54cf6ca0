"""Rewards by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sam_gym.envs.rewards import Outcome, Quality, parse_reward, weighted

OUTCOME = Outcome(
    before=Quality(np.array([0.5, 0.2]), np.array([0.6, 0.3])),
    after=Quality(np.array([0.75, 0.1]), np.array([0.8, 0.3])),
    hit=np.array([1.0, -1.0]),
    agreement=np.array([-0.25, 0.5]),
)


@pytest.mark.parametrize(
    ("reward", "expected"),
    [
        ("iou", [0.25, -0.1]),
        ("dice", [0.2, 0.0]),
        ("hit", [1.0, -1.0]),
        ({"iou": 2.0, "hit": 0.1}, [0.6, -0.3]),
        ({"iou": 1, "dice": 0.5, "hit": -1}, [-0.65, 0.9]),
        ({"iou": 0.0}, [0.0, 0.0]),
        ("clip", [-0.25, 0.5]),
        ({"clip": 2.0, "dice": 1.0}, [-0.3, 1.0]),
    ],
)
def test_weighted_sums(reward: Any, expected: list[float]) -> None:
    got = weighted(parse_reward(reward), OUTCOME)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, expected)


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ("iuo", "unknown reward term 'iuo'; did you mean 'iou'"),
        ({"iou": 1, "text": 1}, "unknown reward term 'text'; there are iou, dice, hit, clip"),
        ({}, "reward is empty"),
    ],
)
def test_unknown_rewards(reward: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_reward(reward)
