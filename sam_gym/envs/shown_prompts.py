"""Which part of an observation shows the prompts given so far, task by task: channels of `maps`, entries of `state`.

`ShownClicks` shows points, `ShownBox` the box that is being moved and the tight box of SAM's mask, `ShownCandidates`
the masks of which one is picked, `ShownRegions` those that a report is written of. Nothing here has access to ground
truth.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from sam_gym._utils.naming import unknown
from sam_gym.envs import observations
from sam_gym.envs.episode import Episodes
from sam_gym.envs.observations import MAP_SIZE, STATE

LARGEST = 2.0**24
"""Up to here float32 holds every integer: enough for numbers of images and for pixels."""

BOX = ("box_x0", "box_y0", "box_x1", "box_y1")
"""Entries of `state` in which the box stands, where one is moved."""

MASK_BOX = ("mask_x0", "mask_y0", "mask_x1", "mask_y1")
"""The same of the tight box of SAM's mask."""

CANDIDATES = 4
"""Masks that are shown at a time, where one is picked."""

Floats = NDArray[np.float32]


class ShownPrompts(ABC):
    """How one task's prompts are shown.

    Attributes:
        name: Key of the prompts in reference observations.
        channels: Their channels in `maps`, after image, mask and cue.
        numbers: Their entries in `state`, after those that all tasks have.
        shows_mask_box: Whether the tight box of the mask is needed.
    """

    name: ClassVar[str]
    channels: ClassVar[tuple[str, ...]]
    numbers: ClassVar[tuple[str, ...]] = ()
    shows_mask_box: ClassVar[bool] = False

    def entries(self, *names: str) -> list[int]:
        """Where these entries stand in `state`.

        Raises:
            ValueError: The task's state has no entry of one of these names.
        """
        there = (*STATE, *self.numbers)
        for name in names:
            if name not in there:
                raise ValueError(f"where {self.name} are shown: {unknown('entry of the state', name, there)}")
        return [there.index(name) for name in names]

    @abstractmethod
    def space(self, clicks: int) -> spaces.Box:
        """Space of `prompts` of one episode, which may hold so many clicks."""

    @abstractmethod
    def prompts(self, episodes: Episodes, rows: NDArray[np.intp] | slice) -> Floats:
        """The prompts of `rows` in image coordinates, as reference observations hold them."""

    @abstractmethod
    def maps(self, prompts: Floats, view: Floats, grid: int) -> NDArray[np.uint8]:
        """(channels, 64, 64): the prompts of one episode, in its view."""

    def state(self, episodes: Episodes, rows: NDArray[np.intp]) -> Floats:
        """(n, numbers) in [0, 1]."""
        return np.zeros((len(rows), 0), np.float32)


class ShownClicks(ShownPrompts):
    """Points: x, y in pixels of the image and label, -1 for none yet."""

    name = "clicks"
    channels = ("positive", "negative")

    def space(self, clicks: int) -> spaces.Box:
        """See `ShownPrompts.space`."""
        return spaces.Box(-LARGEST, LARGEST, (clicks, 3), np.float32)

    def prompts(self, episodes: Episodes, rows: NDArray[np.intp] | slice) -> Floats:
        """(n, K + T, 3)."""
        points, labels = episodes.all_points[rows], episodes.all_labels[rows]
        return np.concatenate([points, labels[:, :, None]], axis=2, dtype=np.float32)

    def maps(self, prompts: Floats, view: Floats, grid: int) -> NDArray[np.uint8]:
        """See `ShownPrompts.maps`."""
        return observations.point_maps(prompts[:, :2], prompts[:, 2].astype(np.int8), view, grid)


class ShownBox(ShownPrompts):
    """The box as it stands, and in `state` also the tight box of SAM's mask: x0, y0, x1, y1 as shares of the view."""

    name = "box"
    channels = ("box",)
    numbers = (*BOX, *MASK_BOX)
    shows_mask_box = True

    def space(self, clicks: int) -> spaces.Box:
        """See `ShownPrompts.space`."""
        return spaces.Box(-LARGEST, LARGEST, (4,), np.float32)

    def prompts(self, episodes: Episodes, rows: NDArray[np.intp] | slice) -> Floats:
        """(n, 4)."""
        return episodes.box[rows].copy()

    def maps(self, prompts: Floats, view: Floats, grid: int) -> NDArray[np.uint8]:
        """See `ShownPrompts.maps`."""
        return observations.box_map(prompts, view)[None]

    def state(self, episodes: Episodes, rows: NDArray[np.intp]) -> Floats:
        """(n, 8); an empty mask has zeros."""
        boxes = np.stack([episodes.box[rows], np.nan_to_num(episodes.mask_box[rows])], axis=1).reshape(-1, 2, 2, 2)
        view = episodes.view[rows][:, None, None]
        shares = (boxes - view[..., :2]) / view[..., 2:]
        shares[:, 1][np.isnan(episodes.mask_box[rows]).any(axis=1)] = 0
        return np.clip(shares, 0, 1).reshape(-1, 8).astype(np.float32)


class ShownCandidates(ShownPrompts):
    """The masks that one is picked of, and in `state` SAM's own estimates of them."""

    name = "candidates"
    channels = tuple(f"candidate_{k}" for k in range(CANDIDATES))
    numbers = tuple(f"predicted_iou_{k}" for k in range(CANDIDATES))
    shows_mask_box = True  # it is not shown, but the next candidates are made around it

    def space(self, clicks: int) -> spaces.Box:
        """See `ShownPrompts.space`."""
        return spaces.Box(0, 255, (CANDIDATES, MAP_SIZE, MAP_SIZE), np.uint8)

    def prompts(self, episodes: Any, rows: NDArray[np.intp] | slice) -> NDArray[np.uint8]:  # type: ignore[override]
        """(n, K, 64, 64)."""
        return episodes.offered[rows].copy()

    def maps(self, prompts: NDArray, view: Floats, grid: int) -> NDArray[np.uint8]:
        """See `ShownPrompts.maps`; SB3 hands out images in [0, 1]."""
        return _as_bytes(prompts)

    def state(self, episodes: Any, rows: NDArray[np.intp]) -> Floats:
        """(n, K)."""
        return np.clip(episodes.offered_iou[rows], 0, 1)


class ShownRegions(ShownPrompts):
    """The regions found so far, all in one map, and the clicks; in `state` how many regions there are."""

    name = "regions"
    channels = ("found", "clicked")
    numbers = ("regions_found",)
    shows_mask_box = True  # it is not shown, but a region's size has to be known

    def space(self, clicks: int) -> spaces.Box:
        """See `ShownPrompts.space`."""
        return spaces.Box(0, 255, (len(self.channels), MAP_SIZE, MAP_SIZE), np.uint8)

    def prompts(self, episodes: Any, rows: NDArray[np.intp] | slice) -> NDArray[np.uint8]:  # type: ignore[override]
        """(n, 2, 64, 64)."""
        return episodes.shown[rows].copy()

    def maps(self, prompts: NDArray, view: Floats, grid: int) -> NDArray[np.uint8]:
        """See `ShownPrompts.maps`; SB3 hands out images in [0, 1]."""
        return _as_bytes(prompts)

    def state(self, episodes: Any, rows: NDArray[np.intp]) -> Floats:
        """(n, 1)."""
        return (episodes.regions[rows, None] / episodes.max_prompts).astype(np.float32)


def _as_bytes(maps: NDArray) -> NDArray[np.uint8]:
    return maps if maps.dtype == np.uint8 else (255 * maps).round().astype(np.uint8)


SHOWN_PROMPTS: tuple[ShownPrompts, ...] = (ShownClicks(), ShownBox(), ShownCandidates(), ShownRegions())
