"""How masks, images and numbers travel to the page."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from fastapi import Response
from numpy.typing import NDArray
from PIL import Image

from sam_gym.annotate.segmenting import Segment, segment_of


def runs_of(segment: Segment) -> dict[str, Any]:
    """A mask as its rectangle and runs: how many pixels are 0, then 1, then 0, ..., row by row in the rectangle."""
    flat = segment.mask.ravel().astype(np.int8)
    edges = np.flatnonzero(np.diff(flat, prepend=0, append=0))
    height, width = segment.mask.shape
    runs = np.diff(np.concatenate([[0], edges])).tolist()
    return {"x": segment.left, "y": segment.top, "w": width, "h": height, "runs": runs}


def mask_of(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """`runs_of` a mask (H, W)."""
    return runs_of(segment_of(mask, 0.0, 0))


def picture(image: NDArray[np.uint8]) -> Response:
    """An image as PNG, without loss."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return Response(buffer.getvalue(), media_type="image/png")


def stretched(pixels: NDArray[np.generic], low: float = 0.1, high: float = 99.9) -> NDArray[np.uint8]:
    """An image of any depth to look at: from the `low`th to the `high`th percentile of its values becomes 0..255.

    For eyes only: SAM is given what `sam_gym.data.to_rgb_uint8` makes of it.
    """
    colours = pixels[..., :3] if pixels.ndim == 3 else pixels[..., None]
    values = colours.astype(np.float32)
    darkest, brightest = np.percentile(values, [low, high])
    shown = np.rint(np.clip((values - darkest) / max(float(brightest - darkest), 1e-6), 0, 1) * 255).astype(np.uint8)
    return shown if shown.shape[2] == 3 else np.repeat(shown[..., :1], 3, axis=2)


def number(value: float) -> float | None:
    """A number as JSON takes it: NaN is null."""
    return round(float(value), 4) if math.isfinite(value) else None


def numbers(values: NDArray) -> list[float]:
    """Coordinates as plain numbers."""
    return [float(value) for value in np.asarray(values).ravel()]
