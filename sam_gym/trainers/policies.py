"""What RLlib and TorchRL share: a policy of `sam_gym.sb3` as a network to train, and the agent's file that comes out.

The policies are torch modules with an SB3 interface, and are used here for their networks alone: trained elsewhere they
have the same weights by the same names. No training is done here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium
import torch
from gymnasium import spaces
from sb3_contrib import MaskablePPO
from stable_baselines3.common.utils import ConstantSchedule
from torch import Tensor

from sam_gym._utils.naming import unknown
from sam_gym.envs.base import EngineVectorEnv
from sam_gym.envs.engine import ACTION_MASK
from sam_gym.sb3 import ALGORITHMS, ChoicePolicy, SamVecEnv, SpatialPolicy, save_agent

FORBIDDEN = -1e8
"""Logit of an action that is not allowed, as in SB3; minus infinity would make NaN of PPO's divergences."""

MASKED = {name: policy for name, (algorithm, policy) in ALGORITHMS.items() if algorithm is MaskablePPO}
"""Name -> policy, of those that act on discrete actions under a mask."""


def new_policy(
    name: str, observation_space: spaces.Space, action_space: spaces.Space, **kwargs: Any
) -> SpatialPolicy | ChoicePolicy:
    """A new policy; it does not see the mask, its logits are masked by `allowed_logits`.

    Args:
        name: "LightPolicy" or another name in `MASKED`.
        observation_space: Of one environment, with or without `action_mask`.
        action_space: Of one environment.
        **kwargs: As for the policy.

    Raises:
        ValueError: No such policy, or one that does not fit these spaces.
    """
    if name not in MASKED:
        raise ValueError(unknown("policy", name, MASKED))
    policy: Any = MASKED[name]
    return policy(without_mask(observation_space), action_space, ConstantSchedule(0.0), **kwargs)


def without_mask(observation_space: spaces.Space) -> spaces.Dict:
    """The same Dict space without `action_mask`."""
    assert isinstance(observation_space, spaces.Dict), "environments of this suite observe a Dict"
    return spaces.Dict({name: space for name, space in observation_space.spaces.items() if name != ACTION_MASK})


def allowed_logits(logits: Tensor, mask: Tensor) -> Tensor:
    """Logits (N, A) with `FORBIDDEN` where the mask (N, A) is 0 or False."""
    return torch.where(mask.bool(), logits, logits.new_tensor(FORBIDDEN))


def save_policy(
    policy: SpatialPolicy | ChoicePolicy,
    file: str | Path,
    env_id: str,
    settings: Mapping[str, Any],
    policy_kwargs: Mapping[str, Any] | None = None,
) -> None:
    """Write a policy as an agent's file, which all commands take: `sam-gym evaluate`, `render`, `segment`.

    Args:
        policy: Made by `new_policy`, trained by anybody.
        file: model.zip; replaced if it is there.
        env_id: Of the environment it was trained in.
        settings: Of that environment; `action_mask` does not count, since agents are asked under a mask anyway.
        policy_kwargs: With which it was made.
    """
    vectors: Any = gymnasium.make_vec(
        env_id, num_envs=1, vectorization_mode="vector_entry_point", autoreset_mode="SameStep",
        **{**settings, ACTION_MASK: False},
    )  # fmt: skip
    env: EngineVectorEnv = vectors
    model: Any = MaskablePPO(
        type(policy), SamVecEnv(env), n_steps=2, batch_size=2, policy_kwargs=dict(policy_kwargs or {}), device="cpu"
    )
    model.policy.load_state_dict(policy.state_dict())
    save_agent(model, file)
