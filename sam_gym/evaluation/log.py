"""What is measured of each case while `evaluate` runs its episode."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sam_gym.envs.base import EngineVectorEnv
from sam_gym.evaluation.metrics import boundary_iou


class Log:
    """What is measured of each case while its episode runs, one row a case."""

    def __init__(self, cases: int, env: EngineVectorEnv) -> None:
        self._env = env
        self._iou = np.full((cases, env.settings.max_prompts + 1), np.nan)
        self._prompts, self._area = (np.zeros(cases, np.int64) for _ in range(2))
        self._dice, self._boundary_iou, self._other_decodes, self._returns = (np.zeros(cases) for _ in range(4))

    def note(self, current: NDArray, rows: NDArray[np.bool_]) -> None:
        """Take the IoU of `rows` down; `current` says which case a row works on."""
        counted = rows & (current >= 0)
        env = self._env
        self._iou[current[counted], env.episodes.prompts[counted]] = env.quality.iou[counted]

    def reward(self, cases: NDArray, rewards: NDArray[np.float64]) -> None:
        """Add what a step was rewarded with."""
        self._returns[cases] += rewards

    def share_decodes(self, current: NDArray, rows: NDArray[np.bool_], masks: int) -> None:
        """Share out among `rows` what was decoded to begin their episodes, or by the prompter to choose actions."""
        self._other_decodes[current[rows & (current >= 0)]] += masks / rows.sum()

    def close(self, current: NDArray, finished: NDArray[np.bool_]) -> None:
        """Measure the last masks of the rows whose episodes have ended, at full resolution."""
        env = self._env
        for row in np.flatnonzero(finished & (current >= 0)).tolist():
            case, mask = current[row], env.mask(row)
            self._prompts[case], self._area[case] = env.episodes.prompts[row], np.count_nonzero(mask)
            self._dice[case], self._boundary_iou[case] = env.quality.dice[row], boundary_iou(mask, env.truth(row))

    def columns(self) -> dict[str, NDArray]:
        """The columns of a `Record`, rounded as it wants them."""
        for step in range(1, self._iou.shape[1]):  # carry the last value on
            missing = np.isnan(self._iou[:, step])
            self._iou[missing, step] = self._iou[missing, step - 1]
        return {
            "iou": self._iou.round(6), "prompts": self._prompts, "dice": self._dice.round(6),
            "boundary_iou": self._boundary_iou.round(6), "area": self._area,
            "decodes": (self._prompts + self._other_decodes).round(6), "returns": self._returns.round(6),
        }  # fmt: skip
