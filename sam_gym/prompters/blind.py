"""Prompters that look at nothing: stop at once, a random action, a click into the centre."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from sam_gym.envs.episode import Episodes
from sam_gym.prompters.prompter import grid_of

if TYPE_CHECKING:
    from sam_gym.envs.base import EngineVectorEnv


def box_only(observations: dict[str, NDArray], env: EngineVectorEnv) -> NDArray:
    """Stop at once: the cue box's own mask, or none at all where there is no cue."""
    return np.stack([env.actions.stop] * env.num_envs)


class RandomPrompter:
    """A random action each time, of the allowed ones where actions are discrete; it stops where nothing else is left.

    What it draws depends on the episode and the prompt alone, so that a record does not depend on how many environments
    there were.

    Args:
        seed: Seed of its choices.
    """

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self.identity = f"sam_gym.prompters.RandomPrompter(seed={seed})"

    def __call__(self, observations: dict[str, NDArray], env: EngineVectorEnv) -> NDArray:
        """See `Prompter`."""
        space = env.single_action_space
        stops = env.actions.stop is not None
        actions = box_only(observations, env) if stops else np.zeros(env.num_envs, np.int64)
        allowed = env.action_masks() if isinstance(space, spaces.Discrete) else None
        for row in range(env.num_envs):
            rng = np.random.default_rng([self._seed, *_moment(env.episodes, row)])
            if allowed is None:
                actions[row] = rng.uniform(-1, 1, space.shape)
            elif len(others := np.flatnonzero(allowed[row, : -1 if stops else None])):  # stop is the last action
                actions[row] = rng.choice(others)
        return actions


def _moment(episodes: Episodes, row: int) -> list[int]:
    """Numbers that tell this moment of this episode from every other."""
    cue = episodes.cue[row].view(np.uint32)
    return [int(v) for v in (episodes.image[row], episodes.object_id[row], *cue, episodes.prompts[row])]


def centre(observations: dict[str, NDArray], env: EngineVectorEnv) -> NDArray[np.int64]:
    """One foreground click in the cell nearest to the view's centre, which is the cue's, then stop."""
    grid = grid_of(env)
    nearest = int(np.abs(grid.centres - 0.5).sum(axis=1).argmin())
    allowed = env.action_masks()
    first = env.episodes.prompts == 0
    return np.where(first & allowed[:, nearest], nearest, grid.stop)
