"""Prompters of SamReport: clicks spread evenly over the window; an oracle that clicks the largest unfound object."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sam_gym.envs.episode import in_view
from sam_gym.envs.report import ReportEngine
from sam_gym.prompters.oracle import depths

if TYPE_CHECKING:
    from sam_gym.envs.base import EngineVectorEnv

FOUND = 0.5
"""An object is found if more than this share of its pixels is in regions."""


def grid(observations: dict[str, NDArray], env: EngineVectorEnv) -> NDArray[np.int64]:
    """Clicks evenly spread over the window, row by row, as many as an episode may have; it looks at nothing."""
    cells, most = _engine(env).actions, env.settings.max_prompts
    columns = math.ceil(math.sqrt(most))
    rows = math.ceil(most / columns)
    place = np.minimum(env.episodes.prompts, most - 1)
    x, y = (place % columns + 0.5) / columns, (place // columns + 0.5) / rows
    wanted = np.stack([x, y], axis=1)[:, None]
    distance = np.abs(cells.centres - wanted).sum(axis=2)
    return np.where(env.action_masks()[:, :-1], distance, np.inf).argmin(axis=1)


def oracle_regions(observations: dict[str, NDArray], env: EngineVectorEnv) -> NDArray[np.int64]:
    """Click deepest in the largest object that is not found and has not been clicked; report if there is none."""
    scores, stop = region_scores(env), _engine(env).actions.stop
    return np.where(scores.max(axis=1) > 0, scores.argmax(axis=1), stop)


def region_scores(env: EngineVectorEnv) -> NDArray[np.float32]:
    """(N, G * G) how deep each cell's centre lies in the object that `oracle_regions` would click; 0 outside of it.

    Objects between the cells' centres cannot be clicked, and are passed over.
    """
    engine = _engine(env)
    cells, allowed = engine.actions, env.action_masks()[:, :-1]
    scores = np.zeros(allowed.shape, np.float32)
    for row in range(env.num_envs):
        episodes, mask = engine.episodes, engine.mask(row)
        clicks = np.round(episodes.points[row][: episodes.prompts[row]]).astype(int)
        x, y = np.floor(in_view(episodes.view[row], cells.centres)).astype(int).T
        free = np.flatnonzero(allowed[row])
        for region in sorted(engine.true_regions(row), key=lambda one: -one.area):
            clicked = region.mask[clicks[:, 1], clicks[:, 0]].any()
            if clicked or np.count_nonzero(region.mask & mask) > FOUND * region.area:
                continue
            scores[row, free] = depths(region.mask, y[free], x[free])
            if scores[row].any():
                break
    return scores


def _engine(env: EngineVectorEnv) -> ReportEngine:
    if not isinstance(env.engine, ReportEngine):
        raise ValueError(
            f"this prompter gathers regions: it needs SamReport, not action_mode={env.settings.action_mode!r}"
        )
    return env.engine
