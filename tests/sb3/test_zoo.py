"""`ZooVecEnv` is to `make_vec_env`, as rl-zoo3 calls it, what DummyVecEnv is, with one decode a step."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.wrappers import TransformReward
from stable_baselines3.common.env_util import make_vec_env

from sam_gym.sb3.zoo import ZooVecEnv


def test_it_equals_dummy_vec_env(small: dict[str, Any], tmp_path: Path) -> None:
    settings = {**small, "max_prompts": 2}
    make = partial(gymnasium.make, settings.pop("id"))  # rl-zoo3 hands a function over, too
    given = {"n_envs": 3, "seed": 5, "env_kwargs": settings}
    ours = make_vec_env(make, vec_env_cls=ZooVecEnv, monitor_dir=str(tmp_path), **given)  # type: ignore[arg-type]
    dummy = make_vec_env(make, **given)
    one, two = ours.reset(), dummy.reset()
    backend = ours.get_attr("backend")[0]
    for step in range(4):
        for name in two:
            np.testing.assert_array_equal(one[name], two[name], name)
        calls = backend.decoder_calls
        actions = np.array([3, 40, 512 if step == 1 else 7])
        one, rewards, dones, infos = ours.step(actions)
        assert backend.decoder_calls == calls + 1
        two, same_rewards, same_dones, same_infos = dummy.step(actions)
        np.testing.assert_array_equal(rewards, same_rewards)
        np.testing.assert_array_equal(dones, same_dones)
        for mine, theirs in zip(infos, same_infos, strict=True):
            assert ("episode" in mine) == ("episode" in theirs)
    ours.close()
    assert len((tmp_path / "0.monitor.csv").read_text().splitlines()) >= 5  # two lines of header, and the episodes


def test_what_it_cannot_run(small: dict[str, Any]) -> None:
    settings = dict(small)
    env_id = settings.pop("id")
    with pytest.raises(ValueError, match="cannot wrap each in TransformReward"):
        ZooVecEnv([lambda: TransformReward(gymnasium.make(env_id, **settings), lambda reward: reward)])
    with pytest.raises(ValueError, match="ZooVecEnv is for environments of sam_gym, got"):
        ZooVecEnv([lambda: gymnasium.make("CartPole-v1")])
