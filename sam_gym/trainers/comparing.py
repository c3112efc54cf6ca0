"""Whether a trainer's own evaluation of a policy says what `sam_gym.evaluation.evaluate` says of the same episodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sam_gym.evaluation import evaluate
from sam_gym.evaluation.records import EpisodeCase
from sam_gym.sb3 import ModelPrompter


class Compared(NamedTuple):
    """Returns (M,) of the same episodes, by the trainer's evaluation and by `sam_gym.evaluation.evaluate`."""

    trainer: NDArray[np.float64]
    sam_gym: NDArray[np.float64]

    def __str__(self) -> str:
        apart = np.abs(self.trainer - self.sam_gym).max()
        return (
            f"{len(self.trainer)} episodes, mean return by the trainer {self.trainer.mean():+.6f}, by sam_gym "
            f"{self.sam_gym.mean():+.6f}; the largest difference of an episode is {apart:.1g}"
        )


def compare(
    policy: Any, env: Any, cases: Sequence[EpisodeCase], returns: Sequence[float], reward_scale: float
) -> Compared:
    """Repeat the episodes of a trainer's evaluation with the same policy.

    Args:
        policy: Of `sam_gym.trainers.policies.new_policy`.
        env: A vector environment with autoreset_mode="Disabled" and without `action_mask`, else as the trainer's.
        cases: The episodes.
        returns: What the trainer says of each.
        reward_scale: Returns are divided by it.
    """
    record = evaluate(ModelPrompter(policy), env, name="agent", cases=cases)
    return Compared(np.array(returns) / reward_scale, record.returns / reward_scale)
