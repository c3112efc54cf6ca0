"""WBC: 150 crops of stained blood smears, about 120 x 120 px, a white blood cell in the middle of each.

Two datasets of the same images with one object an image: `wbc-cell` is the whole white cell, cytoplasm and nucleus;
`wbc-nucleus` is its nucleus, whose lobes count as one object also where they are apart. Red cells bear no label.
Crops from the edge of a smear's picture are padded with black or white.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sam_gym.data.images import open_pixels
from sam_gym.data.spec import DatasetSpec, Sample, read_file_list, read_splits

FOLDER = "wbc"
FILES = read_file_list(
    FOLDER, "https://raw.githubusercontent.com/zxaoyou/segmentation_WBC/fa9c01622f52bccb9aeb8a6f2628f564e377767d/"
)
LICENCE = "GPL-3.0 (of the repository that holds the images)"
CITATION = (
    "Zheng X., Wang Y., Wang G., Liu J. (2018). Fast and robust segmentation of white blood cell images by "
    "self-supervised learning. Micron 107: 55-71"
)
CYTOPLASM_GREY, NUCLEUS_GREY = 128, 255  # in the masks; background is 0, and they are cut midway


def read_cell(root: Path, image_id: str) -> Sample:
    """One crop, "crop-<number>": its colour image, uint8 (H, W, 3), and its white cell, int32 (H, W) of 0 and 1."""
    return _read(root, image_id, CYTOPLASM_GREY / 2)


def read_nucleus(root: Path, image_id: str) -> Sample:
    """One crop, "crop-<number>": its colour image, uint8 (H, W, 3), and its nucleus, int32 (H, W) of 0 and 1."""
    return _read(root, image_id, (CYTOPLASM_GREY + NUCLEUS_GREY) / 2)


def _read(root: Path, image_id: str, cut: float) -> Sample:
    crop = root / FOLDER / "Dataset 1" / image_id.rsplit("-", 1)[1]
    image, mask = open_pixels(crop.with_suffix(".bmp")), np.asarray(open_pixels(crop.with_suffix(".png")))
    return image, (mask > cut).astype(np.int32)


CELL = DatasetSpec(
    name="wbc-cell",
    title="WBC: 150 crops of stained blood smears, the white blood cell as the object",
    licence=LICENCE,
    citation=CITATION,
    splits=read_splits(FOLDER),
    read=read_cell,
    folder=FOLDER,
    files=FILES,
    text="white blood cell",
)

NUCLEUS = DatasetSpec(
    name="wbc-nucleus",
    title="WBC: 150 crops of stained blood smears, the white blood cell's nucleus as the object",
    licence=LICENCE,
    citation=CITATION,
    splits=read_splits(FOLDER),
    read=read_nucleus,
    folder=FOLDER,
    files=FILES,
    text="nucleus of a white blood cell",
)
