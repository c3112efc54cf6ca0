"""Episodes as arrays, and the rules by which actions become prompts.

Pure numpy: no model, no ground truth, no rewards. All coordinates are continuous (x, y) in the frame of the original
image, whose pixel (i, j) covers [j, j + 1) x [i, i + 1), unless a name says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from typing_extensions import Self

from sam_gym._utils.boxes import Floats, clip_box
from sam_gym.sam.prompts import ABSENT


@dataclass
class Episodes:
    """N episodes as a struct of arrays; row i is sub-environment i.

    Attributes:
        image: (N,) int32 index of the image in the data set.
        object_id: (N,) int32 label of the object in that image.
        image_size: (N, 2) int32 height, width in pixels.
        cue: (N, 4) float32 box x0, y0, x1, y1 that the episode starts from; the whole image in tasks without one.
        view: (N, 3) float32 left, top, side of the square that is observed and acted in.
        box: (N, 4) float32 box prompt of the next decode; the cue until an action moves it, NaN in tasks without one.
        last_box: (N, 4) float32 the box before that, the cue if there was none.
        mask_box: (N, 4) float32 tight box of the current mask, NaN where it is empty; tasks about boxes only.
        given_points: (N, K, 2) float32 clicks that the episode was begun with; K is 0 in tasks without them.
        given_labels: (N, K) int8: 1, 0, or -1 where none was given.
        points: (N, T, 2) float32 clicks so far.
        labels: (N, T) int8: 1, 0, or -1 where no click is yet.
        decoded: (N,) bool: whether SAM has made a mask in this episode.
        used: (N, G*G) bool cells that have been clicked.
        prompts: (N,) int32 prompts given so far, the cue not counted.
        stopped: (N,) bool whether the agent has said stop.
        steps: (N,) int32 steps so far, stop included.
    """

    image: NDArray[np.int32]
    object_id: NDArray[np.int32]
    image_size: NDArray[np.int32]
    cue: Floats
    view: Floats
    box: Floats
    last_box: Floats
    mask_box: Floats
    given_points: Floats
    given_labels: NDArray[np.int8]
    points: Floats
    labels: NDArray[np.int8]
    decoded: NDArray[np.bool_]
    used: NDArray[np.bool_]
    prompts: NDArray[np.int32]
    stopped: NDArray[np.bool_]
    steps: NDArray[np.int32]

    @classmethod
    def blank(cls, n: int, max_prompts: int, grid: int, given: int = 0) -> Episodes:
        """N rows of nothing; `given` is K, how many clicks an episode may be begun with."""
        return cls(
            image=np.zeros(n, np.int32),
            object_id=np.zeros(n, np.int32),
            image_size=np.ones((n, 2), np.int32),
            cue=np.zeros((n, 4), np.float32),
            view=np.zeros((n, 3), np.float32),
            box=np.zeros((n, 4), np.float32),
            last_box=np.zeros((n, 4), np.float32),
            mask_box=np.full((n, 4), np.nan, np.float32),
            given_points=np.zeros((n, given, 2), np.float32),
            given_labels=np.full((n, given), ABSENT, np.int8),
            points=np.zeros((n, max_prompts, 2), np.float32),
            labels=np.full((n, max_prompts), ABSENT, np.int8),
            decoded=np.zeros(n, np.bool_),
            used=np.zeros((n, grid * grid), np.bool_),
            prompts=np.zeros(n, np.int32),
            stopped=np.zeros(n, np.bool_),
            steps=np.zeros(n, np.int32),
        )

    def __len__(self) -> int:
        return len(self.image)

    @property
    def max_prompts(self) -> int:
        """T: prompts that an episode may take."""
        return self.labels.shape[1]

    @property
    def all_points(self) -> Floats:
        """(N, K + T, 2): the clicks that the episode was begun with, then those since."""
        return np.concatenate([self.given_points, self.points], axis=1)

    @property
    def all_labels(self) -> NDArray[np.int8]:
        """(N, K + T): labels of `all_points`."""
        return np.concatenate([self.given_labels, self.labels], axis=1)

    @property
    def sent_points(self) -> Floats:
        """(N, P, 2): the clicks that SAM is given next; all of them, unless the task says otherwise."""
        return self.all_points

    @property
    def sent_labels(self) -> NDArray[np.int8]:
        """(N, P): labels of `sent_points`."""
        return self.all_labels

    @property
    def terminated(self) -> NDArray[np.bool_]:
        """(N,) bool: stopped, or out of prompts."""
        return self.stopped | (self.prompts >= self.max_prompts)

    def replace_box(self, row: int, box: NDArray) -> None:
        """Prompt with another box from now on: clipped to the image, counted as a prompt."""
        height, width = self.image_size[row]
        self.last_box[row] = self.box[row]
        self.box[row] = clip_box(box, (height, width))
        self.prompts[row] += 1

    def click(self, row: int, xy: NDArray, label: int) -> None:
        """A click, foreground (1) or background (0), counted as a prompt; one outside the image moves to its border."""
        slot = self.prompts[row]
        height, width = self.image_size[row]
        # SAM counts a pixel's centre as its integer coordinate; a click never leaves the image
        self.points[row, slot] = np.clip(xy - 0.5, 0, (width - 1, height - 1))
        self.labels[row, slot] = label
        self.prompts[row] += 1

    def give(self, row: int, clicks: Floats) -> None:
        """Begin with clicks (k, 3) x, y, label, k <= K; they are no prompts of the agent."""
        self.given_points[row, : len(clicks)] = clicks[:, :2]
        self.given_labels[row, : len(clicks)] = clicks[:, 2]
        self.decoded[row] = len(clicks) > 0

    def at(self, rows: NDArray[np.intp]) -> Self:
        """Copies of `rows`, of which each may stand there many times."""
        return type(self)(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def put(self, rows: NDArray[np.intp], other: Episodes) -> None:
        """Write the rows of `other` over `rows`."""
        for field in fields(self):
            getattr(self, field.name)[rows] = getattr(other, field.name)


def view_of(cue: Floats, scale: float) -> Floats:
    """The square (left, top, side) centred on the cue box, `scale` times its longer side; it may leave the image."""
    x0, y0, x1, y1 = cue
    side = scale * max(x1 - x0, y1 - y0)
    return np.array([(x0 + x1 - side) / 2, (y0 + y1 - side) / 2, side], np.float32)


def in_view(view: Floats, fractions: Floats) -> Floats:
    """Fractions (..., 2) of the view's side (0, 0 = its top left) -> continuous image coordinates."""
    return view[..., None, :2] + fractions * view[..., None, 2:]


class ActionMode(Protocol):
    """How actions become prompts. Discrete modes also have `masks(episodes)`, (N, actions) bool.

    Attributes:
        space: Of one environment's actions.
        stop: The action that says stop.
    """

    space: spaces.Space
    stop: Any

    def apply(self, episodes: Episodes, rows: NDArray[np.intp], actions: NDArray) -> None:
        """Write the prompts that `actions` (one per row) mean into `episodes`; ValueError if one is out of bounds."""
        ...


class Cells:
    """The view divided into G x G cells, row by row from its top left, of which the centres can be clicked.

    Attributes:
        grid: G.
        cells: G * G.
        centres: (G * G, 2) x and y of the cells' centres, as shares of the view's side.
    """

    def __init__(self, grid: int) -> None:
        self.grid = grid
        self.cells = grid * grid
        middle = (np.arange(grid, dtype=np.float32) + 0.5) / grid
        self.centres: Floats = (
            np.stack(np.meshgrid(middle, middle), axis=-1).reshape(-1, 2).astype(np.float32)
        )  # (G*G, 2), x fastest

    def click(self, episodes: Episodes, row: int, cell: int, label: int) -> None:
        """A click at the centre of a cell, in an episode."""
        episodes.click(row, in_view(episodes.view[row], self.centres[cell : cell + 1])[0], label)
        episodes.used[row, cell] = True

    def cell_at(self, episodes: Episodes, row: int, xy: NDArray) -> int | None:
        """The cell that a place (x, y) of the image lies in; None outside of the view."""
        column, line = np.floor((xy - episodes.view[row, :2]) / episodes.view[row, 2] * self.grid).astype(int)
        inside = 0 <= column < self.grid and 0 <= line < self.grid
        return int(line * self.grid + column) if inside else None

    def inside(self, episodes: Episodes) -> NDArray[np.bool_]:
        """(N, G*G) bool: cells whose centre lies in the image."""
        centres = in_view(episodes.view, self.centres)
        size = episodes.image_size[:, None, ::-1]
        return np.logical_and.reduce((centres >= 0) & (centres < size), axis=-1)


class GridActions(Cells):
    """Discrete(2 * G * G + 1): a positive click in a cell, a negative click in a cell, stop.

    Action a < G*G is a foreground click at the centre of cell a (row a // G, column a % G of the view),
    G*G <= a < 2*G*G a background click in cell a - G*G, and a = 2*G*G says stop.
    """

    def __init__(self, grid: int) -> None:
        super().__init__(grid)
        self.stop = 2 * self.cells
        self.space: spaces.Space = spaces.Discrete(self.stop + 1)

    def apply(self, episodes: Episodes, rows: NDArray[np.intp], actions: NDArray) -> None:
        """Write the prompts that `actions` (one per row) mean into `episodes`."""
        meaning = (
            f"0..{self.cells - 1} foreground cells, {self.cells}..{self.stop - 1} background cells, {self.stop} stop"
        )
        for row, action in zip(rows, checked_choices(actions, self.stop, meaning), strict=True):
            if action == self.stop:
                episodes.stopped[row] = True
            else:
                self.click(episodes, row, int(action) % self.cells, label=int(action < self.cells))

    def masks(self, episodes: Episodes) -> NDArray[np.bool_]:
        """(N, 2*G*G + 1) bool: cells that are unused and whose centre lies in the image, and stop."""
        free = self.inside(episodes) & ~episodes.used
        return np.concatenate([free, free, np.ones((len(episodes), 1), np.bool_)], axis=1)


class PointActions:
    """Box(-1, 1, (4,)): x and y in the view, label (>= 0 foreground, < 0 background), stop (> 0.5)."""

    stop = np.array([0, 0, 0, 1], np.float32)

    def __init__(self) -> None:
        self.space: spaces.Space = spaces.Box(-1.0, 1.0, (4,), np.float32)

    def apply(self, episodes: Episodes, rows: NDArray[np.intp], actions: NDArray) -> None:
        """Write the prompts that `actions` (one per row) mean into `episodes`."""
        for row, action in zip(rows, checked_actions(actions, 4), strict=True):
            if action[3] > 0.5:
                episodes.stopped[row] = True
            else:
                episodes.click(row, in_view(episodes.view[row], (action[None, :2] + 1) / 2)[0], int(action[2] >= 0))


class BoxActions:
    """Box(-1, 1, (5,)): the box's x0, y0, x1, y1 in the view, stop (> 0.5). Each box replaces the last one."""

    stop = np.array([0, 0, 0, 0, 1], np.float32)

    def __init__(self) -> None:
        self.space: spaces.Space = spaces.Box(-1.0, 1.0, (5,), np.float32)

    def apply(self, episodes: Episodes, rows: NDArray[np.intp], actions: NDArray) -> None:
        """Write the prompts that `actions` (one per row) mean into `episodes`."""
        for row, action in zip(rows, checked_actions(actions, 5), strict=True):
            if action[4] > 0.5:
                episodes.stopped[row] = True
            else:
                corners = in_view(episodes.view[row], (action[:4].reshape(2, 2) + 1) / 2)
                episodes.replace_box(row, corners.ravel())


def checked_choices(actions: NDArray, last: int, meaning: str) -> NDArray:
    """Discrete actions (n,) as an array; ValueError, with what they mean, unless all are integers in 0..last."""
    choices = np.asarray(actions)
    for action in choices.tolist():
        if type(action) is not int or not 0 <= action <= last:
            raise ValueError(f"action {action!r} is not an integer in 0..{last}: {meaning}")
    return choices


def checked_actions(actions: NDArray, width: int) -> Floats:
    """Actions (n, width) as float32; ValueError unless all are in [-1, 1]."""
    values = np.asarray(actions, np.float32)
    if values.shape[1:] != (width,) or not (np.abs(values) <= 1).all():  # NaN fails the comparison too
        raise ValueError(f"an action is {width} numbers in [-1, 1], got {actions.tolist()}")
    return values
