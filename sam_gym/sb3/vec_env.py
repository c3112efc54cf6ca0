"""`SamVecEnv`: a vector environment of this suite as an SB3 VecEnv, equal to a DummyVecEnv of single environments.

SB3 does not accept Gymnasium's vector environments, and DummyVecEnv steps single ones in turn; this keeps the one SAM
call per step. It has no logic of its own besides renaming.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices, VecEnvStepReturn

from sam_gym.envs.base import EngineVectorEnv


class SamVecEnv(VecEnv):
    """Adapter for PPO, MaskablePPO and whatever else takes a VecEnv.

    Args:
        env: A vector environment with `autoreset_mode="SameStep"`.
        reward_scale: Rewards are multiplied by it; IoU gains are small numbers for a value function.

    Raises:
        ValueError: Another autoreset mode.

    Example:
        ``SamVecEnv(gymnasium.make_vec("sam_gym:SamPrompt-ISBI-v0", num_envs=16, autoreset_mode="SameStep"))``
    """

    def __init__(self, env: EngineVectorEnv | gymnasium.vector.VectorEnv, *, reward_scale: float = 1.0) -> None:
        unwrapped = env.unwrapped
        if not isinstance(unwrapped, EngineVectorEnv) or unwrapped is not env:
            raise ValueError(f"SamVecEnv adapts an unwrapped vector environment of sam_gym, got {env!r}")
        if unwrapped.autoreset_mode.value != "SameStep":
            raise ValueError(
                f"SB3 expects ended episodes to begin anew in the same step: make the environment with "
                f"autoreset_mode='SameStep', not {unwrapped.autoreset_mode.value!r}"
            )
        self.env = unwrapped
        self.reward_scale = reward_scale
        self._actions: NDArray | None = None
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> dict[str, NDArray]:
        """Begin episodes everywhere, with the seeds and options that were set before."""
        requests = [dict(options) for options in self._options]
        names = {name for request in requests for name in request}
        incomplete = [name for name in names if not all(name in request for request in requests)]
        if incomplete:
            raise ValueError(f"reset options {sorted(incomplete)} are set for some environments only; set all or none")
        options = {name: [request[name] for request in requests] for name in names}
        observations, infos = self.env.reset(seed=list(self._seeds), options=options)
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
            if dones[i]:
                info = _row(vector_infos["final_info"], i)
                info["terminal_observation"] = vector_infos["final_obs"][i]
                self.reset_infos[i] = _row(vector_infos, i)
            else:
                info = _row(vector_infos, i)
            info["TimeLimit.truncated"] = bool(truncated[i] and not terminated[i])
            infos.append(info)
        return observations, (self.reward_scale * rewards).astype(np.float32), dones, infos

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        """One picture per sub-environment."""
        return self.env.render() or [None] * self.num_envs

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The attribute once per sub-environment; sub-environments share the vector environment's attributes."""
        value = getattr(self.env, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Not possible: the sub-environments are rows of one engine.

        Raises:
            AttributeError: Always.
        """
        raise AttributeError(f"{attr_name!r} cannot be set: make the environment with other arguments instead")

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """Call a method that gives one value per sub-environment (`action_masks`, `render`)."""
        values = getattr(self.env, method_name)(*args, **kwargs)
        return [None if values is None else values[i] for i in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[gymnasium.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """Nothing is wrapped."""
        return [False for _ in self._get_indices(indices)]


def _row(infos: dict[str, Any], row: int) -> dict[str, Any]:
    """What a vector info says of one sub-environment, as plain Python values."""
    info = {}
    for name, values in infos.items():
        if name.startswith("_") or name in ("final_obs", "final_info") or not infos[f"_{name}"][row]:
            continue
        value = values[row]
        info[name] = value.item() if isinstance(value, np.generic) else value
    return info
