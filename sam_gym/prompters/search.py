"""Search: try many clicks with the truth beside them, and take the best. An oracle, and a teacher's raw material.

The oracle of `sam_gym.prompters.oracle` knows where the mask is wrong, but not what SAM will make of a click there.
Search asks SAM.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sam_gym.envs.foresight import Foresight
from sam_gym.prompters.oracle import click_scores
from sam_gym.prompters.prompter import grid_of

if TYPE_CHECKING:
    from sam_gym.envs.base import EngineVectorEnv

CANDIDATES = 64
"""Clicks that are tried at each step."""

FINALISTS = 4
"""The best of them are tried again with what the environment decodes with, where that is not the fovea."""


class SearchPrompter:
    """Greedy search over clicks: the one that gains most IoU by the truth, stop if none gains any.

    Half of the candidates stand deepest in the errors, the others anywhere. All are tried with the fovea, the best
    again with the environment's own decoder.

    Args:
        seed: Of the candidates.
        candidates: Clicks that are tried at each step.
    """

    def __init__(self, seed: int = 0, candidates: int = CANDIDATES) -> None:
        self._seed, self._candidates = seed, candidates
        self._rng = np.random.default_rng(seed)
        self._foresight: tuple[EngineVectorEnv, Foresight] | None = None

    @property
    def identity(self) -> str:
        """What tells it from others in records."""
        return f"sam_gym.prompters.SearchPrompter(seed={self._seed}, candidates={self._candidates})"

    def __call__(self, observations: dict[str, NDArray], env: EngineVectorEnv) -> NDArray[np.int64]:
        """See `Prompter`."""
        if self._foresight is None or self._foresight[0] is not env:
            self._foresight = env, Foresight(env.engine)
        foresight, stop = self._foresight[1], grid_of(env).stop
        rows = np.flatnonzero(~env.episodes.terminated)
        allowed = env.action_masks()
        tried = {int(row): candidate_clicks(env, int(row), allowed[row], self._candidates, self._rng) for row in rows}
        found = tried_iou(foresight, tried)
        if env.settings.attention == "full":
            tried = {row: tried[row][np.argsort(-found[row])[:FINALISTS]] for row in tried}
            found = tried_iou(foresight, tried, quick=False)
        actions = np.full(env.num_envs, stop, np.int64)
        for row, clicks in tried.items():
            if len(clicks) and found[row].max() > env.engine.quality.iou[row]:
                actions[row] = clicks[found[row].argmax()]
        return actions


def candidate_clicks(
    env: EngineVectorEnv,
    row: int,
    allowed: NDArray[np.bool_],
    count: int,
    rng: np.random.Generator,
    preferred: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """Clicks that are worth trying in one episode: half of them deepest in errors, then the preferred, then any.

    Args:
        env: The environment.
        row: Its sub-environment.
        allowed: (actions,) which may be taken; the last is stop.
        count: How many, or all where fewer are allowed.
        rng: Draws the rest.
        preferred: Some more to try, for example those that a policy likes best.

    Returns:
        (<= count,) actions, ascending, no stop among them.
    """
    scores = click_scores(env, row) * allowed[:-1]
    deepest = np.argsort(-scores)[: count // 2]
    chosen = deepest[scores[deepest] > 0]
    if preferred is not None:
        chosen = np.union1d(chosen, preferred)
    chosen = chosen[allowed[chosen]]
    others = np.setdiff1d(np.flatnonzero(allowed[:-1]), chosen)
    more = rng.choice(others, min(count - len(chosen), len(others)), replace=False)
    return np.union1d(chosen, more).astype(np.int64)


def tried_iou(
    foresight: Foresight, tried: dict[int, NDArray[np.int64]], *, quick: bool = True
) -> dict[int, NDArray[np.float64]]:
    """IoU of each click that is tried, by row."""
    if not tried:
        return {}
    rows = np.repeat(np.fromiter(tried, np.intp), [len(clicks) for clicks in tried.values()])
    found = foresight.iou(rows, np.concatenate(list(tried.values())), quick=quick)
    ends = np.cumsum([len(clicks) for clicks in tried.values()])[:-1]
    return dict(zip(tried, np.split(found, ends), strict=True))
