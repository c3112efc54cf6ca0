"""DICOM by pydicom: a folder of slices as a volume, one slice as an image. Headers come first, pixels when asked for.

Not read: files of several frames, segmentation objects and contours (SEG, RTSTRUCT), files without the suffix `.dcm`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sam_gym.data.formats.source import Images, Picture
from sam_gym.data.formats.volumes import Array, Volume, Window, need, windowed

SUFFIX = ".dcm"
EVEN = 0.1
"""By what share of the usual distance two slices may be nearer or farther."""

INVERTED = "MONOCHROME1"

TO_NIFTI = "convert it to NIfTI, as by dcm2niix or 3D Slicer"


def is_series(path: Path) -> bool:
    """Whether a path is a folder of DICOM files."""
    return path.is_dir() and bool(_files(path))


def open_slice(path: Path, window: Window | None = None) -> Images:
    """One DICOM file as an image, as stored; the window is the file's own unless one is given. Raises like a series."""
    header = _header(path)
    inverted = header.get("PhotometricInterpretation") == INVERTED

    def read(_: int) -> Picture:
        bright = windowed(_values(path), _window(header) if window is None else window, str(path))
        return np.uint8(255) - bright if inverted else bright

    return Images(path, (int(header.Rows), int(header.Columns)), read)


def open_series(folder: Path) -> Volume:
    """The DICOM files of a folder, in the order of their positions.

    Raises:
        ValueError: They are not the slices of one series, all there once and evenly spaced, or one cannot be read.
        MissingExtraError: pydicom is not installed.
    """
    headers = {path: _header(path) for path in _files(folder)}
    first = next(iter(headers))
    for path, header in headers.items():
        if missing := [name for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
                       if getattr(header, name, None) is None]:  # fmt: skip
            raise ValueError(
                f"{path} has no {missing[0]}, so it is no slice of a series: save it as PNG or 16-bit TIFF"
            )
        if header.get("PhotometricInterpretation") == INVERTED:
            raise ValueError(f"{path} holds inverted grey ({INVERTED}), which is not read as a series: {TO_NIFTI}")
        for name in ("SeriesInstanceUID", "Rows", "Columns", "ImageOrientationPatient", "PixelSpacing"):
            one, other = getattr(headers[first], name, None), getattr(header, name, None)
            if one != other and not (_near(one, other)):
                raise ValueError(f"{folder} holds several series: {name} is {one} in {first.name} and {other} in "
                                 f"{path.name}. Give each a folder of its own")  # fmt: skip
    along, down = np.reshape(np.asarray(headers[first].ImageOrientationPatient, np.float64), (2, 3))
    across = np.cross(along, down)
    where = {path: np.asarray(header.ImagePositionPatient, np.float64) for path, header in headers.items()}
    files = sorted(where, key=lambda path: float(where[path] @ across))
    _check_gaps(folder, files, np.array([where[path] @ across for path in files]))
    row_step, column_step = (float(step) for step in headers[first].PixelSpacing)
    thickness = float(getattr(headers[first], "SliceThickness", None) or 1)
    n = len(files)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = along * column_step, down * row_step
    affine[:3, 2] = (where[files[-1]] - where[files[0]]) / (n - 1) if n > 1 else across * thickness
    affine[:3, 3] = where[files[0]]
    affine[:2] *= -1  # DICOM's axes run to the left and to the back
    shape = int(headers[first].Columns), int(headers[first].Rows), n
    return Volume(folder, shape, affine, lambda k: _values(files[k]).T, lambda k: _window(headers[files[k]]))


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() == SUFFIX and not p.name.startswith("."))


def _header(path: Path) -> Any:
    need(path, "DICOM", "pydicom")
    import pydicom

    try:
        header = pydicom.dcmread(path, stop_before_pixels=True)
        _ = header.Rows, header.Columns
    except Exception as error:  # a damaged file may raise anything
        raise ValueError(f"{path} is truncated, damaged or no DICOM image: {error}") from error
    if header.get("Modality") in ("SEG", "RTSTRUCT"):
        raise ValueError(f"{path} is a segmentation object ({header.Modality}), which is not read: {TO_NIFTI}")
    if int(header.get("NumberOfFrames") or 1) > 1:
        raise ValueError(f"{path} holds {header.NumberOfFrames} frames: {TO_NIFTI}")
    if int(header.get("SamplesPerPixel") or 1) > 1:
        raise ValueError(f"{path} holds colours: save it as PNG")
    return header


def _values(path: Path) -> Array:
    """The values (H, W) in the file's units, such as Hounsfield's."""
    import pydicom

    header = pydicom.dcmread(path)
    try:
        values = header.pixel_array
    except Exception as error:  # damaged, or of a compression for which pydicom has no decoder
        raise ValueError(f"the pixels of {path} cannot be read: {error}") from error
    slope, intercept = float(header.get("RescaleSlope", 1)), float(header.get("RescaleIntercept", 0))
    if (slope, intercept) != (1, 0):
        values = values * slope + intercept
    return values


def _window(header: Any) -> Window | None:
    """The first window of a header."""
    centre, width = header.get("WindowCenter"), header.get("WindowWidth")
    if centre is None or width is None:
        return None
    return float(np.atleast_1d(centre)[0]), float(np.atleast_1d(width)[0])


def _near(one: Any, other: Any) -> bool:
    """Whether two values of a header are lists of numbers that are nearly equal."""
    numbers = [np.asarray(v, np.float64) for v in (one, other) if isinstance(v, Sequence) and not isinstance(v, str)]
    return (
        len(numbers) == 2 and numbers[0].shape == numbers[1].shape and bool((abs(np.subtract(*numbers)) < 1e-3).all())
    )


def _check_gaps(folder: Path, files: list[Path], heights: npt.NDArray[np.float64]) -> None:
    """Raise ValueError unless the slices are one distance apart."""
    steps = np.diff(heights)
    usual = float(np.sort(steps)[(len(steps) - 1) // 2]) if len(steps) else 0.0  # of two, the smaller one
    for (one, other), step in zip(pairwise(files), steps, strict=True):
        if step < 1e-3:
            raise ValueError(f"{folder}: {one.name} and {other.name} lie at the same place: keep one series of slices")
        if abs(step - usual) > EVEN * usual:
            raise ValueError(
                f"{folder}: {one.name} and {other.name} are {step:g} mm apart and other slices {usual:g} mm: "
                + ("a slice is missing between them; add it" if step > usual else "keep one series of slices")
            )
