"""What a run does between two rollouts of PPO: bar, checkpoint, validation, and where the time goes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from stable_baselines3.common.callbacks import BaseCallback
from tqdm import tqdm

from sam_gym._utils.stopwatch import Stopwatch

if TYPE_CHECKING:
    from sam_gym.training.run import Training


class PPOProgress(BaseCallback):
    """Bar, checkpoint and validation between two rollouts; rollouts and updates are timed apart.

    Args:
        run: What is trained.
        bar: Of environment steps.
        watch: Of PPO; validation does not count.
    """

    def __init__(self, run: Training, bar: tqdm, watch: Stopwatch) -> None:
        super().__init__()
        self.run, self.bar, self.watch = run, bar, watch
        self.started, self.counted = time.perf_counter(), run.model.num_timesteps

    def _on_rollout_start(self) -> None:
        if self.num_timesteps > self.counted:
            self._count("learning")
            self.watch.known["steps"] += self.num_timesteps - self.counted
            self.counted = self.num_timesteps
        if self.num_timesteps:
            self.run.save_checkpoint()
            self.started = time.perf_counter()
        self.bar.set_postfix_str("rollout", refresh=False)

    def _on_step(self) -> bool:
        self.bar.update(self.training_env.num_envs)
        return True

    def _on_rollout_end(self) -> None:
        self._count("rollout")
        self.bar.set_postfix_str("learning")

    def _on_training_end(self) -> None:
        self._count("learning")
        self.watch.known["steps"] += self.num_timesteps - self.counted

    def _count(self, part: str) -> None:
        seconds, self.started = time.perf_counter() - self.started, time.perf_counter()
        self.watch.add(part, seconds)
        self.watch.known["seconds"] += seconds
        self.run.state["seconds"]["ppo"] += seconds
