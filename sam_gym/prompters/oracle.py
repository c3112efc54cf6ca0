"""Prompters that look at the ground truth: what could be had. Agents never see what they see."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from sam_gym._utils.boxes import box_iou
from sam_gym.envs.box_refine import SideMoves
from sam_gym.envs.episode import in_view
from sam_gym.prompters.mask import steps_of
from sam_gym.prompters.prompter import cells_of, grid_of

if TYPE_CHECKING:
    from sam_gym.envs.base import EngineVectorEnv


def oracle_clicks(observations: dict[str, NDArray], env: EngineVectorEnv) -> NDArray[np.int64]:
    """Click where the largest circle fits into an error region (RITM's rule on the grid); stop if no cell is in error.

    A cell counts by the distance from its centre to the border of the missed (foreground click) or wrongly covered
    (background click) region. Source: Sofiiuk et al. 2022, "Reviving Iterative Training with Mask Guidance".
    """
    grid = grid_of(env)
    scores = np.stack([click_scores(env, row) for row in range(env.num_envs)])
    scores = np.where(env.action_masks()[:, :-1], scores, 0)
    return np.where(scores.max(axis=1) > 0, scores.argmax(axis=1), grid.stop)


def oracle_cells(observations: dict[str, NDArray], env: EngineVectorEnv) -> NDArray[np.int64]:
    """`oracle_clicks` where a module labels: the deepest error that a click with the module's label would mend.

    Where no cell would mend one it stops, or, where there is no stop, clicks the first cell that is allowed.
    """
    allowed, actions = env.action_masks(), env.actions
    scores = np.where(allowed[:, : cells_of(env).cells], labelled_scores(env), 0)
    idle = allowed.argmax(axis=1) if actions.stop is None else actions.stop
    return np.where(scores.max(axis=1) > 0, scores.argmax(axis=1), idle)


def labelled_scores(env: EngineVectorEnv) -> NDArray[np.float32]:
    """(N, G * G) float32: `click_scores` of each cell with the label that the module would give it now."""
    cells, rows = cells_of(env), np.arange(len(env.episodes))
    if env.labeler is None:
        raise ValueError("this prompter clicks where a module labels: make the environment with a labeler")
    labels = env.labeler.labels(rows, np.broadcast_to(cells.centres, (len(rows), cells.cells, 2)))
    scores = np.stack([click_scores(env, int(row)).reshape(2, -1) for row in rows])
    return np.where(labels == 1, scores[:, 0], scores[:, 1])


def click_scores(env: EngineVectorEnv, row: int) -> NDArray[np.float32]:
    """How deep in an error region each click would stand, by the ground truth.

    Args:
        env: The environment that holds the episode.
        row: Its sub-environment.

    Returns:
        (2 * G * G,) float32, in pixels of the image: for foreground clicks the distance from the cell's centre to the
        border of the missed region, 0 outside it; then the same for background clicks and the wrongly covered region.
        Errors are considered inside the view, whose border counts as a border.
    """
    mask, truth = env.mask(row), env.truth(row)
    left, top, side = env.episodes.view[row]
    height, width = truth.shape
    x0, y0 = max(0, int(np.floor(left))), max(0, int(np.floor(top)))
    x1, y1 = min(width, int(np.ceil(left + side))), min(height, int(np.ceil(top + side)))
    grid = cells_of(env)
    column, line = np.floor(in_view(env.episodes.view[row], grid.centres)).astype(int).T
    inside = (column >= x0) & (column < x1) & (line >= y0) & (line < y1)
    scores = np.zeros((2, grid.cells), np.float32)
    mask, truth = mask[y0:y1, x0:x1], truth[y0:y1, x0:x1]
    for sign, error in enumerate((truth & ~mask, mask & ~truth)):
        scores[sign, inside] = depths(error, line[inside] - y0, column[inside] - x0)
    return scores.ravel()


def depths(region: NDArray[np.bool_], rows: NDArray[np.int_], columns: NDArray[np.int_]) -> NDArray[np.float32]:
    """How far some pixels are from the nearest pixel outside of a region, which ends where the array does.

    The same as a distance transform at these pixels, for a tenth of the work where they are few: the nearest pixel
    outside has a neighbour inside, so that only such pixels are searched.

    Args:
        region: (H, W).
        rows: (n,) of the pixels.
        columns: (n,) of the pixels.

    Returns:
        (n,) float32 in pixels, 0 for those outside.

    Example:
        >>> depths(np.ones((5, 5), bool), np.array([2, 0]), np.array([2, 4]))
        array([3., 1.], dtype=float32)
    """
    found = np.zeros(len(rows), np.float32)
    asked = np.flatnonzero(region[rows, columns])
    if len(asked):
        padded = np.pad(region, 1)
        beside = np.zeros_like(padded)
        for axis in (0, 1):
            ahead, behind = (np.moveaxis(array, axis, 0) for array in (beside, padded))
            ahead[1:] |= behind[:-1]
            ahead[:-1] |= behind[1:]
        outside = np.argwhere(beside & ~padded)
        places = np.stack([rows[asked], columns[asked]], axis=1) + 1
        found[asked] = cKDTree(outside, balanced_tree=False, compact_nodes=False).query(places)[0]
    return found


def oracle_box(observations: dict[str, NDArray], env: EngineVectorEnv) -> NDArray:
    """Move the box towards the object's tight box, by the ground truth, as far and as long as the actions allow.

    Discrete actions: the one whose box has the greatest IoU with the tight box, stop if none has more than the present.
    """
    targets = tight_boxes(env)
    if isinstance(env.actions, SideMoves):
        return env.actions.toward(env.episodes.box, targets)
    modes, actions = steps_of(env), np.zeros(env.num_envs, np.int64)
    for row in range(env.num_envs):
        boxes = (*modes.results(env.episodes, row), env.episodes.box[row])
        gains = [box_iou(box, targets[row]) for box in boxes]
        actions[row] = int(np.argmax(gains)) if max(gains[:-1]) > gains[-1] + 1e-6 else modes.stop
    return actions


def tight_boxes(env: EngineVectorEnv) -> NDArray[np.float32]:
    """(N, 4) the tight boxes of the objects, by the ground truth."""
    episodes, data = env.episodes, env.data
    rows = [data.find(int(i), int(o)) for i, o in zip(episodes.image, episodes.object_id, strict=True)]
    return data.objects.box[rows]
