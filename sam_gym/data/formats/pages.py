"""Image files as arrays, just as stored: what Pillow reads, TIFF, and `.npy`. Nothing is converted here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sam_gym.data.formats.tiff import TiffPages, is_tiff
from sam_gym.data.images import pil_pixels

Array = npt.NDArray[np.generic]

UNPICKLE = (
    "import sys, numpy as np; [np.save(f[:-8] + '_masks.npy', np.load(f, allow_pickle=True).item()['masks']) "
    "for f in sys.argv[1:]]"
)
"""A program that takes the masks out of Cellpose's `_seg.npy` files."""


def open_pages(path: Path, *, indices: bool = False) -> Sequence[Array]:
    """The images in a file, (H, W) or (H, W, channels) each, as stored, a palette looked up.

    TIFF files may hold several, and so may `.npy` files: their first axis counts images if there are four, or three of
    which the last is not 1, 3 or 4 long.

    Args:
        path: The file.
        indices: Leave a palette alone: its indices may be labels.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no image, or truncated, damaged, or of a kind that is not read; the message says which.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no image file {path}")
    if is_tiff(path):
        return TiffPages(path, indices=indices)
    if path.suffix.lower() == ".npy":
        return _npy_pages(path)
    return [pillow_pixels(path, indices=indices)]


def size_of(pages: Sequence[Array]) -> tuple[int, int]:
    """(H, W) of the pages of a file."""
    height, width = pages.size if isinstance(pages, TiffPages) else pages[0].shape[:2]
    return int(height), int(width)


def pillow_pixels(path: Path, page: int = 0, *, indices: bool = False) -> Array:
    """One image of a file that Pillow reads; raises like `open_pages`."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            image.seek(page)
            image.load()
            return np.asarray(image if indices and image.mode == "P" else pil_pixels(image))
    except UnidentifiedImageError as error:
        size = path.stat().st_size
        raise ValueError(f"{path} ({size} bytes) is not an image, or of a format that Pillow cannot read") from error
    except (OSError, SyntaxError, EOFError) as error:  # Pillow reports a broken PNG as SyntaxError
        raise ValueError(f"{path} is truncated or damaged: {error}") from error


def _npy_pages(path: Path) -> Sequence[Array]:
    """An array on disk, of which only what is asked for is read. A pickle is refused, since reading one runs code."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        if "objects" not in str(error):
            raise ValueError(f"{path} is truncated, damaged or no array: {error}") from error
        way_out = "save the array alone, as by np.save(file, array)"
        if path.name.endswith("_seg.npy"):
            way_out = (
                "save the masks from Cellpose as PNG or TIFF; or, if you trust these files, write NAME_masks.npy beside"
                f' each by\n  python -c "{UNPICKLE}" {path.parent}/*_seg.npy'
            )
        raise ValueError(f"{path} holds Python objects, and reading those can run code: {way_out}") from error
    if array.ndim == 4 or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        return array
    if array.ndim not in (2, 3):
        raise ValueError(
            f"{path} has shape {array.shape}: an image is (H, W) or (H, W, channels), a stack has one more"
        )
    return array[None]
