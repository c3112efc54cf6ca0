"""`.npz` files of whole data sets, as MedSegBench and MedMNIST have them: images and labels for each split."""

from __future__ import annotations

import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sam_gym.data.formats.labels import to_labels
from sam_gym.data.formats.source import Images, Labels, Source, check_fit, numbered
from sam_gym.data.images import picture

SUFFIX = ".npz"
SPLITS = ("train", "val", "test")
LABELS = ("label", "labels", "mask", "masks")

FORM = "train_images (n, H, W[, 3]) and train_label (n, H, W), likewise val_ and test_"


def npz_sources(path: Path) -> list[Source]:
    """The splits of a file, as published; ValueError if it holds none, or images without labels."""
    keys = _keys(path)
    sources = []
    for split in SPLITS:
        if f"{split}_images" in keys:
            names = [f"{split}_{name}" for name in LABELS if f"{split}_{name}" in keys]
            if len(names) != 1:
                raise ValueError(
                    f"{path} has {split}_images and {len(names)} arrays of labels for them: it needs {FORM}"
                )
            label = partial(_label, path, names[0])
            sources.append(Source(split, partial(npz_images, path, split), label, split, divisible=False))
    if not sources:
        raise ValueError(f"{path} holds {', '.join(keys) or 'nothing'}: it needs {FORM}")
    return sources


def npz_images(path: Path, split: str) -> Images:
    """The images of one split of a file; all are read together."""
    array = _array(path, f"{split}_images")
    if array.ndim not in (3, 4):
        raise ValueError(
            f"{path}: {split}_images has shape {array.shape}, which is not (n, H, W) or (n, H, W, channels)"
        )
    size = int(array.shape[1]), int(array.shape[2])
    return Images(path, size, lambda i: picture(array[i], f"{path}, {split} {i}"), numbered(len(array)))


def npz_splits(path: Path) -> list[str]:
    """The splits of a file that have images."""
    return [split for split in SPLITS if f"{split}_images" in _keys(path)]


def _label(path: Path, key: str, images: Images) -> Labels:
    array, where = _array(path, key), f"{path}, {key}"
    if array.ndim < 3:
        raise ValueError(f"{where} has shape {array.shape}: those are classes of images, not masks (n, H, W)")
    check_fit(where, array.shape[:3], images)
    return to_labels(array, where)


def _keys(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as file:
            return [name.removesuffix(".npy") for name in file.namelist()]
    except (zipfile.BadZipFile, OSError) as error:
        raise ValueError(f"{path} is truncated, damaged or no .npz file: {error}") from error


def _array(path: Path, key: str) -> npt.NDArray[np.generic]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return file[key]
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: {key} cannot be read: {error}") from error
