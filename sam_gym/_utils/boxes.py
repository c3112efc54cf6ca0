"""Boxes and what goes wrong with them: the boxes that episodes start from and that tuned decoders are trained with.

Pure numpy. A box is x0, y0, x1, y1, continuous in pixels of the original image; x1 - x0 is its width.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

SIZE_ERRORS = ("isotropic", "sides")
"""Conventions of `missized_box`."""


def noisy_box(tight: Floats, noise: float, image_size: tuple[int, int], rng: np.random.Generator) -> Floats:
    """A tight box with each side moved by U(-noise, noise) x the box's extent in that direction, inside the image.

    Args:
        tight: (4,) x0, y0, x1, y1.
        noise: Relative error e >= 0.
        image_size: (H, W).
        rng: Source of the four numbers drawn.

    Returns:
        (4,) float32, at least one pixel wide and high.
    """
    x0, y0, x1, y1 = (float(v) for v in tight)
    extent = np.array([x1 - x0, y1 - y0, x1 - x0, y1 - y0])
    moved = np.array([x0, y0, x1, y1]) + rng.uniform(-noise, noise, 4) * extent
    return clip_box(moved, image_size)


def missized_box(
    tight: Floats, error: float, convention: str, image_size: tuple[int, int], rng: np.random.Generator
) -> Floats:
    """A tight box whose size is wrong by `error`: every side is half of that share of the box's extent off.

    "isotropic": the box is too large or too small as a whole, width and height times 1 + error or 1 - error, about its
    centre. "sides": each side by itself is too far out or too far in, so that width and height are each wrong by
    -error, 0 or +error, and the centre moves. Which way is drawn, with even odds. Published tables of "box-size error"
    leave open which of the two they mean.

    Args:
        tight: (4,) x0, y0, x1, y1.
        error: Relative error of the size, 0 <= error < 1.
        convention: One of `SIZE_ERRORS`.
        image_size: (H, W).
        rng: Source of the one or four directions drawn; it is used for error 0 as well.

    Returns:
        (4,) float32 inside the image, at least one pixel wide and high.

    Raises:
        ValueError: Another convention.
    """
    if convention not in SIZE_ERRORS:
        raise ValueError(f"size-error convention {convention!r} is unknown; choose from {', '.join(SIZE_ERRORS)}")
    outward = np.where(rng.integers(2, size=1 if convention == "isotropic" else 4), 1.0, -1.0)
    x0, y0, x1, y1 = (float(v) for v in tight)
    extent = np.array([x0 - x1, y0 - y1, x1 - x0, y1 - y0])  # signed: plus is outward
    return clip_box(np.array([x0, y0, x1, y1]) + outward * error / 2 * extent, image_size)


def clip_box(box: NDArray, image_size: tuple[int, int]) -> Floats:
    """Corners in order, inside the image, at least one pixel apart."""
    height, width = image_size
    x0, x1 = sorted((float(box[0]), float(box[2])))
    y0, y1 = sorted((float(box[1]), float(box[3])))
    x0, y0 = np.clip(x0, 0, width - 1), np.clip(y0, 0, height - 1)
    return np.array([x0, y0, np.clip(x1, x0 + 1, width), np.clip(y1, y0 + 1, height)], np.float32)


def box_iou(box: NDArray, other: NDArray) -> float:
    """Intersection over union of two boxes (4,).

    Example:
        >>> box_iou(np.array([0, 0, 2, 2], np.float32), np.array([1, 0, 3, 2], np.float32))
        0.3333333333333333
    """
    box, other = np.asarray(box, np.float64), np.asarray(other, np.float64)
    shared = np.prod(np.clip(np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2]), 0, None))
    return float(shared / (np.prod(box[2:] - box[:2]) + np.prod(other[2:] - other[:2]) - shared))


def tight_box(mask: NDArray[np.bool_]) -> Floats | None:
    """The bounding rectangle (4,) of a mask (H, W), or None where it is empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)
