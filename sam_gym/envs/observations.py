"""What an agent sees: maps, the embedding and the state, all resampled into the episode's view.

Nothing here has access to ground truth.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sam_gym.sam.backend import ImageEmbedding
from sam_gym.sam.prompts import ABSENT

MAP_SIZE = 64
"""Side of the observation maps in pixels."""

MAPS = ("red", "green", "blue", "mask", "cue", "positive", "negative")
"""Channels of `maps`, in order."""

STATE = ("prompts_left", "predicted_iou", "mask_area", "view_size", "last_change")
"""Entries of `state`, in order, each in [0, 1]."""


def observation_space(channels: int, grid: int) -> spaces.Dict:
    """The Dict space of one environment; `channels` is the embedding's C, `grid` the action grid's G."""
    return spaces.Dict(
        {
            "maps": spaces.Box(0, 255, (len(MAPS), MAP_SIZE, MAP_SIZE), np.uint8),
            "embedding": spaces.Box(-np.inf, np.inf, (channels, grid, grid), np.float32),
            "state": spaces.Box(0.0, 1.0, (len(STATE),), np.float32),
        }
    )


@dataclass
class Scene:
    """What stays the same within one episode.

    Attributes:
        image_map: (3, 64, 64) uint8, the image in the view; black outside the image.
        cue_map: (64, 64) uint8, 255 inside the cue box.
        embedding: (C, G, G) float32, SAM's embedding in the view; zero outside the image.
        grid: (1, 64, 64, 2) float32 on the device: the map's pixel centres in the model's input frame, in [-1, 1].
        inside: (64, 64) bool on the device: which of them lie in the image.
        view_size: Side of the view over the image's longer side, clipped to 1.
    """

    image_map: NDArray[np.uint8]
    cue_map: NDArray[np.uint8]
    embedding: NDArray[np.float32]
    grid: Tensor
    inside: Tensor
    view_size: float


def build_scene(
    image: NDArray[np.uint8], embedding: ImageEmbedding, view: NDArray[np.float32], cue: NDArray[np.float32], cells: int
) -> Scene:
    """The constant part of an episode's observations; `cells` is G of the action grid."""
    device = embedding.features.device
    grid, inside = _sampling_grid(view, MAP_SIZE, embedding, device)
    fine, fine_inside = _sampling_grid(view, 2 * cells, embedding, device)
    # "border", so that cells at the image's edge are not mixed with zeros from beyond it
    sampled = F.grid_sample(embedding.features[None], fine, align_corners=False, padding_mode="border") * fine_inside
    reduced = F.avg_pool2d(sampled, 2)[0]  # two samples a cell each way, so that wide views do not alias
    return Scene(
        image_map=_crop(image, view).transpose(2, 0, 1),
        cue_map=_box_map(cue, view),
        embedding=reduced.cpu().numpy(),
        grid=grid,
        inside=inside,
        view_size=min(1.0, float(view[2]) / max(image.shape[:2])),
    )


def mask_map(logits: Tensor, scene: Scene) -> NDArray[np.uint8]:
    """Low-resolution logits (h, w) -> the mask's probability in the view, (64, 64) uint8."""
    sampled = F.grid_sample(logits[None, None], scene.grid, align_corners=False, padding_mode="border")
    probability = sampled[0, 0].sigmoid() * scene.inside
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


def _sampling_grid(
    view: NDArray[np.float32], size: int, embedding: ImageEmbedding, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Centres of size x size cells of the view as grid_sample coordinates, and which of them lie in the image."""
    height, width = embedding.image_size
    side = max(embedding.input_size)  # the longer side of the image fills the model's square input
    offsets = (np.arange(size, dtype=np.float64) + 0.5) / size * view[2]
    x, y = view[0] + offsets, view[1] + offsets
    inside = ((y >= 0) & (y < height))[:, None] & ((x >= 0) & (x < width))[None]
    x_norm = 2 * x * (embedding.input_size[1] / width) / side - 1
    y_norm = 2 * y * (embedding.input_size[0] / height) / side - 1
    grid = np.stack(np.meshgrid(x_norm, y_norm), axis=-1).astype(np.float32)
    return torch.as_tensor(grid, device=device)[None], torch.as_tensor(inside, device=device)


def _crop(image: NDArray[np.uint8], view: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The view cut out of the image, black outside, resized with anti-aliasing to (64, 64, 3)."""
    height, width = image.shape[:2]
    left, top = (int(np.floor(v)) for v in view[:2])
    size = int(np.ceil(view[2])) + 1
    padded = np.zeros((size + 1, size + 1, 3), np.uint8)
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + size + 1, width), min(top + size + 1, height)
    if x1 > x0 and y1 > y0:
        padded[y0 - top : y1 - top, x0 - left : x1 - left] = image[y0:y1, x0:x1]
    dx, dy = float(view[0]) - left, float(view[1]) - top
    box = (dx, dy, dx + float(view[2]), dy + float(view[2]))
    resized = Image.fromarray(padded).resize((MAP_SIZE, MAP_SIZE), Image.Resampling.BILINEAR, box=box)
    return np.asarray(resized)


def _box_map(box: NDArray[np.float32], view: NDArray[np.float32]) -> NDArray[np.uint8]:
    centres = (np.arange(MAP_SIZE) + 0.5) / MAP_SIZE * view[2]
    x, y = view[0] + centres, view[1] + centres
    inside = ((y >= box[1]) & (y < box[3]))[:, None] & ((x >= box[0]) & (x < box[2]))[None]
    return inside.astype(np.uint8) * 255
