"""Which reader opens which file: the one table of suffixes, and all pictures of a folder, labelled or not."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

from sam_gym.data.formats import dicom, nifti
from sam_gym.data.formats.arrays import SUFFIX as NPZ
from sam_gym.data.formats.arrays import npz_images, npz_splits
from sam_gym.data.formats.pages import open_pages, size_of
from sam_gym.data.formats.source import Images, Picture, numbered
from sam_gym.data.formats.volumes import Volume, Window, volume_images
from sam_gym.data.images import SUFFIXES, picture

VOLUME_SUFFIXES = nifti.SUFFIXES


def open_images(path: Path, window: Window | None = None) -> Images:
    """The images in a file, or in a folder of DICOM files.

    Args:
        path: The file or folder.
        window: Of NIfTI and DICOM: centre and width of the values that become 0..255; None takes the file's own.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be read, or a window is given for a file of another kind.
    """
    if is_volume(path):
        return volume_images(open_volume(path), window)
    if path.suffix.lower() == dicom.SUFFIX and path.is_file():
        return dicom.open_slice(path, window)
    if window is not None:
        raise ValueError(f"a window is for NIfTI and DICOM, and {path} is neither: leave it out")
    pages = open_pages(path)
    n = len(pages)

    def read(index: int) -> Picture:
        return picture(pages[index], str(path) if n == 1 else f"{path}, page {index}")

    return Images(path, size_of(pages), read, ("",) if n == 1 else numbered(n))


def is_volume(path: Path) -> bool:
    """Whether a path is a NIfTI file or a folder of DICOM files."""
    return path.name.lower().endswith(nifti.SUFFIXES) or dicom.is_series(path)


def open_volume(path: Path) -> Volume:
    """A path of which `is_volume` is true as a volume."""
    return dicom.open_series(path) if path.is_dir() else nifti.open_nifti(path)


def find_pictures(folder: Path, window: Window | None = None) -> dict[str, Callable[[], Picture]]:
    """All images of a folder and its subfolders, sorted, by their paths below it; none is read yet.

    A file of several images, such as a stack, a volume or an `.npz`, gives each its number: "stack.tif/07",
    "ct.nii.gz/041", "data.npz/test/12". Cellpose's `_seg.npy` files are passed over.

    Args:
        folder: The folder.
        window: As for `open_images`.

    Raises:
        ValueError: There is none.
    """

    @lru_cache(maxsize=1)
    def opened(path: Path, split: str) -> Images:
        """The images of a file; those of the last one are kept, since its next one is asked for next."""
        return npz_images(path, split) if split else open_images(path, window)

    def read(path: Path, split: str, index: int) -> Picture:
        return opened(path, split).read(index)

    found: dict[str, Callable[[], Picture]] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and _is_picture(path)):
        name, kind = path.relative_to(folder).as_posix(), path.suffix.lower()
        for split in npz_splits(path) if kind == NPZ else [""]:
            part = f"{name}/{split}" if split else name
            try:
                ids = opened(path, split).ids(part) if kind in SEVERAL else [part]
            except (ValueError, OSError):  # told, once more, to whoever wants to read it
                ids = [part]
            found |= {one: partial(read, path, split, i) for i, one in enumerate(ids)}
    if not found:
        raise ValueError(f"{folder} and its subfolders hold no image file ({', '.join(PICTURES)})")
    return found


PICTURES = (*SUFFIXES, *nifti.SUFFIXES, dicom.SUFFIX, NPZ)

SEVERAL = (".tif", ".tiff", ".npy", ".nii", ".gz", NPZ)
"""Suffixes of files that may hold several images."""


def _is_picture(path: Path) -> bool:
    return path.name.lower().endswith(PICTURES) and not path.name.startswith(".") and not path.name.endswith("_seg.npy")
