"""SamVecEnv is a DummyVecEnv of single environments, to the last bit, and serves PPO and MaskablePPO."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecMonitor

from sam_gym.sb3 import SamVecEnv
from sam_gym.sb3.vec_env import check_spaces

N = 3
STOP = 2 * 16 * 16

action = st.one_of(st.integers(0, STOP), st.just(STOP), st.sampled_from([120, 120 + 256]))


def dummy(small: dict[str, Any], limit: int | None = None, **changes: Any) -> DummyVecEnv:
    return DummyVecEnv([partial(gymnasium.make, max_episode_steps=limit, **{**small, **changes})] * N)


def adapter(small: dict[str, Any], limit: int | None = None, *, scale: float = 1.0, **changes: Any) -> SamVecEnv:
    env = gymnasium.make_vec(num_envs=N, autoreset_mode="SameStep", max_episode_steps=limit, **{**small, **changes})
    return SamVecEnv(env, reward_scale=scale)


def reset(env: VecEnv) -> tuple:
    return dict(env.reset()), deepcopy(env.reset_infos)


def step(env: VecEnv, actions: list[int]) -> tuple:
    observations, rewards, dones, infos = env.step(np.array(actions))
    return dict(observations), rewards, dones, infos, deepcopy(env.reset_infos)


@settings(max_examples=15)
@given(
    actions=st.lists(st.lists(action, min_size=N, max_size=N), min_size=1, max_size=8),
    seed=st.integers(0, 2**30),
    limit=st.none() | st.integers(1, 3),
)
@example(actions=[[STOP] * N] * 3, seed=0, limit=None)
@example(actions=[[7, STOP, 7 + 256]] * 7, seed=5, limit=3)
@example(actions=[[1, 2, STOP]] * 2, seed=5, limit=1)  # the limit and the end in one step
def test_equals_dummy_vec_env(
    small: dict[str, Any], same: Callable[[Any, Any], None], actions: list, seed: int, limit: int | None
) -> None:
    ours, theirs = adapter(small, limit, max_prompts=3), dummy(small, limit, max_prompts=3)
    assert ours.seed(seed) == theirs.seed(seed)
    same(reset(ours), reset(theirs))
    for each in actions:
        same(step(ours, each), step(theirs, each))
    same(reset(ours), reset(theirs))  # the seed is used once; the generators go on


def test_ends_are_told_apart(small: dict[str, Any]) -> None:
    """What PPO bootstraps from: only a time limit, and only where the episode did not end by itself."""
    env = adapter(small, 2, max_prompts=5)
    env.seed(0)
    first = env.reset()
    env.step(np.array([1, 2, STOP]))
    observations, rewards, dones, infos = env.step(np.array([3, STOP, 4]))
    assert dones.tolist() == [True, True, False]
    assert [info["TimeLimit.truncated"] for info in infos] == [True, False, False]
    assert [("terminal_observation" in info) for info in infos] == [True, True, False]
    assert infos[0]["terminal_observation"]["state"][0] == pytest.approx(0.6)
    assert observations["state"][:, 0].tolist() == pytest.approx([1, 1, 0.8])
    assert [info["prompts"] for info in infos] == [2, 1, 1]
    assert [info["prompts"] for info in env.reset_infos] == [0, 0, 0]
    assert rewards.dtype == np.float32
    assert first["maps"].dtype == np.uint8


@pytest.mark.parametrize(
    "options",
    [
        {"image": 1},
        {"image": "synthetic-10003", "cue": (50, 60, 90, 110)},
        [{"image": i, "cue": (10 + i, 20, 60, 70)} for i in range(N)],
        [{"image": "synthetic-10001"}, {"image": "synthetic-10000"}, {"image": "synthetic-10007"}],
    ],
)
def test_options_equal_those_of_dummy_vec_env(
    small: dict[str, Any], same: Callable[[Any, Any], None], options: Any
) -> None:
    ours, theirs = adapter(small), dummy(small)
    for env in (ours, theirs):
        env.seed(3)
        env.set_options(options)
    same(reset(ours), reset(theirs))
    same(reset(ours), reset(theirs))  # options are used once, too


def test_options_for_some_are_refused(small: dict[str, Any]) -> None:
    env = adapter(small)
    env.set_options([{"image": 1}, {}, {"image": 1}])
    with pytest.raises(ValueError, match=r"\['image'\] are set for some"):
        env.reset()


def test_action_masks(small: dict[str, Any]) -> None:
    ours, theirs = adapter(small), dummy(small)
    assert is_masking_supported(ours)
    for env in (ours, theirs):
        env.seed(1)
        env.reset()
        env.step(np.array([120, STOP, 7]))
    masks = get_action_masks(ours)
    np.testing.assert_array_equal(masks, get_action_masks(theirs))
    assert not masks[0, [120, 120 + 256]].any()
    assert masks[1, 120]
    masked = ours.env_method("action_masks", indices=[2, 0])
    np.testing.assert_array_equal(masked, masks[[2, 0]])
    np.testing.assert_array_equal(get_action_masks(VecMonitor(ours)), masks)


def test_rewards_are_scaled_and_nothing_else(small: dict[str, Any], same: Callable[[Any, Any], None]) -> None:
    plain, scaled = adapter(small, reward="hit"), adapter(small, scale=10.0, reward="hit")
    for env in (plain, scaled):
        env.seed(0)
    same(reset(plain), reset(scaled))
    for actions in ([1, 2, 3], [STOP, 4, 300]):
        one, ten = step(plain, actions), step(scaled, actions)
        assert np.abs(one[1]).max() == 1
        same(ten[1], 10 * one[1])
        same((ten[0], *ten[2:]), (one[0], *one[2:]))


def test_vec_monitor_counts_episodes(small: dict[str, Any]) -> None:
    env = VecMonitor(adapter(small, reward="hit"))
    env.seed(0)
    env.reset()
    total = env.step(np.array([120, 5, 6]))[1][0]
    _, rewards, dones, infos = env.step(np.array([STOP, 7, STOP]))
    assert dones.tolist() == [True, False, True]
    assert infos[0]["episode"]["l"] == 2
    assert infos[0]["episode"]["r"] == pytest.approx(total + rewards[0])
    assert "episode" not in infos[1]


@pytest.mark.parametrize("algorithm", [PPO, MaskablePPO])
def test_learns(small: dict[str, Any], algorithm: type) -> None:
    model = algorithm("MultiInputPolicy", adapter(small, 4), n_steps=6, batch_size=9, n_epochs=1, seed=0, device="cpu")
    before = {name: weight.clone() for name, weight in model.policy.state_dict().items()}
    model.learn(2 * 6 * N)
    assert model.num_timesteps == 2 * 6 * N
    changed = {name for name, weight in model.policy.state_dict().items() if not weight.equal(before[name])}
    assert changed == set(before)


# ------------------------------------------------------------------------------------------- other environments


class Masked(gymnasium.Wrapper):
    """CartPole in which the first action is forbidden, and a reset option says where it stands."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple:
        observation, info = self.env.reset(seed=seed, options=options)
        return observation, {**info, "low": (options or {}).get("low", 0.0)}

    def action_masks(self) -> np.ndarray:
        return np.array([False, True])


def cartpoles(n: int = N, limit: int = 12, *wrappers: Any, kind: str = "sync") -> gymnasium.vector.VectorEnv:
    return gymnasium.make_vec(
        "CartPole-v1", num_envs=n, vectorization_mode=kind, max_episode_steps=limit, wrappers=wrappers,
        vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_cartpole_equals_dummy_vec_env(same: Callable[[Any, Any], None], kind: str) -> None:
    ours = SamVecEnv(cartpoles(kind=kind))
    theirs = DummyVecEnv([partial(gymnasium.make, "CartPole-v1", max_episode_steps=12)] * N)
    assert ours.seed(7) == theirs.seed(7)
    for env in (ours, theirs):
        env.set_options({"low": -0.02, "high": 0.02})
    rng, ends = np.random.default_rng(0), np.zeros(2, int)
    for _ in range(2):  # options and seeds count once
        first, second = ours.reset(), theirs.reset()
        same((first, ours.reset_infos), (second, theirs.reset_infos))
        for _ in range(40):
            actions = (rng.random(N) < 0.2).astype(int)
            one, other = ours.step(actions), theirs.step(actions)
            same(one, other)
            cut = np.array([info["TimeLimit.truncated"] for info in one[3]])
            ends += [cut.sum(), (one[2] & ~cut).sum()]
    assert (ends > 0).all()  # poles fell, and time ran out
    ours.close()


def test_single_environments_are_asked(same: Callable[[Any, Any], None]) -> None:
    """Methods, options and wrappers that only the sub-environments have."""
    env = SamVecEnv(cartpoles(N, 12, Masked))
    same(get_action_masks(env), np.array([[False, True]] * N))
    assert env.env_is_wrapped(Masked, indices=[0, 2]) == [True, True]
    assert not is_masking_supported(SamVecEnv(cartpoles()))
    with pytest.raises(AttributeError, match="action_masks"):
        SamVecEnv(cartpoles()).env_method("action_masks")
    env.reset()
    assert [info["low"] for info in env.reset_infos] == [0.0] * N
    env.set_options([{"low": -0.01 * i} for i in range(N)])
    with pytest.raises(ValueError, match=r"reset options \['low'\] differ .* SyncVectorEnv takes one value for all"):
        env.reset()
    PPO("MlpPolicy", SamVecEnv(cartpoles()), n_steps=8, batch_size=8, n_epochs=1, device="cpu").learn(48)


def test_wrapped_it_is_the_same(small: dict[str, Any], same: Callable[[Any, Any], None]) -> None:
    """Wrappers of the vector environment act; masks, options and pictures are those of what they wrap."""
    plain = adapter(small, 3, scale=10.0, reward="hit")
    inner = gymnasium.make_vec(
        num_envs=N, autoreset_mode="SameStep", max_episode_steps=3, reward="hit", render_mode="rgb_array", **small
    )
    counted = gymnasium.wrappers.vector.RecordEpisodeStatistics(inner)
    wrapped = SamVecEnv(gymnasium.wrappers.vector.TransformReward(counted, lambda reward: 10 * reward))
    for env in (plain, wrapped):
        env.seed(1)
        env.set_options([{"image": i} for i in range(N)])
    same(reset(wrapped), reset(plain))
    for actions in ([1, STOP, 3], [4, 5, 6], [7, 8, STOP]):
        mine, other = step(wrapped, actions), step(plain, actions)
        episodes = [info.pop("episode", None) for info in mine[3]]
        assert [episode is not None for episode in episodes] == other[2].tolist()
        same(mine, other)
        same(get_action_masks(wrapped), get_action_masks(plain))
    assert episodes[0]["l"] == 3
    assert [picture.shape for picture in wrapped.get_images()] == [(512, 448, 3)] * N


def test_refuses_spaces_that_sb3_does_not_take() -> None:
    number, two = spaces.Box(0, 1, (2,)), spaces.Discrete(2)
    check_spaces(spaces.Dict({"a": number, "b": two}), spaces.MultiDiscrete([2, 3]))
    for observed, acted, message in (
        (number, spaces.Tuple([two, two]), r"SB3 acts in .*, not in Tuple\(Discrete\(2\), Discrete\(2\)\): flatten"),
        (number, spaces.Dict({"a": two}), "SB3 acts in .*, not in Dict"),
        (number, spaces.Discrete(2, start=1), "from 0, not from 1"),
        (spaces.Tuple([two]), two, "SB3 observes .*, not Tuple"),
        (spaces.Dict({"a": spaces.Dict({"b": number})}), two, "SB3 observes .* at 'a': flatten"),
    ):
        with pytest.raises(ValueError, match=message):
            check_spaces(observed, acted)


@pytest.mark.parametrize("mode", ["NextStep", "Disabled"])
def test_refuses_other_autoreset_modes(small: dict[str, Any], mode: str) -> None:
    env = gymnasium.make_vec(num_envs=2, autoreset_mode=mode, **small)
    with pytest.raises(ValueError, match=f"autoreset_mode='SameStep', not '{mode}'"):
        SamVecEnv(env)


def test_refuses_other_environments(small: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="AutoresetMode.SAME_STEP}, not 'NextStep'"):
        SamVecEnv(gymnasium.make_vec("CartPole-v1", num_envs=2))
    single: Any = gymnasium.make(**small)
    with pytest.raises(ValueError, match="make one with gymnasium.make_vec, got"):
        SamVecEnv(single)


def test_pictures_and_attributes(small: dict[str, Any]) -> None:
    env = adapter(small, render_mode="rgb_array")
    env.seed(0)
    env.reset()
    assert env.render_mode == "rgb_array"
    assert [picture.shape for picture in env.get_images()] == [(512, 448, 3)] * N
    assert env.render().ndim == 3
    blind = adapter(small)
    blind.reset()
    assert blind.get_images() == blind.env_method("render") == [None] * N
    assert blind.get_attr("num_envs", indices=0) == [N]
    assert blind.env_is_wrapped(gymnasium.wrappers.TimeLimit) == [False] * N
    with pytest.raises(AttributeError, match="'reward' cannot be set"):
        blind.set_attr("reward", "hit")
