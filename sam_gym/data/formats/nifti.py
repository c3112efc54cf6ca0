"""NIfTI files as volumes, by nibabel. An uncompressed one stays on disk, a `.nii.gz` is held as stored."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sam_gym.data.formats.volumes import Array, Volume, need

SUFFIXES = (".nii", ".nii.gz")


def open_nifti(path: Path) -> Volume:
    """A NIfTI file; its window is the header's cal_min to cal_max, where those are set.

    Raises:
        ValueError: It is damaged, or holds no single volume of numbers.
        MissingExtraError: nibabel is not installed.
    """
    need(path, "NIfTI", "nibabel")
    import nibabel

    try:
        image = nibabel.load(path)
        assert isinstance(image, nibabel.Nifti1Pair), "its name says so"
        given, kind = image.shape, image.get_data_dtype()
    except Exception as error:  # a damaged file may raise anything
        raise ValueError(f"{path} is truncated, damaged or no NIfTI file: {error}") from error
    shape = (*given, 1, 1, 1)[: max(3, len(given))]
    if any(n != 1 for n in shape[3:]):
        raise ValueError(
            f"{path} holds {given[3:]} volumes of {given[:3]} voxels: save the one you want, as by "
            "nibabel.save(nibabel.load(file).slicer[..., 0], other)"
        )
    if kind.kind not in "buif":
        raise ValueError(f"{path} holds {kind}, not one number a voxel: save grey values")
    if 0 in shape:
        raise ValueError(f"{path} has no voxels: its shape is {given}")

    proxy: Any = image.dataobj  # reads what is asked for

    @cache
    def stored() -> Array:
        try:
            return np.asanyarray(proxy.get_unscaled()).reshape(shape[:3])
        except Exception as error:  # torn off, or of a compression that is broken
            raise ValueError(f"{path} is truncated or damaged: {error}") from error

    def plane(index: int) -> Array:
        slope, intercept = float(proxy.slope), float(proxy.inter)
        values: npt.NDArray = np.asarray(stored()[..., index])
        return values if (slope, intercept) == (1, 0) else values * slope + intercept

    low, high = float(image.header["cal_min"]), float(image.header["cal_max"])
    window = ((low + high) / 2, high - low) if np.isfinite([low, high]).all() and high > low else None
    affine = np.asarray(image.affine, np.float64)
    return Volume(path, (shape[0], shape[1], shape[2]), affine, plane, lambda _: window)
