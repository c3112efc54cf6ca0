"""Scripted prompters: what an agent is compared with. All work on a `SamPromptVectorEnv` in grid mode.

The oracle looks at the ground truth, and says so by asking the environment for it; the others see what agents see.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from sam_gym.envs.episode import GridActions, in_view

if TYPE_CHECKING:
    from sam_gym.envs.engine import PromptEngine
    from sam_gym.envs.prompt import SamPromptVectorEnv


class Prompter(Protocol):
    """Anything that chooses actions for a batch of episodes."""

    def __call__(self, observations: dict[str, NDArray], env: SamPromptVectorEnv) -> NDArray[np.int64]:
        """Choose one action per sub-environment.

        Args:
            observations: Of all N sub-environments, stacked.
            env: The environment itself, for `action_masks()`; oracles also take the truth from it.

        Returns:
            (N,) actions.
        """
        ...


def box_only(observations: dict[str, NDArray], env: SamPromptVectorEnv) -> NDArray[np.int64]:
    """Stop at once: the cue box's own mask."""
    return np.full(env.num_envs, _grid(env.engine).stop, np.int64)


class RandomPrompter:
    """A random allowed click each time, foreground or background alike; stops only where no click is allowed any more.

    What it draws depends on the episode and the prompt alone, so that a record does not depend on how many environments
    there were.

    Args:
        seed: Seed of its choices.
    """

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed

    def __call__(self, observations: dict[str, NDArray], env: SamPromptVectorEnv) -> NDArray[np.int64]:
        """See `Prompter`."""
        episodes, stop = env.engine.episodes, _grid(env.engine).stop
        actions = np.full(env.num_envs, stop, np.int64)
        for row, allowed in enumerate(env.action_masks()[:, :-1]):
            if allowed.any():
                cue = episodes.cue[row].view(np.uint32).tolist()
                drawn = (self._seed, episodes.image[row], episodes.object_id[row], *cue, episodes.prompts[row])
                actions[row] = np.random.default_rng([int(v) for v in drawn]).choice(np.flatnonzero(allowed))
        return actions


def centre(observations: dict[str, NDArray], env: SamPromptVectorEnv) -> NDArray[np.int64]:
    """One foreground click in the cell nearest to the cue's centre, then stop."""
    grid = _grid(env.engine)
    nearest = int(np.abs(grid.centres - 0.5).sum(axis=1).argmin())
    allowed = env.action_masks()
    first = env.engine.episodes.prompts == 0
    return np.where(first & allowed[:, nearest], nearest, grid.stop)


def oracle_clicks(observations: dict[str, NDArray], env: SamPromptVectorEnv) -> NDArray[np.int64]:
    """Click where the largest circle fits into an error region (RITM's rule on the grid); stop if no cell is in error.

    A cell counts by the distance from its centre to the border of the missed (foreground click) or wrongly covered
    (background click) region. Source: Sofiiuk et al. 2022, "Reviving Iterative Training with Mask Guidance".
    """
    grid = _grid(env.engine)
    scores = np.stack([click_scores(env.engine, row) for row in range(env.num_envs)])
    scores = np.where(env.action_masks()[:, :-1], scores, 0)
    return np.where(scores.max(axis=1) > 0, scores.argmax(axis=1), grid.stop)


def click_scores(engine: PromptEngine, row: int) -> NDArray[np.float32]:
    """How deep in an error region each click would stand, by the ground truth.

    Args:
        engine: The engine that holds the episode.
        row: Its row.

    Returns:
        (2 * G * G,) float32, in pixels of the image: for foreground clicks the distance from the cell's centre to the
        border of the missed region, 0 outside it; then the same for background clicks and the wrongly covered region.
        Errors are considered inside the view, whose border counts as a border.
    """
    mask, truth = engine.mask(row), engine.truth(row)
    left, top, side = engine.episodes.view[row]
    height, width = truth.shape
    x0, y0 = max(0, int(np.floor(left))), max(0, int(np.floor(top)))
    x1, y1 = min(width, int(np.ceil(left + side))), min(height, int(np.ceil(top + side)))
    grid = _grid(engine)
    column, line = np.floor(in_view(engine.episodes.view[row], grid.centres)).astype(int).T
    inside = (column >= x0) & (column < x1) & (line >= y0) & (line < y1)
    scores = np.zeros((2, grid.cells), np.float32)
    mask, truth = mask[y0:y1, x0:x1], truth[y0:y1, x0:x1]
    for sign, error in enumerate((truth & ~mask, mask & ~truth)):
        if error.any():
            depth = distance_transform_edt(np.pad(error, 1))[1:-1, 1:-1]
            scores[sign, inside] = depth[line[inside] - y0, column[inside] - x0]
    return scores.ravel()


def _grid(engine: PromptEngine) -> GridActions:
    if not isinstance(engine.actions, GridActions):
        raise ValueError(f"scripted prompters click on the grid; action_mode is {engine.settings.action_mode!r}")
    return engine.actions


PROMPTERS: dict[str, Callable[[int], Prompter]] = {
    "box only": lambda seed: box_only,
    "random": RandomPrompter,
    "centre": lambda seed: centre,
    "oracle clicks": lambda seed: oracle_clicks,
}
"""Baselines by name: seed -> prompter."""
