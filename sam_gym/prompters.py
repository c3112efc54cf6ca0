"""Scripted prompters: what an agent is compared with. `PROMPTERS` says which there are for which kind of action.

The oracles look at the ground truth, and say so by asking the environment for it; the others see what agents see.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from sam_gym.boxes import box_iou, tight_box
from sam_gym.envs.box_refine import SideMoves, SideSteps
from sam_gym.envs.episode import Cells, Episodes, GridActions, in_view
from sam_gym.envs.labelling import LabelledCells
from sam_gym.envs.observations import MAPS

if TYPE_CHECKING:
    from sam_gym.envs.base import EngineVectorEnv
    from sam_gym.envs.engine import PromptEngine
    from sam_gym.envs.settings import Settings


class Prompter(Protocol):
    """Anything that chooses actions for a batch of episodes."""

    def __call__(self, observations: dict[str, NDArray], env: EngineVectorEnv) -> NDArray:
        """Choose one action per sub-environment.

        Args:
            observations: Of all N sub-environments, stacked.
            env: The environment itself, for `action_masks()`; oracles also take the truth from it.

        Returns:
            N actions.
        """
        ...


def box_only(observations: dict[str, NDArray], env: EngineVectorEnv) -> NDArray:
    """Stop at once: the cue box's own mask, or none at all where there is no cue."""
    return np.stack([env.engine.actions.stop] * env.num_envs)


class RandomPrompter:
    """A random action each time, of the allowed ones where actions are discrete; it stops where nothing else is left.

    What it draws depends on the episode and the prompt alone, so that a record does not depend on how many environments
    there were.

    Args:
        seed: Seed of its choices.
    """

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self.identity = f"{__name__}.RandomPrompter(seed={seed})"

    def __call__(self, observations: dict[str, NDArray], env: EngineVectorEnv) -> NDArray:
        """See `Prompter`."""
        engine, space = env.engine, env.single_action_space
        stops = engine.actions.stop is not None
        actions = box_only(observations, env) if stops else np.zeros(env.num_envs, np.int64)
        allowed = env.action_masks() if isinstance(space, spaces.Discrete) else None
        for row in range(env.num_envs):
            rng = np.random.default_rng([self._seed, *_moment(engine.episodes, row)])
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
    grid = _grid(env.engine)
    nearest = int(np.abs(grid.centres - 0.5).sum(axis=1).argmin())
    allowed = env.action_masks()
    first = env.engine.episodes.prompts == 0
    return np.where(first & allowed[:, nearest], nearest, grid.stop)


def uncertainty(observations: dict[str, NDArray], env: EngineVectorEnv) -> NDArray[np.int64]:
    """Click where SAM is least certain, and with the sign that SAM leans to; stop if every cell has been clicked.

    A cell counts by how near the probability at its centre, in the mask map, is to one half. No truth is looked at.
    Foreground where that probability is at least one half: on 80 ISBI and 38 VNC mitochondria validation objects five
    such clicks changed the IoU by +.007 [-.009, .021] and -.003 [-.018, .012], the opposite sign by -.003 [-.017, .011]
    and -.027 [-.050, -.006] (MobileSAM, 95 % bootstrap intervals).
    """
    grid = _grid(env.engine)
    maps = observations["mask"][:, 0] if "mask" in observations else observations["maps"][:, MAPS.index("mask")]
    probability = _at_centres(maps, grid.grid) / 255
    free = env.action_masks()[:, : grid.cells]
    cell = np.where(free, np.abs(probability - 0.5), 1).argmin(axis=1)
    foreground = np.take_along_axis(probability, cell[:, None], axis=1)[:, 0] >= 0.5
    return np.where(free.any(axis=1), np.where(foreground, cell, cell + grid.cells), grid.stop)


def _at_centres(maps: NDArray[np.uint8], grid: int) -> NDArray[np.float64]:
    """(N, G * G) values of maps (N, 64, 64) at the centres of G x G cells, bilinear, in the order of the actions."""
    places = (np.arange(grid) + 0.5) / grid * maps.shape[-1] - 0.5
    low = np.floor(places).astype(int)
    high, share = np.minimum(low + 1, maps.shape[-1] - 1), places - low
    rows = maps[:, low] * (1 - share)[:, None] + maps[:, high] * share[:, None]
    return (rows[:, :, low] * (1 - share) + rows[:, :, high] * share).reshape(len(maps), -1)


def oracle_clicks(observations: dict[str, NDArray], env: EngineVectorEnv) -> NDArray[np.int64]:
    """Click where the largest circle fits into an error region (RITM's rule on the grid); stop if no cell is in error.

    A cell counts by the distance from its centre to the border of the missed (foreground click) or wrongly covered
    (background click) region. Source: Sofiiuk et al. 2022, "Reviving Iterative Training with Mask Guidance".
    """
    grid = _grid(env.engine)
    scores = np.stack([click_scores(env.engine, row) for row in range(env.num_envs)])
    scores = np.where(env.action_masks()[:, :-1], scores, 0)
    return np.where(scores.max(axis=1) > 0, scores.argmax(axis=1), grid.stop)


def oracle_cells(observations: dict[str, NDArray], env: EngineVectorEnv) -> NDArray[np.int64]:
    """`oracle_clicks` where a module labels: the deepest error that a click with the module's label would mend.

    Where no cell would mend one it stops, or, where there is no stop, clicks the first cell that is allowed.
    """
    allowed, actions = env.action_masks(), env.engine.actions
    scores = np.where(allowed[:, : _cells(env.engine).cells], labelled_scores(env.engine), 0)
    idle = allowed.argmax(axis=1) if actions.stop is None else actions.stop
    return np.where(scores.max(axis=1) > 0, scores.argmax(axis=1), idle)


def labelled_scores(engine: PromptEngine) -> NDArray[np.float32]:
    """(N, G * G) float32: `click_scores` of each cell with the label that the engine's module would give it now."""
    cells, rows = _cells(engine), np.arange(len(engine.episodes))
    if engine.labeler is None:
        raise ValueError("this prompter clicks where a module labels: make the environment with a labeler")
    labels = engine.labeler.labels(rows, np.broadcast_to(cells.centres, (len(rows), cells.cells, 2)))
    scores = np.stack([click_scores(engine, int(row)).reshape(2, -1) for row in rows])
    return np.where(labels == 1, scores[:, 0], scores[:, 1])


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
    grid = _cells(engine)
    column, line = np.floor(in_view(engine.episodes.view[row], grid.centres)).astype(int).T
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


def _cells(engine: PromptEngine) -> Cells:
    if not isinstance(engine.actions, Cells):
        raise ValueError(f"this prompter clicks on the grid; action_mode is {engine.settings.action_mode!r}")
    return engine.actions


def _grid(engine: PromptEngine) -> GridActions:
    cells = _cells(engine)
    if not isinstance(cells, GridActions):
        raise ValueError("this prompter labels its clicks itself; here a module does: make the environment without one")
    return cells


class IterativeBox:
    """Iterative inference: prompt with the tight box of the mask again and again, until the mask hardly changes.

    The mask M of box B is decoded, B is replaced by M's bounding rectangle, and so on, until the change rate, the
    pixels in which two masks in a row differ over the area of the newer one's box, is at most `threshold`; the newer
    mask is the result. At least one repeat is made. The number of repeats is the prompts given, decodes are one more.

    Where the published description is silent: masks are binary; the box is the one fed last; `max_prompts` of the
    environment is the cap; a rectangle that was fed before in the episode ends it, since a frozen SAM would go round
    from there; an empty mask has no rectangle, and the mask before it is the result, for which the box before it is
    decoded again, and counted (at the cap nothing is left for that, and the empty mask stands). It needs
    action_mode="discrete" of SamBoxRefine.

    Args:
        threshold: Change rate at which it stops; .05 as published.
    """

    def __init__(self, threshold: float = 0.05) -> None:
        self.threshold = threshold
        self.identity = f"{__name__}.IterativeBox(threshold={threshold})"
        self._masks: dict[int, NDArray[np.bool_]] = {}
        self._fed: dict[int, list[tuple[float, ...]]] = {}

    def __call__(self, observations: dict[str, NDArray], env: EngineVectorEnv) -> NDArray:
        """See `Prompter`."""
        modes = _steps(env.engine)
        again = [self._goes_on(env.engine, row) for row in range(env.num_envs)]
        return np.where(again, modes.rebox, modes.stop)

    def _goes_on(self, engine: PromptEngine, row: int) -> bool:
        episodes, mask = engine.episodes, engine.mask(row)
        box, first = episodes.box[row], episodes.prompts[row] == 0
        before = None if first else self._masks[row]
        self._masks[row] = mask
        if first:
            self._fed[row] = []
        self._fed[row].append(tuple(box.tolist()))
        rectangle = tight_box(mask)
        if rectangle is None:  # back to the mask before it, whose rectangle was fed, so that it ends there
            return not first
        if before is None:
            return True
        return change_rate(mask, before, box) > self.threshold and tuple(rectangle.tolist()) not in self._fed[row]


def change_rate(mask: NDArray[np.bool_], before: NDArray[np.bool_], box: NDArray[np.float32]) -> float:
    """Pixels in which two masks (H, W) differ, over the area of a box (4,) in pixels; it may exceed 1.

    Example:
        >>> change_rate(np.eye(4) > 0, np.zeros((4, 4), bool), np.array([0, 0, 4, 2], np.float32))
        0.5
    """
    return float((mask != before).sum() / ((box[2] - box[0]) * (box[3] - box[1])))


def oracle_box(observations: dict[str, NDArray], env: EngineVectorEnv) -> NDArray:
    """Move the box towards the object's tight box, by the ground truth, as far and as long as the actions allow.

    Discrete actions: the one whose box has the greatest IoU with the tight box, stop if none has more than the present.
    """
    engine = env.engine
    targets = tight_boxes(engine)
    if isinstance(engine.actions, SideMoves):
        return engine.actions.toward(engine.episodes.box, targets)
    modes, actions = _steps(engine), np.zeros(env.num_envs, np.int64)
    for row in range(env.num_envs):
        boxes = (*modes.results(engine.episodes, row), engine.episodes.box[row])
        gains = [box_iou(box, targets[row]) for box in boxes]
        actions[row] = int(np.argmax(gains)) if max(gains[:-1]) > gains[-1] + 1e-6 else modes.stop
    return actions


def tight_boxes(engine: PromptEngine) -> NDArray[np.float32]:
    """(N, 4) the tight boxes of the objects, by the ground truth."""
    episodes, data = engine.episodes, engine.data
    rows = [data.find(int(i), int(o)) for i, o in zip(episodes.image, episodes.object_id, strict=True)]
    return data.objects.box[rows]


def _steps(engine: PromptEngine) -> SideSteps:
    if not isinstance(engine.actions, SideSteps):
        raise ValueError(
            "this prompter moves sides of boxes: it needs SamBoxRefine, with action_mode='discrete';"
            f" here action_mode is {engine.settings.action_mode!r}"
        )
    return engine.actions


_ANY: dict[str, Callable[[int], Prompter]] = {"box only": lambda seed: box_only, "random": RandomPrompter}
PROMPTERS: dict[str, dict[str, Callable[[int], Prompter]]] = {
    "grid": {
        **_ANY,
        "centre": lambda seed: centre,
        "uncertainty": lambda seed: uncertainty,
        "oracle clicks": lambda seed: oracle_clicks,
    },
    "cells": {**_ANY, "oracle cells": lambda seed: oracle_cells},
    "continuous": {**_ANY, "oracle box": lambda seed: oracle_box},
    "discrete": {**_ANY, "iterative box": lambda seed: IterativeBox(), "oracle box": lambda seed: oracle_box},
}
"""Baselines by action mode ("cells": "grid" with a labeler) and name: seed -> prompter."""


def baselines(settings: Settings, seed: int = 0) -> dict[str, Prompter]:
    """What an agent in an environment of these settings is compared with, by name; the oracle comes last."""
    actions = settings.actions()
    mode = "cells" if isinstance(actions, LabelledCells) else settings.action_mode
    makers = {name: make for name, make in PROMPTERS[mode].items() if name != "box only" or actions.stop is not None}
    names = {} if settings.has_cue else {"box only": "no prompt"}
    return {names.get(name, name): make(seed) for name, make in makers.items()}
