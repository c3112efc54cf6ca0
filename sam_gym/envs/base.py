"""The single and the vector environment of every task, around one engine: seeding, autoreset, Gymnasium's interfaces.

A task's module derives both, gives its `Settings` and writes its specification; nothing else is task's business here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from sam_gym.data import SegmentationData
from sam_gym.envs.engine import Pose, PromptEngine
from sam_gym.envs.interface import EpisodeInterface
from sam_gym.envs.settings import Settings

ROW_0 = np.zeros(1, np.intp)

VALUE_DEPTH = {"cue": 1, "points": 2, "mask": 2}
"""Depth of lists that one value of a reset option has, where it is no plain one."""

METADATA: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 2}


class EngineEnv(EpisodeInterface, gymnasium.Env):
    """One episode at a time; what an episode is, the task's own class says."""

    metadata = METADATA
    settings_class: ClassVar[type[Settings]]
    engine_class: ClassVar[type[PromptEngine]] = PromptEngine

    def __init__(
        self, *, render_mode: str | None = None, images: SegmentationData | None = None, **settings: Any
    ) -> None:
        self.render_mode = _checked_render_mode(render_mode, self.metadata)
        self.settings = self.settings_class.parse(settings)
        self.engine = self.engine_class(self.settings, num_envs=1, images=images)
        self.action_space = self.engine.actions.space
        self.observation_space = self.engine.observation_space
        self._ready = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, NDArray], dict[str, Any]]:
        """Begin an episode; `options` may pose a case, see Starting State."""
        super().reset(seed=seed)
        self.engine.begin({0: self.engine.pose(self.np_random, options)})
        self._ready = True
        return self.engine.observation(0), self.engine.info(0)

    def step(self, action: Any) -> tuple[dict[str, NDArray], float, bool, bool, dict[str, Any]]:
        """Give one prompt, or stop.

        Raises:
            ResetNeeded: Before the first reset, or after the episode has ended.
            ValueError: The action is outside the action space.
        """
        if not self._ready:
            raise ResetNeeded("step() needs reset() first, and again after an episode has ended")
        rewards, _ = self.engine.step(ROW_0, np.asarray(action)[None], dict)
        terminated = bool(self.engine.episodes.terminated[0])
        self._ready = not terminated
        return self.engine.observation(0), float(rewards[0]), terminated, False, self.engine.info(0)

    def action_masks(self) -> NDArray[np.bool_]:
        """(actions,) bool: False where an action would be pointless; discrete action modes only."""
        return self.engine.action_masks()[0]

    def render(self) -> NDArray[np.uint8] | None:
        """The episode as a picture (H, W, 3) uint8, or None without a render mode."""
        return self.engine.picture(0) if self.render_mode else None


class EngineVectorEnv(EpisodeInterface, VectorEnv):
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
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        self.num_envs = num_envs
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {**METADATA, "autoreset_mode": self.autoreset_mode}
        self.render_mode = _checked_render_mode(render_mode, self.metadata)
        self.max_episode_steps = max_episode_steps
        self.settings = self.settings_class.parse(settings)
        self.engine = self.engine_class(self.settings, num_envs, images)
        self.single_action_space = self.engine.actions.space
        self.single_observation_space = self.engine.observation_space
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self._generators: list[tuple[np.random.Generator, int]] = [seeding.np_random(None) for _ in range(num_envs)]
        self._done = np.ones(num_envs, np.bool_)
        self._begun = False

    @property  # type: ignore[misc]
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """The generator of each sub-environment."""
        return tuple(generator for generator, _ in self._generators)

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # type: ignore[override]
        """The seed of each sub-environment's generator."""
        return tuple(seed for _, seed in self._generators)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, NDArray], dict[str, Any]]:
        """Begin episodes in all sub-environments, or in those of `options["reset_mask"]`."""
        options = dict(options or {})
        mask = _checked_mask(options.pop("reset_mask", None), self.num_envs)
        if not self._begun and not mask.all():
            raise ResetNeeded("the first reset() must begin all sub-environments: leave out 'reset_mask'")
        requests = [_request_of(options, i, self.num_envs) for i in range(self.num_envs)]
        for i, one in enumerate(_seeds(seed, self.num_envs)):
            if one is not None and mask[i]:
                self._generators[i] = seeding.np_random(one)
        rows = np.flatnonzero(mask)
        self.engine.begin({int(i): self.engine.pose(self.np_random[i], requests[i]) for i in rows})
        self._done[rows] = False
        self._begun = True
        return self.engine.observations(), self._infos(rows)

    def step(
        self, actions: NDArray
    ) -> tuple[dict[str, NDArray], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """One prompt in every sub-environment; what happens to ended ones is the autoreset mode's business.

        Raises:
            ResetNeeded: Before the first reset, or with autoreset "Disabled" while an ended episode was not reset.
            ValueError: An action is outside the action space.
        """
        actions = np.asarray(actions)
        if len(actions) != self.num_envs:
            raise ValueError(f"{len(actions)} actions for {self.num_envs} environments")
        if not self._begun:
            raise ResetNeeded("step() needs reset() first")
        if self.autoreset_mode is AutoresetMode.DISABLED and self._done.any():
            ended = np.flatnonzero(self._done).tolist()
            raise ResetNeeded(f"the episodes of {ended} have ended: reset(options={{'reset_mask': ...}}) them first")
        acted = np.flatnonzero(~self._done)
        ended_before = np.flatnonzero(self._done)  # NextStep: these begin anew now
        terminated, truncated = (np.zeros(self.num_envs, np.bool_) for _ in range(2))

        def fresh() -> dict[int, Pose]:
            episodes = self.engine.episodes
            terminated[acted] = episodes.terminated[acted]
            if self.max_episode_steps is not None:
                truncated[acted] = episodes.steps[acted] >= self.max_episode_steps
            same_step = self.autoreset_mode is AutoresetMode.SAME_STEP
            begin = np.flatnonzero(terminated | truncated) if same_step else ended_before
            return {int(i): self.engine.pose(self.np_random[i]) for i in begin}

        rewards = np.zeros(self.num_envs)
        rewards[acted], finals = self.engine.step(acted, actions[acted], fresh)
        self._done = terminated | truncated
        if self.autoreset_mode is AutoresetMode.SAME_STEP:
            self._done[:] = False
        infos: dict[str, Any] = {}
        for i in range(self.num_envs):
            if i in finals:
                infos = self._add_info(infos, {"final_obs": finals[i][0], "final_info": finals[i][1]}, i)
            infos = self._add_info(infos, self.engine.info(i), i)
        return self.engine.observations(), rewards, terminated, truncated, infos

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

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:
        """One picture per sub-environment, or None without a render mode."""
        if not self.render_mode:
            return None
        return tuple(self.engine.picture(i) for i in range(self.num_envs))

    def _infos(self, rows: NDArray[np.intp]) -> dict[str, Any]:
        infos: dict[str, Any] = {}
        for i in rows:
            infos = self._add_info(infos, self.engine.info(i), int(i))
        return infos


def _checked_render_mode(render_mode: str | None, metadata: Mapping[str, Any]) -> str | None:
    if render_mode is not None and render_mode not in metadata["render_modes"]:
        raise ValueError(f"render_mode {render_mode!r} is unknown; choose from {metadata['render_modes']} or None")
    return render_mode


def _checked_mask(mask: Any, n: int) -> NDArray[np.bool_]:
    if mask is None:
        return np.ones(n, np.bool_)
    if not isinstance(mask, np.ndarray) or mask.shape != (n,) or mask.dtype != np.bool_ or not mask.any():
        raise ValueError(f"options['reset_mask'] must be a bool array of shape ({n},) with a True in it, got {mask!r}")
    return mask


def _seeds(seed: int | Sequence[int | None] | None, n: int) -> list[int | None]:
    if seed is None:
        return [None] * n
    if isinstance(seed, int | np.integer):
        return [int(seed) + i for i in range(n)]
    if len(seed) != n:
        raise ValueError(f"{len(seed)} seeds for {n} environments")
    return list(seed)


def _depth(value: Any) -> int:
    """How deep lists are nested in each other; rows need not be of one length."""
    if isinstance(value, np.ndarray):
        return value.ndim
    if not isinstance(value, Sequence) or isinstance(value, str):
        return 0
    return 1 + max(map(_depth, value), default=0)


def _request_of(options: Mapping[str, Any], row: int, n: int) -> dict[str, Any]:
    """The reset options of one sub-environment: lists of N values are handed out by row."""
    request = {}
    for name, value in options.items():
        per_row = _depth(value) > VALUE_DEPTH.get(name, 0)
        if per_row and len(value) != n:
            raise ValueError(f"reset option {name!r} has {len(value)} entries for {n} environments")
        request[name] = value[row] if per_row else value
    return request
