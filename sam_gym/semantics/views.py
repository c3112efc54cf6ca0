"""Views of regions: images and masks -> what a CLIP model's image tower takes.

All views of a region are the same square about its mask, with a margin, resized to the model's size; they differ in
what becomes of the pixels outside of the mask. Nothing here knows of models beyond the size and the channel statistics
of their input.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from sam_gym._utils.boxes import tight_box
from sam_gym._utils.naming import unknown

VIEWS = ("masked", "cropped", "blurred")
"""Outside of the mask: the model's mean colour; left as it is; blurred."""

MARGIN = 0.25
"""Of the longer side of a mask's bounding rectangle, added on each side of the square."""


class Preprocessing(Protocol):
    """What views must know of a model: the side of its input in px, and mean and std of the RGB channels in [0, 1]."""

    @property
    def image_size(self) -> int: ...  # noqa: D102
    @property
    def mean(self) -> tuple[float, ...]: ...  # noqa: D102
    @property
    def std(self) -> tuple[float, ...]: ...  # noqa: D102


def region_views(
    images: Sequence[NDArray[np.uint8]],
    masks: Sequence[NDArray[np.bool_]],
    clip: Preprocessing,
    view: str = "masked",
    *,
    margin: float = MARGIN,
) -> Tensor:
    """Square views of masked regions.

    The square is centred on the mask's bounding rectangle and may reach over the image's edge; what lies beyond has
    the model's mean colour. Where a mask's edge falls within a pixel of the view, inside and outside are mixed.

    Args:
        images: N RGB images uint8 (H, W, 3), of one size or of several.
        masks: N masks bool (H, W), each of its image's size and with at least one pixel.
        clip: A `ClipModel`, or anything else with `image_size` S, `mean` and `std`.
        view: One of `VIEWS`.
        margin: Share of the rectangle's longer side that is added on each side.

    Returns:
        float32 (N, 3, S, S), normalised, on the CPU. Each depends on its own image and mask only.

    Raises:
        ValueError: Another view; unequal numbers; none; a mask that is empty or not of its image's size; an image or a
            mask of another shape or dtype.
    """
    check_view(view)
    check_regions(images, masks)
    shown = torch.zeros(len(images), 4, clip.image_size, clip.image_size)  # 0 is the mean colour
    for image, mask, out in zip(images, masks, shown, strict=True):
        _cut(image, mask, clip, margin, out)
    pixels, inside = shown[:, :3], shown[:, 3:]
    if view == "cropped":
        return pixels
    if view == "masked":
        return pixels * inside
    sigma = clip.image_size / 16
    blurred = gaussian_blur(pixels, [2 * math.ceil(2 * sigma) + 1] * 2, [sigma, sigma])
    return torch.lerp(blurred, pixels, inside)


def whole_views(images: Sequence[NDArray[np.uint8]], clip: Preprocessing, tiles: int = 1) -> Tensor:
    """Whole images, each as tiles x tiles views that cover it without overlap.

    Args:
        images: N RGB images uint8 (H, W, 3), of one size or of several. One that is not square is squeezed.
        clip: As for `region_views`.
        tiles: Tiles along each side.

    Returns:
        float32 (N, tiles, tiles, 3, S, S), normalised, on the CPU: rows of tiles, then columns.

    Raises:
        ValueError: No image, one of another shape or dtype, or no tile.
    """
    check_images(images, tiles)
    size = clip.image_size
    whole = _normalise(torch.stack([_resize(image, (size * tiles, size * tiles)) for image in images]), clip)
    return whole.unflatten(2, (tiles, size)).unflatten(4, (tiles, size)).permute(0, 2, 4, 1, 3, 5)


def check_view(view: str) -> None:
    """Raise ValueError unless this is one of `VIEWS`."""
    if view not in VIEWS:
        raise ValueError(unknown("view", view, VIEWS))


def check_images(images: Sequence[NDArray[np.uint8]], tiles: int = 1) -> None:
    """Raise ValueError unless these are RGB images, at least one, and tiles to cut them into."""
    if tiles < 1:
        raise ValueError(f"at least one tile is needed, got {tiles}")
    if not len(images):
        raise ValueError("at least one image is needed")
    for index, image in enumerate(images):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ValueError(f"image {index} must be uint8 (H, W, 3), got {image.dtype} {image.shape}")


def check_regions(
    images: Sequence[NDArray[np.uint8]], masks: Sequence[NDArray[np.bool_]], *, allow_empty: bool = False
) -> None:
    """Raise ValueError unless these are RGB images, each with a mask of its size."""
    check_images(images)
    if len(images) != len(masks):
        raise ValueError(f"{len(images)} images and {len(masks)} masks: each image needs one")
    for index, (image, mask) in enumerate(zip(images, masks, strict=True)):
        if mask.dtype != np.bool_ or mask.shape != image.shape[:2]:
            raise ValueError(
                f"mask {index} must be bool {image.shape[:2]} like its image, got {mask.dtype} {mask.shape}"
            )
        if not (allow_empty or mask.any()):
            raise ValueError(f"mask {index} is empty: there is no region to look at")


def _cut(image: NDArray[np.uint8], mask: NDArray[np.bool_], clip: Preprocessing, margin: float, out: Tensor) -> None:
    """Write the square about a mask to `out` (4, S, S), zeros before: normalised pixels, and the mask from 0 to 1."""
    box = tight_box(mask)
    assert box is not None  # checked before
    x0, y0, x1, y1 = (int(value) for value in box)
    side = math.ceil(max(x1 - x0, y1 - y0) * (1 + 2 * margin))
    rows, target_rows = _span((y0 + y1 - side) // 2, side, image.shape[0], clip.image_size)
    columns, target_columns = _span((x0 + x1 - side) // 2, side, image.shape[1], clip.image_size)
    size = (target_rows.stop - target_rows.start, target_columns.stop - target_columns.start)
    out[:3, target_rows, target_columns] = _normalise(_resize(image[rows, columns], size), clip)
    out[3:, target_rows, target_columns] = _resize(mask[rows, columns, None] * np.uint8(255), size).float() / 255


def _span(start: int, side: int, limit: int, size: int) -> tuple[slice, slice]:
    """What of start .. start + side lies within 0 .. limit, in these pixels and in those of a view of `size`."""
    inner = slice(max(start, 0), min(start + side, limit))
    first = min(round((inner.start - start) * size / side), size - 1)
    return inner, slice(first, max(round((inner.stop - start) * size / side), first + 1))


def _resize(pixels: NDArray[np.uint8], size: tuple[int, int]) -> Tensor:
    """Bytes (h, w, C) as a tensor of bytes (C, *size), the way open_clip's own preprocessing resizes."""
    tensor = torch.tensor(pixels).permute(2, 0, 1)[None]  # a copy: torch warns of arrays that are read-only
    return F.interpolate(tensor, size, mode="bicubic", antialias=True)[0]


def _normalise(pixels: Tensor, clip: Preprocessing) -> Tensor:
    """Bytes (..., 3, h, w) as floats of mean 0 and standard deviation 1, as the model was trained with."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (clip.mean, clip.std))
    return (pixels.float() / 255 - mean) / std
