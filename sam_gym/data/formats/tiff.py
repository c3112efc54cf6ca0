"""TIFF files, page by page, as stored: 8 to 64 bits, integers and floats, stacks, ImageJ's and OME's.

tifffile reads them; Pillow reads what that cannot without its codecs (LZW, JPEG) and what is no plain channel
(palettes, CMYK). Several channels in several pages are refused: an image here has one or three.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]

_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_INVERTED = "MINISWHITE"
_PLAIN = ("MINISBLACK", _INVERTED, "RGB")


def is_tiff(path: Path) -> bool:
    """Whether a file begins like a TIFF, whatever its name."""
    with open(path, "rb") as file:
        return file.read(4) in _MAGIC


class TiffPages(Sequence[Array]):
    """The pages of a TIFF file, each (H, W) or (H, W, channels); none is read before it is asked for.

    Args:
        path: The file.
        indices: Give values as stored: indices of a palette, and grey whose 0 is white (as ImageJ stores masks), may be
            labels.

    Attributes:
        size: (H, W) of every page.

    Raises:
        ValueError: The file is damaged, its pages are of several sizes, or they are channels.
    """

    def __init__(self, path: Path, *, indices: bool = False) -> None:
        self.path, self._indices = path, indices
        with _reading(path) as file:
            several = len(file.series) > 1
            series = file.series[0]
            page = file.pages[0]
            axes, shape = series.axes, series.shape
            plain = page.photometric.name in _PLAIN
            mapped = series.dataoffset is not None and plain
            self._inverted = page.photometric.name == _INVERTED
        leading = [(axis, n) for axis, n in zip(axes, shape, strict=True) if axis not in "YXS" and n > 1]
        if several:
            raise ValueError(f"{path} holds images of several sizes or kinds: save each as its own file")
        if channels := dict(leading).get("C"):
            raise ValueError(
                f"{path} holds {channels} channels as pages (axes {axes}): save the one you want as its own file, or "
                "three as RGB"
            )
        self._length = math.prod(n for _, n in leading)
        self.size: tuple[int, int] = (shape[axes.index("Y")], shape[axes.index("X")])
        self._map = _mapped(path, (self._length, *page.shape)) if mapped and self._length > 1 else None
        self._axes = page.axes

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Array: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Array]: ...
    def __getitem__(self, index: int | slice) -> Array | Sequence[Array]:
        """One page, or several."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path} has pages 0..{len(self) - 1}, not {index}")
        if self._map is not None:
            return self._shown(np.asarray(self._map[index]))
        with _reading(self.path) as file:
            page: Any = file.pages[index]
            if page.photometric.name in _PLAIN:
                try:
                    return self._shown(page.asarray())
                except ValueError as error:
                    if "imagecodecs" not in str(error):
                        raise
        return self._by_pillow(index, page)

    def _by_pillow(self, index: int, page: Any) -> Array:
        from sam_gym.data.formats.pages import pillow_pixels

        pixels = pillow_pixels(self.path, index, indices=self._indices)
        if page.bitspersample > 8 and pixels.dtype.itemsize == 1:
            raise ValueError(
                f"{self.path} holds {page.bitspersample} bits a channel compressed by {page.compression.name}: save it "
                "without compression, or pip install imagecodecs"
            )
        turned = pixels.dtype.itemsize == 1  # Pillow turns over grey of 8 bits and fewer
        return _inverted(pixels) if self._inverted and turned == self._indices else pixels

    def _shown(self, array: Array) -> Array:
        """(H, W) or (H, W, channels) of a page as stored, whose colours may be planes."""
        array = np.moveaxis(array, 0, -1) if self._axes == "SYX" else array
        return _inverted(array) if self._inverted and not self._indices else array


def _inverted(array: Array) -> Array:
    values: npt.NDArray = array
    return ~values if array.dtype.kind in "bu" else array


@contextmanager
def _reading(path: Path) -> Iterator[Any]:
    """The open file; whatever tifffile stumbles over is told as a damaged file."""
    from tifffile import TiffFile

    try:
        with TiffFile(path) as file:
            yield file
    except Exception as error:  # a damaged file may raise anything
        raise ValueError(f"{path} is truncated or damaged: {error}") from error


def _mapped(path: Path, shape: tuple[int, ...]) -> Array | None:
    """All pages as one array in the file itself, where they lie one behind the other."""
    import tifffile

    try:
        return tifffile.memmap(path, mode="r").reshape(shape)
    except ValueError:  # bits that fill no bytes, for one: read page by page
        return None
