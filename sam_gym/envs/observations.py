"""What an observation is made of: its space, and functions that draw one map or embedding into a view. No state.

`sam_gym.envs.shown_prompts` adds the prompts, `sam_gym.envs.observers` keeps the observations of running episodes, and
`sam_gym.envs.references` is their small form. Nothing here has access to ground truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sam_gym.envs.attention import WHOLE, Frame
from sam_gym.sam.interface import ImageEmbedding
from sam_gym.sam.prompts import ABSENT

MAP_SIZE = 64
"""Side of the observation maps in pixels."""

MAPS = ("red", "green", "blue", "mask", "cue")
"""First channels of `maps`, in order; those of the task's `ShownPrompts` follow."""

STATE = ("prompts_left", "predicted_iou", "mask_area", "view_size", "last_change")
"""First entries of `state`, in order, each in [0, 1]; those of the task's `ShownPrompts` follow."""


def observation_space(channels: int, grid: int, maps: int, numbers: int, text_dim: int = 0) -> spaces.Dict:
    """The Dict space of one environment.

    Args:
        channels: C of the embedding.
        grid: G of the action grid.
        maps: Channels of the task's `ShownPrompts`.
        numbers: Its entries of `state`.
        text_dim: Length of the text embedding; 0 for tasks without one.
    """
    return spaces.Dict(
        {
            "maps": spaces.Box(0, 255, (len(MAPS) + maps, MAP_SIZE, MAP_SIZE), np.uint8),
            "embedding": spaces.Box(-np.inf, np.inf, (channels, grid, grid), np.float32),
            "state": spaces.Box(0.0, 1.0, (len(STATE) + numbers,), np.float32),
            **text_space(text_dim),
        }
    )


def text_space(text_dim: int) -> dict[str, spaces.Space]:
    """The entry `text` of an observation space, or none if `text_dim` is 0."""
    return {"text": spaces.Box(-1.0, 1.0, (text_dim,), np.float32)} if text_dim else {}


@dataclass
class Sampling:
    """Where the pixels of N mask maps lie, on the device.

    Attributes:
        grid: (N, S, S, 2) float32: pixel centres in the square that the masks' logits cover, which is [-1, 1]; S is 64
            for observations.
        inside: (N, S, S) bool: which of them lie in the image.
    """

    grid: Tensor
    inside: Tensor

    @classmethod
    def blank(cls, n: int, device: torch.device) -> Sampling:
        """N rows that see nothing yet."""
        shape = (n, MAP_SIZE, MAP_SIZE)
        return cls(torch.zeros(*shape, 2, device=device), torch.zeros(shape, dtype=torch.bool, device=device))

    def put(self, row: int, other: Sampling) -> None:
        """Write a sampling of one row into `row`."""
        self.grid[row], self.inside[row] = other.grid[0], other.inside[0]

    def at(self, rows: Tensor) -> Sampling:
        """The sampling of some rows, as a copy."""
        return Sampling(self.grid[rows], self.inside[rows])


def scene_maps(
    image: NDArray[np.uint8], view: NDArray[np.float32], cue: NDArray[np.float32]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """What stays the same in the maps of an episode: the image in the view (3, 64, 64), and the cue box (64, 64)."""
    return crop_map(image, view).transpose(2, 0, 1), box_map(cue, view)


def embedding_map(embedding: ImageEmbedding, view: NDArray[np.float32], cells: int) -> Tensor:
    """SAM's embedding in the view, (C, G, G) float32 on its device, 0 outside the image; `cells` is G.

    Bilinear, two samples a cell each way so that wide views do not alias. Rows and columns are resampled apart, each by
    a small matrix, and only the features that the view touches are read.
    """
    features = embedding.features.permute(1, 2, 0)  # (h, w, C), as it lies in memory
    (top, down), (left, across) = (
        _cell_weights(*_axis(view, 2 * cells, embedding, axis), features.shape[axis]) for axis in (0, 1)
    )
    near = features[top : top + down.shape[1], left : left + across.shape[1]].float()
    rows = torch.as_tensor(down, device=near.device) @ near.flatten(1)  # (G, w' * C)
    return torch.matmul(torch.as_tensor(across, device=near.device), rows.unflatten(1, near.shape[1:])).permute(2, 0, 1)


def _cell_weights(places: NDArray, inside: NDArray[np.bool_], length: int) -> tuple[int, NDArray[np.float32]]:
    """Weights of the features along one axis in each cell: from which feature on, and (G, features) float32.

    `places` are two samples a cell in [-1, 1]. Beyond the border feature it is carried on, so that cells at the
    image's edge are not mixed with zeros from outside it; samples outside the image count as zeros.
    """
    at = np.clip((places + 1) * length / 2 - 0.5, 0, length - 1)
    low = np.minimum(at.astype(int), length - 2)
    matrix = np.zeros((len(places), length), np.float32)
    rows = np.arange(len(places))
    matrix[rows, low] = (low + 1 - at) * inside
    matrix[rows, low + 1] = (at - low) * inside
    return int(low[0]), matrix.reshape(-1, 2, length).mean(axis=1)[:, low[0] : low[-1] + 2]


def sampled(logits: Tensor, sampling: Sampling) -> Tensor:
    """Low-resolution logits (n, 4h, 4w) -> logits at the places of a sampling of n rows, (n, S, S)."""
    return F.grid_sample(logits[:, None], sampling.grid, align_corners=False, padding_mode="border")[:, 0]


def mask_maps(logits: Sequence[Tensor], sampling: Sampling) -> NDArray[np.uint8]:
    """Low-resolution logits, n times (4h, 4w) -> the masks' probabilities in their views, (n, 64, 64) uint8."""
    seen = torch.empty_like(sampling.inside, dtype=torch.float32)
    for size in {one.shape for one in logits}:
        rows = [row for row, one in enumerate(logits) if one.shape == size]
        seen[rows] = sampled(torch.stack([logits[row] for row in rows]), sampling.at(torch.tensor(rows)))
    probability = seen.sigmoid() * sampling.inside
    return (probability * 255).round().to(torch.uint8).cpu().numpy()


def point_maps(
    points: NDArray[np.float32], labels: NDArray[np.int8], view: NDArray[np.float32], cells: int
) -> NDArray[np.uint8]:
    """(2, 64, 64) uint8: positive and negative clicks, each a square of the size of one action cell."""
    maps = np.zeros((2, MAP_SIZE, MAP_SIZE), np.uint8)
    block = max(1, MAP_SIZE // cells)
    for point, label in zip(points, labels, strict=True):
        if label != ABSENT:
            middle = (point + 0.5 - view[:2]) / view[2] * MAP_SIZE
            left, top = np.clip(np.round(middle - block / 2), 0, MAP_SIZE - block).astype(int)
            maps[0 if label else 1, top : top + block, left : left + block] = 255
    return maps


def _centres(view: NDArray[np.float32], size: int, axis: int) -> NDArray[np.float64]:
    """Centres of `size` cells of the view along axis 0 (y) or 1 (x), in pixels of the image."""
    return view[1 - axis] + (np.arange(size) + 0.5) / size * view[2]


def _axis(
    view: NDArray[np.float32], size: int, embedding: ImageEmbedding, axis: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Centres of `size` cells of the view along axis 0 (y) or 1 (x), and which of them lie in the image.

    They are given in the model's square input frame, which is [-1, 1].
    """
    length = embedding.image_size[axis]
    side = max(embedding.input_size)  # the longer side of the image fills the model's square input
    pixels = _centres(view, size, axis)
    return 2 * pixels * (embedding.input_size[axis] / length) / side - 1, (pixels >= 0) & (pixels < length)


def sampling_of(
    view: NDArray[np.float32], embedding: ImageEmbedding, size: int = MAP_SIZE, frame: Frame = WHOLE
) -> Sampling:
    """Where the pixels of a mask map of `size` x `size` lie in the view, for logits that cover `frame`; one row."""
    (y, y_inside), (x, x_inside) = (_axis(view, size, embedding, axis) for axis in (0, 1))
    grid = np.empty((size, size, 2), np.float32)
    grid[..., 0], grid[..., 1] = (x - frame[0]) / frame[2], (y[:, None] - frame[1]) / frame[2]
    device = embedding.features.device
    inside = torch.as_tensor(y_inside[:, None] & x_inside, device=device)
    return Sampling(torch.as_tensor(grid, device=device)[None], inside[None])


def crop_map(image: NDArray[np.uint8], view: NDArray[np.float32], size: int = MAP_SIZE) -> NDArray[np.uint8]:
    """The view cut out of the image, black outside, resized with anti-aliasing to (size, size, 3)."""
    height, width = image.shape[:2]
    left, top = (int(np.floor(v)) for v in view[:2])
    side = int(np.ceil(view[2])) + 1
    padded = np.zeros((side + 1, side + 1, 3), np.uint8)
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + side + 1, width), min(top + side + 1, height)
    if x1 > x0 and y1 > y0:
        padded[y0 - top : y1 - top, x0 - left : x1 - left] = image[y0:y1, x0:x1]
    dx, dy = float(view[0]) - left, float(view[1]) - top
    box = (dx, dy, dx + float(view[2]), dy + float(view[2]))
    resized = Image.fromarray(padded).resize((size, size), Image.Resampling.BILINEAR, box=box)
    return np.asarray(resized)


def box_map(box: NDArray[np.float32], view: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(64, 64) uint8: 255 inside a box (x0, y0, x1, y1) of image pixels, seen in the view."""
    y, x = (_centres(view, MAP_SIZE, axis) for axis in (0, 1))
    inside = ((y >= box[1]) & (y < box[3]))[:, None] & ((x >= box[0]) & (x < box[2]))[None]
    return inside.astype(np.uint8) * 255
