"""The single and the vector environment of every task about prompting a SAM, around one `PromptEngine`.

A task's module derives both, gives its `Settings` and writes its specification. Seeding, autoreset and Gymnasium's
interfaces are those of `sam_gym.envs.episodic`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from sam_gym.data import SegmentationData
from sam_gym.envs.engine import PromptEngine
from sam_gym.envs.episodic import BatchEnv, SingleEnv, checked_num_envs, checked_render_mode
from sam_gym.envs.interface import EpisodeInterface
from sam_gym.envs.settings import Settings


class EngineEnv(EpisodeInterface, SingleEnv):
    """One episode at a time; what an episode is, the task's own class says."""

    settings_class: ClassVar[type[Settings]]
    engine_class: ClassVar[type[PromptEngine]] = PromptEngine

    def __init__(
        self, *, render_mode: str | None = None, images: SegmentationData | None = None, **settings: Any
    ) -> None:
        checked_render_mode(render_mode)  # before SAM is loaded
        self.settings = self.settings_class.parse(settings)
        engine = self.engine_class(self.settings, num_envs=1, images=images)
        super().__init__(engine, engine.actions.space, engine.observation_space, render_mode)

    def action_masks(self) -> NDArray[np.bool_]:
        """(actions,) bool: False where an action would be pointless; discrete action modes only."""
        return self.engine.action_masks()[0]


class EngineVectorEnv(EpisodeInterface, BatchEnv):
    """N episodes with one SAM call per step.

    Equal to a `SyncVectorEnv` of N single environments in all three autoreset modes. Sub-environment i draws from its
    own generator, seeded `seed + i`.

    `reset(options=...)` takes each of the task's options as one value for all, or as a list with one per
    sub-environment, and "reset_mask" (N,) bool.

    Args:
        num_envs: N.
        autoreset_mode: "NextStep", "SameStep" or "Disabled".
        max_episode_steps: Truncate after so many steps; None never truncates.
        render_mode: "rgb_array" or None.
        images: Your own images, instead of those that dataset, split and data name; see `PromptEngine`.
        **settings: As for the single environment.
    """

    settings_class: ClassVar[type[Settings]]
    engine_class: ClassVar[type[PromptEngine]] = PromptEngine

    def __init__(
        self,
        num_envs: int = 1,
        *,
        autoreset_mode: str | AutoresetMode = "NextStep",
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        images: SegmentationData | None = None,
        **settings: Any,
    ) -> None:
        checked_num_envs(num_envs)
        checked_render_mode(render_mode)
        autoreset_mode = AutoresetMode(autoreset_mode)
        self.settings = self.settings_class.parse(settings)
        engine = self.engine_class(self.settings, num_envs, images)
        spaces = engine.actions.space, engine.observation_space
        super().__init__(engine, num_envs, *spaces, autoreset_mode, max_episode_steps, render_mode)

    def begin_rows(self, requests: Mapping[int, Mapping[str, Any]]) -> dict[str, NDArray]:
        """Begin episodes in some rows and leave the others alone, whether these have begun or not.

        For callers that run rows by themselves, as annotation does; together with `step_rows`, instead of `reset` and
        `step`. No row resets by itself then.

        Args:
            requests: Row -> its reset options.

        Returns:
            The observations of all rows.
        """
        self.engine.begin({row: self.engine.pose(self.np_random[row], one) for row, one in requests.items()})
        return self.engine.observations()

    def step_rows(self, rows: NDArray[np.intp], actions: NDArray) -> tuple[dict[str, NDArray], NDArray[np.float64]]:
        """Act in some rows only; `episodes.terminated` says which have ended.

        Returns:
            The observations of all rows, and the rewards of `rows`.
        """
        rewards, _ = self.engine.step(rows, actions, dict)
        return self.engine.observations(), rewards

    def click_row(self, row: int, xy: Sequence[float] | NDArray, label: int) -> dict[str, NDArray]:
        """A click of a person in one row, anywhere in the image; it counts as a prompt.

        Args:
            row: The row.
            xy: x and y in pixels of the image; a place outside of it moves to its border.
            label: 1 foreground, 0 background.

        Returns:
            The observations of all rows.
        """
        self.engine.click(row, np.asarray(xy, np.float64), label)
        return self.engine.observations()

    def action_masks(self) -> NDArray[np.bool_]:
        """(N, actions) bool: False where an action would be pointless; discrete action modes only."""
        return self.engine.action_masks()
