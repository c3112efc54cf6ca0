"""The single and the vector environment of any family, around one engine: seeding, autoreset, Gymnasium's interfaces.

What an episode is, the engine says; nothing else is a family's business here. The families are `sam_gym.envs.base`
(prompting a SAM) and `sam_gym.envs.denoise`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

ROW_0 = np.zeros(1, np.intp)

VALUE_DEPTH = {"cue": 1, "points": 2, "mask": 2}
"""Depth of lists that one value of a reset option has, where it is no plain one."""

METADATA: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 2}


class Engine(Protocol):
    """N episodes, advanced together. A pose is what the engine needs to begin one."""

    @property
    def episodes(self) -> Any:
        """N episodes as arrays, `terminated` (N,) bool and `steps` (N,) int32, steps so far, among them."""

    def pose(self, rng: np.random.Generator, request: Mapping[str, Any] | None = None) -> Any:
        """Draw an episode, or take what `request`, the reset options, fixes of it."""

    def begin(self, poses: Mapping[int, Any]) -> None:
        """Begin the episodes of some rows; what the others hold is left alone."""

    def step(
        self, rows: NDArray[np.intp], actions: NDArray, fresh: Callable[[], Mapping[int, Any]]
    ) -> tuple[NDArray[np.float64], dict[int, tuple[dict, dict]]]:
        """One action in each of some rows, and whatever episodes begin beside them.

        `fresh` is asked once it is known which episodes end: row -> where its next episode begins. Gives the rewards of
        `rows`, and for rows that acted and began anew the last observation and info of the old episode.
        """

    def observations(self) -> dict[str, NDArray]:
        """Fresh copies of what all rows observe, stacked."""

    def observation(self, row: int) -> dict[str, NDArray]:
        """Fresh copy of what one row observes."""

    def info(self, row: int) -> dict[str, Any]:
        """What `reset` and `step` tell of one row, as plain Python values."""

    def picture(self, row: int) -> NDArray[np.uint8]:
        """One episode as people see it, (H, W, 3) uint8."""


class SingleEnv(gymnasium.Env):
    """One episode at a time.

    Args:
        engine: An `Engine` of one row.
        action_space: Of an episode.
        observation_space: Of an episode.
        render_mode: "rgb_array" or None.
    """

    metadata = METADATA
    engine: Any

    def __init__(
        self, engine: Any, action_space: spaces.Space, observation_space: spaces.Space, render_mode: str | None
    ) -> None:
        self.render_mode = checked_render_mode(render_mode)
        self.engine = engine
        self.action_space = action_space
        self.observation_space = observation_space
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
        """Act once.

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

    def render(self) -> NDArray[np.uint8] | None:
        """The episode as a picture (H, W, 3) uint8, or None without a render mode."""
        return self.engine.picture(0) if self.render_mode else None


class BatchEnv(VectorEnv):
    """N episodes in one step function.

    Equal to a `SyncVectorEnv` of N single environments in all three autoreset modes. Sub-environment i draws from its
    own generator, seeded `seed + i`.

    `reset(options=...)` takes each option as one value for all, or as a list with one per sub-environment, and
    "reset_mask" (N,) bool.

    Args:
        engine: An `Engine` of N rows.
        num_envs: N.
        action_space: Of one episode.
        observation_space: Of one episode.
        autoreset_mode: "NextStep", "SameStep" or "Disabled".
        max_episode_steps: Truncate after so many steps; None never truncates.
        render_mode: "rgb_array" or None.
    """

    engine: Any

    def __init__(
        self,
        engine: Any,
        num_envs: int,
        action_space: spaces.Space,
        observation_space: spaces.Space,
        autoreset_mode: str | AutoresetMode,
        max_episode_steps: int | None,
        render_mode: str | None,
    ) -> None:
        self.num_envs = num_envs
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {**METADATA, "autoreset_mode": self.autoreset_mode}
        self.render_mode = checked_render_mode(render_mode)
        self.max_episode_steps = max_episode_steps
        self.engine = engine
        self.single_action_space = action_space
        self.single_observation_space = observation_space
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
        """One action in every sub-environment; what happens to ended ones is the autoreset mode's business.

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

        def fresh() -> dict[int, Any]:
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


def checked_render_mode(render_mode: str | None) -> str | None:
    """A render mode that the environments have; else ValueError."""
    if render_mode is not None and render_mode not in METADATA["render_modes"]:
        raise ValueError(f"render_mode {render_mode!r} is unknown; choose from {METADATA['render_modes']} or None")
    return render_mode


def checked_num_envs(num_envs: int) -> int:
    """A number of environments; else ValueError."""
    if num_envs < 1:
        raise ValueError(f"num_envs must be at least 1, got {num_envs}")
    return num_envs


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
