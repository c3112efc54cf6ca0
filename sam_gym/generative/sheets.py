"""Sheets of samples: one row a class, each enlarged, for people to look at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from sam_gym._utils.fetching import atomic_path
from sam_gym.generative.model import Denoiser, sample, to_pixels
from sam_gym.generative.schedule import Schedule

EACH, SCALE, GAP = 12, 3, 2


def sample_sheet(model: Denoiser, seed: int = 0, *, each: int = EACH, guidance: float = 1.0) -> NDArray[np.uint8]:
    """`each` samples of each class, (H, W, 3) uint8; equal seeds mean equal noise, so that sheets can be compared."""
    classes = len(model.classes)
    labels = torch.arange(classes).repeat_interleave(each)
    images = to_pixels(sample(model, Schedule(), labels, torch.Generator().manual_seed(seed), guidance))
    return tiled(images, each)


def tiled(images: NDArray[np.uint8], columns: int, scale: int = SCALE) -> NDArray[np.uint8]:
    """Pictures (N, H, W, 3) in rows of `columns`, enlarged, on black."""
    n, height, width, _ = images.shape
    rows = -(-n // columns)
    sheet = np.zeros((rows * (height * scale + GAP) + GAP, columns * (width * scale + GAP) + GAP, 3), np.uint8)
    for i, image in enumerate(images):
        y, x = GAP + i // columns * (height * scale + GAP), GAP + i % columns * (width * scale + GAP)
        sheet[y : y + height * scale, x : x + width * scale] = image.repeat(scale, 0).repeat(scale, 1)
    return sheet


def write_sheet(path: Path, sheet: NDArray[np.uint8]) -> None:
    """Write a sheet as PNG."""
    with atomic_path(path) as temporary:
        Image.fromarray(sheet).save(temporary, "PNG", optimize=True)
