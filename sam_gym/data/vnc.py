"""VNC: twenty serial sections of fly ventral nerve cord in transmission electron microscopy, 1024 x 1024 px.

Two datasets of the same images. In `vnc-cells` an object is one 4-connected region of what is not membrane, so
organelles belong to their cell, and a cell that the section cuts twice is two objects; much of the dark glia between
the cells is drawn as membrane. In `vnc-mitochondria` an object is one 4-connected region of the mitochondria's mask,
which does not tell neighbours apart: four of its 391 objects are two mitochondria that touch, all four in training
sections.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from sam_gym.data.images import open_pixels
from sam_gym.data.segmentation import number_regions
from sam_gym.data.spec import DatasetSpec, FileRecord, Sample, read_file_list, read_splits

FOLDER = "vnc"
FILES = read_file_list(
    FOLDER,
    "https://raw.githubusercontent.com/unidesigner/groundtruth-drosophila-vnc/"
    "4a5f051466d24d8dc1e855ab55658bb1b1dcd6bf/stack1/",
)
LICENCE = "CC BY-NC-SA 3.0"
CITATION = (
    "Gerhard S., Funke J., Martel J., Cardona A., Fetter R. (2013). Segmented anisotropic ssTEM dataset of neural "
    "tissue. figshare. https://doi.org/10.6084/m9.figshare.856713"
)


def read_cells(root: Path, image_id: str) -> Sample:
    """One section, "section-<number>": its grey image, uint8 (1024, 1024), and its cells, int32 (1024, 1024)."""
    image, membranes = _read(root, image_id, "membranes")
    return image, number_regions(~_above_half(membranes))  # the opposite of ISBI 2012: True is membrane


def read_mitochondria(root: Path, image_id: str) -> Sample:
    """One section, "section-<number>": its grey image, uint8 (1024, 1024), and its mitochondria, int32 (1024, 1024)."""
    image, mitochondria = _read(root, image_id, "mitochondria")
    return image, number_regions(_above_half(mitochondria))


def _read(root: Path, image_id: str, masks: str) -> Sample:
    number = image_id.rsplit("-", 1)[1]
    return open_pixels(root / FOLDER / "raw" / f"{number}.tif"), open_pixels(root / FOLDER / masks / f"{number}.png")


def _above_half(mask: npt.NDArray[np.generic]) -> npt.NDArray[np.bool_]:
    """Some of the masks are stored as bits, others as bytes with a few greys along the outlines."""
    return mask.astype(np.bool_) if mask.dtype == np.bool_ else np.asarray(mask) > 127


def _files(masks: str) -> tuple[FileRecord, ...]:
    return tuple(record for record in FILES if record.path.split("/")[1] in ("raw", masks))


CELLS = DatasetSpec(
    name="vnc-cells",
    title="VNC: 20 ssTEM sections of Drosophila ventral nerve cord, cells as instances",
    licence=LICENCE,
    citation=CITATION,
    splits=read_splits(FOLDER),
    read=read_cells,
    folder=FOLDER,
    files=_files("membranes"),
    stand_in="synthetic-em",
    text="cell interior",
)

MITOCHONDRIA = DatasetSpec(
    name="vnc-mitochondria",
    title="VNC: 20 ssTEM sections of Drosophila ventral nerve cord, mitochondria as instances",
    licence=LICENCE,
    citation=CITATION,
    splits=read_splits(FOLDER),
    read=read_mitochondria,
    folder=FOLDER,
    files=_files("mitochondria"),
    stand_in="synthetic-mitochondria",
    text="mitochondrion",
    tile=512,
)
