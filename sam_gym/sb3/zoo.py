"""`ZooVecEnv`: what rl-zoo3 takes as `ExperimentManager.default_vec_env_cls`, for one call of SAM a step there too.

rl-zoo3 hands a list of functions that make single environments to its VecEnv class. This one calls the first, to learn
what is wanted, and then makes a vector environment of the same settings. rl-zoo3 itself is not imported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecMonitor

from sam_gym.envs.base import EngineEnv
from sam_gym.sb3.vec_env import SamVecEnv


class ZooVecEnv(VecMonitor):
    """N environments of this suite for rl-zoo3, or for SB3's `make_vec_env(vec_env_cls=ZooVecEnv)`.

    Args:
        env_fns: N functions that make the same environment of this suite; wrappers other than Gymnasium's own checkers
            and SB3's Monitor cannot be kept.

    Raises:
        ValueError: It is another environment, or is wrapped otherwise.
    """

    def __init__(self, env_fns: Sequence[Callable[[], gymnasium.Env]]) -> None:
        one = env_fns[0]()
        file = None
        layer: Any = one
        while isinstance(layer, gymnasium.Wrapper):
            if isinstance(layer, Monitor):
                if layer.results_writer is not None:
                    file = layer.results_writer.file_handler.name
            elif type(layer).__module__ not in OWN:
                raise ValueError(
                    f"ZooVecEnv runs all episodes in one call of SAM and cannot wrap each in {type(layer).__name__}: "
                    "leave env_wrapper out of the hyper-parameters"
                )
            layer = layer.env
        spec = one.spec
        if not isinstance(layer, EngineEnv) or spec is None:
            raise ValueError(f"ZooVecEnv is for environments of sam_gym, got {layer!r}")
        one.close()
        vectors = gymnasium.make_vec(
            spec.id, num_envs=len(env_fns), vectorization_mode="vector_entry_point", autoreset_mode="SameStep",
            max_episode_steps=spec.max_episode_steps, **spec.kwargs,
        )  # fmt: skip
        super().__init__(SamVecEnv(vectors), filename=file)


OWN = ("gymnasium.wrappers.common",)
"""Modules of the wrappers that `gymnasium.make` puts around any environment."""
