"""What a writer of reports sees of an image: image tokens, tokens of regions, or marks that are drawn into the image.

Tokens of regions follow Osprey (Yuan et al., 2024) and MAIRA-Seg (Sharma et al., 2024): of each mask one *mask token*,
SAM's embedding averaged under it, and one *spatial token*, the mask itself at a small size. Their rival is Set-of-Mark
(Yang et al., 2023): outlines and numbers are drawn into the image, which is embedded again. Osprey averages features of
four levels; SAM hands out one, and so there is one here.

Pooling has nothing to learn, and is done once an image; the modules learn.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage
from torch import Tensor, nn

from sam_gym.sam.backend import ImageEmbedding

CELLS = 8
"""Image tokens a side."""

MASK_SIZE = 24
"""Side in px at which a mask becomes a spatial token; Osprey has 112, for images eight times as large."""

ALPHA = 0.1
"""How much of a mark's colour lies over its region, as in Set-of-Mark."""

COLOURS = (
    (230, 25, 75), (60, 180, 75), (0, 130, 200), (245, 130, 48), (145, 30, 180), (70, 240, 240), (240, 50, 230),
    (210, 245, 60),
)  # fmt: skip
"""Of marks, in their order; the ninth has the first again."""


def _inside(embedding: ImageEmbedding) -> Tensor:
    """(C, h', w') what of the features lies in the image; SAM pads it to a square."""
    side, (height, width) = embedding.features.shape[-1], embedding.input_size
    rows, columns = (max(1, round(side * length / max(height, width))) for length in (height, width))
    return embedding.features[:, :rows, :columns].float()


def image_features(embedding: ImageEmbedding, cells: int = CELLS) -> Tensor:
    """(C, cells, cells) float32: SAM's embedding of an image, averaged in cells."""
    return F.adaptive_avg_pool2d(_inside(embedding), cells)


def region_features(embedding: ImageEmbedding, masks: NDArray[np.bool_]) -> Tensor:
    """(R, C) float32: SAM's embedding averaged under each mask (R, H, W), a feature counting by how much is covered."""
    features = _inside(embedding)
    if not len(masks):
        return features.new_zeros(0, len(features))
    covered = torch.as_tensor(masks, device=features.device)[:, None].float()
    weights = F.interpolate(covered, features.shape[1:], mode="area")[:, 0].flatten(1)
    return weights @ features.flatten(1).T / weights.sum(dim=1, keepdim=True).clamp(min=1e-6)


def region_maps(masks: NDArray[np.bool_], size: int = MASK_SIZE) -> Tensor:
    """(R, size, size) float32 in [0, 1]: masks (R, H, W), how much of each pixel is covered."""
    if not len(masks):
        return torch.zeros(0, size, size)
    return F.adaptive_avg_pool2d(torch.as_tensor(masks)[:, None].float(), size)[:, 0]


def draw_marks(image: NDArray[np.uint8], masks: Sequence[NDArray[np.bool_]]) -> NDArray[np.uint8]:
    """Set-of-Mark: each mask tinted, outlined and numbered from 1 at its deepest pixel.

    Args:
        image: (H, W, 3) uint8.
        masks: (H, W) bool each; empty ones are not marked, but keep their number.

    Returns:
        (H, W, 3) uint8, another array.
    """
    drawn = image.astype(np.float32)
    places = []
    for number, mask in enumerate(masks, start=1):
        if not mask.any():
            continue
        colour = np.array(COLOURS[(number - 1) % len(COLOURS)], np.float32)
        depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
        drawn[mask] += ALPHA * (colour - drawn[mask])
        drawn[mask & (depth <= 1)] = colour
        places.append((number, np.unravel_index(int(depth.argmax()), mask.shape)))
    picture = Image.fromarray(np.rint(drawn).astype(np.uint8))
    draw, size = ImageDraw.Draw(picture), max(8, min(image.shape[:2]) // 14)
    for number, (y, x) in places:
        draw.text(
            (int(x), int(y)), str(number), fill=(255, 255, 255), font=ImageFont.load_default(size), anchor="mm",
            stroke_width=max(1, size // 8), stroke_fill=(0, 0, 0),
        )  # fmt: skip
    return np.asarray(picture)


class ImageTokens(nn.Module):
    """Image features (N, C, k, k) -> tokens (N, k * k, width), row by row.

    Args:
        channels: C.
        width: Of the tokens.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, width))

    def forward(self, features: Tensor) -> Tensor:
        """See the class."""
        return self.project(features.flatten(2).mT)


class RegionTokens(nn.Module):
    """Features (N, R, C) and maps (N, R, s, s) of regions -> tokens (N, R * K, width), region by region.

    Args:
        channels: C.
        width: Of the tokens.
        size: s.
        spatial: Whether there are spatial tokens: then K is 2, else 1.
    """

    def __init__(self, channels: int, width: int, size: int = MASK_SIZE, *, spatial: bool = True) -> None:
        super().__init__()
        self.mask = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, width))
        self.spatial: nn.Sequential | None = None
        if spatial:
            self.spatial = nn.Sequential(
                nn.Linear(size * size, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)
            )

    @property
    def each(self) -> int:
        """K, tokens of a region."""
        return 1 if self.spatial is None else 2

    def forward(self, features: Tensor, maps: Tensor) -> Tensor:
        """See the class."""
        tokens = [self.mask(features)]
        if self.spatial is not None:
            tokens.append(self.spatial(maps.flatten(2)))
        return torch.stack(tokens, dim=2).flatten(1, 2)
