"""Prompters that pick one of several masks: by SAM's own estimates, by the truth."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sam_gym.envs.prefer import PreferEngine

if TYPE_CHECKING:
    from sam_gym.envs.base import EngineVectorEnv


def own_estimate(observations: dict[str, NDArray], env: EngineVectorEnv) -> NDArray[np.int64]:
    """The candidate of which SAM predicts the highest IoU."""
    return _engine(env).episodes.offered_iou.argmax(axis=1)


def oracle_choice(observations: dict[str, NDArray], env: EngineVectorEnv) -> NDArray[np.int64]:
    """The candidate that has the highest IoU, by the ground truth."""
    return offered_iou(env).argmax(axis=1)


def offered_iou(env: EngineVectorEnv) -> NDArray[np.float64]:
    """(N, K) IoU of all candidates, by the ground truth."""
    engine = _engine(env)
    return np.stack([engine.offers(row).iou for row in range(env.num_envs)])


def _engine(env: EngineVectorEnv) -> PreferEngine:
    if not isinstance(env.engine, PreferEngine):
        raise ValueError(
            f"this prompter picks a mask: it needs SamPrefer, not action_mode={env.settings.action_mode!r}"
        )
    return env.engine
