"""`SamVecEnv`: a Gymnasium vector environment as an SB3 VecEnv, equal to a DummyVecEnv of single environments.

SB3 does not accept Gymnasium's vector environments, and DummyVecEnv steps single ones in turn; this keeps the one SAM
call per step. It has no logic of its own besides renaming, and takes vector environments of others as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv, VectorWrapper
from numpy.typing import NDArray
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices, VecEnvObs, VecEnvStepReturn

from sam_gym.envs.base import EngineVectorEnv

PLAIN = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
"""Spaces that SB3 takes, for actions and for observations; the latter may be a Dict of them."""

FINAL = ("final_obs", "final_info")


class SamVecEnv(VecEnv):
    """Adapter for PPO, MaskablePPO and whatever else takes a VecEnv.

    Args:
        env: A vector environment with `autoreset_mode="SameStep"`, of this suite or any other, wrapped or not.
        reward_scale: Rewards are multiplied by it; IoU gains are small numbers for a value function.

    Raises:
        ValueError: No vector environment, another autoreset mode, or spaces that SB3 does not take.

    Example:
        ``SamVecEnv(gymnasium.make_vec("sam_gym:SamPrompt-ISBI-v0", num_envs=16, autoreset_mode="SameStep"))``
    """

    def __init__(self, env: VectorEnv, *, reward_scale: float = 1.0) -> None:
        if not isinstance(env, VectorEnv):
            raise ValueError(f"SamVecEnv adapts vector environments: make one with gymnasium.make_vec, got {env!r}")
        mode = (env.metadata or {}).get("autoreset_mode", "unknown")
        mode = getattr(mode, "value", mode)
        if mode != "SameStep":
            how = "autoreset_mode='SameStep'"
            if not isinstance(env.unwrapped, EngineVectorEnv):
                how = "vector_kwargs={'autoreset_mode': AutoresetMode.SAME_STEP}"
            raise ValueError(
                f"SB3 expects ended episodes to begin anew in the same step: make the environment with {how}, "
                f"not {mode!r}"
            )
        check_spaces(env.single_observation_space, env.single_action_space)
        self.env = env
        self.reward_scale = reward_scale
        self._actions: NDArray | None = None
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> VecEnvObs:
        """Begin episodes everywhere, with the seeds and options that were set before."""
        seeds = None if all(seed is None for seed in self._seeds) else list(self._seeds)
        given = {"options": options} if (options := self._reset_options_of_all()) else {}
        observations, infos = self.env.reset(seed=seeds, **given)  # type: ignore[arg-type]  # lists are taken as well
        self.reset_infos = [_row(infos, i) for i in range(self.num_envs)]
        self._reset_seeds()
        self._reset_options()
        return observations

    def step_async(self, actions: NDArray) -> None:
        """Take the actions of the next step."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Step; for an ended episode `terminal_observation` has its last observation."""
        assert self._actions is not None, "step_async() comes first"
        observations, rewards, terminated, truncated, vector_infos = self.env.step(self._actions)
        dones = terminated | truncated
        infos = []
        for i in range(self.num_envs):
            info = _row(vector_infos, i)
            if dones[i]:
                fresh, info = info, _row(vector_infos["final_info"], i)
                if "episode" in fresh:  # RecordEpisodeStatistics tells of the ended episode beside the new one
                    info["episode"] = fresh.pop("episode")
                info["terminal_observation"] = vector_infos["final_obs"][i]
                self.reset_infos[i] = fresh
            info["TimeLimit.truncated"] = bool(truncated[i] and not terminated[i])
            infos.append(info)
        return observations, (self.reward_scale * rewards).astype(np.float32), dones, infos

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        """One picture per sub-environment."""
        pictures: Any = self.env.render() if self.render_mode is not None else None
        return pictures or [None] * self.num_envs

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The attribute once per sub-environment: the vector environment's, which they share, or else their own.

        Raises:
            AttributeError: Neither has it.
        """
        rows = list(self._get_indices(indices))
        for layer in self._layers():
            if hasattr(layer, attr_name):
                return [getattr(layer, attr_name)] * len(rows)
        values = self._call(attr_name)
        return [values[i] for i in rows]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Not possible: what sub-environments are like is said when they are made.

        Raises:
            AttributeError: Always.
        """
        raise AttributeError(f"{attr_name!r} cannot be set: make the environment with other arguments instead")

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """Call a method that gives one value per sub-environment (`action_masks`, `render`), or one of each of them.

        Raises:
            AttributeError: There is no such method.
        """
        method = next((getattr(one, method_name) for one in self._layers() if hasattr(one, method_name)), None)
        values = self._call(method_name, *args, **kwargs) if method is None else method(*args, **kwargs)
        return [None if values is None else values[i] for i in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[gymnasium.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """Which sub-environments are wrapped so; the rows of an engine never are."""
        envs = getattr(self.env.unwrapped, "envs", None)
        return [envs is not None and is_wrapped(envs[i], wrapper_class) for i in self._get_indices(indices)]

    def _layers(self) -> Iterator[VectorEnv]:
        """The environment, and what it wraps, from outside in."""
        layer = self.env
        yield layer
        while isinstance(layer, VectorWrapper):
            layer = layer.env
            yield layer

    def _call(self, name: str, *args: Any, **kwargs: Any) -> Sequence[Any]:
        """What the single environments of a Sync- or AsyncVectorEnv say."""
        base: Any = self.env.unwrapped
        if not hasattr(base, "call"):
            raise AttributeError(f"{type(base).__name__} has no attribute {name!r}")
        return base.call(name, *args, **kwargs)

    def _reset_options_of_all(self) -> dict[str, Any]:
        """The options that were set for each sub-environment, as the vector environment takes them."""
        requests = [dict(options) for options in self._options]
        names = {name for request in requests for name in request}
        incomplete = [name for name in names if not all(name in request for request in requests)]
        if incomplete:
            raise ValueError(f"reset options {sorted(incomplete)} are set for some environments only; set all or none")
        if isinstance(self.env.unwrapped, EngineVectorEnv):
            return {name: [request[name] for request in requests] for name in names}
        different = [n for n in names if any(not _equal(one[n], requests[0][n]) for one in requests)]
        if different:
            kind = type(self.env.unwrapped).__name__
            raise ValueError(
                f"reset options {sorted(different)} differ between environments, and {kind} takes one value for all: "
                "set the same for all"
            )
        return requests[0]


def check_spaces(observation_space: spaces.Space, action_space: spaces.Space) -> None:
    """Raise ValueError, in one sentence, unless SB3 takes such observations and actions."""
    if not isinstance(action_space, PLAIN):
        raise ValueError(
            f"SB3 acts in Box, Discrete, MultiDiscrete and MultiBinary spaces, not in {action_space}: "
            "flatten it with a wrapper"
        )
    parts: dict[str, spaces.Space] = {"": observation_space}
    if isinstance(observation_space, spaces.Dict):
        parts = dict(observation_space.spaces)
    for name, part in parts.items():
        if not isinstance(part, PLAIN):
            where = f" at {name!r}" if name else ""
            raise ValueError(
                "SB3 observes Box, Discrete, MultiDiscrete and MultiBinary spaces and a Dict of them, not "
                f"{part}{where}: flatten it with a wrapper"
            )
    for space in (action_space, *parts.values()):
        if isinstance(space, spaces.Discrete) and space.start != 0:
            raise ValueError(f"SB3 counts the values of a Discrete space from 0, not from {space.start}: shift {space}")


def _equal(one: Any, other: Any) -> bool:
    try:
        return bool(np.array_equal(one, other))
    except (TypeError, ValueError):
        return bool(one == other)


def _row(infos: dict[str, Any], row: int) -> dict[str, Any]:
    """What a vector info says of one sub-environment, as plain Python values."""
    info = {}
    for name, values in infos.items():
        if name.startswith("_") or name in FINAL or (f"_{name}" in infos and not infos[f"_{name}"][row]):
            continue
        value = _row(values, row) if isinstance(values, dict) else values[row]
        info[name] = value.item() if isinstance(value, np.generic) else value
    return info
