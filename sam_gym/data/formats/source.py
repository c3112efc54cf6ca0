"""What every reader gives: `Images` of a file, and a `Source`, which is images together with their labels.

Nothing is read before it is asked for. Which kinds there are is the business of the other modules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from sam_gym.data.formats.volumes import Volume

Picture = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Images:
    """The images in a file, or in a folder that is one thing, such as a DICOM series.

    Attributes:
        path: Of the file or folder, for messages.
        size: (H, W) of each image.
        read: Number of an image -> uint8 (H, W, 3) RGB.
        names: What each is called within the file; ("",) where the file is one image.
        volume: Where the slices lie in space, if the file says it.
    """

    path: Path
    size: tuple[int, int]
    read: Callable[[int], Picture]
    names: tuple[str, ...] = ("",)
    volume: Volume | None = None

    def ids(self, name: str) -> list[str]:
        """The names of the images in a file that is called `name`."""
        return [f"{name}/{one}" if one else name for one in self.names]


@dataclass(frozen=True)
class Source:
    """Images and labels that belong together: an image, a stack, a volume, or a published split.

    All images of a source are in one split, since they look alike.

    Attributes:
        name: What its image ids begin with.
        open: Gives the images.
        label: Images -> int32 (n, H, W), 0 = none, else the value of an object.
        split: The split it was published in, or None.
        divisible: Whether it may be cut into blocks for the splits where it is the only source of a folder.
    """

    name: str
    open: Callable[[], Images]
    label: Callable[[Images], Labels]
    split: str | None = None
    divisible: bool = True


def numbered(n: int) -> tuple[str, ...]:
    """The names of `n` images in order, from 0 on, of equal length."""
    return tuple(str(i).zfill(len(str(n - 1))) for i in range(n))


def check_fit(mask: Path | str, there: Sequence[int], images: Images) -> None:
    """Raise ValueError unless labels of the shape (n, H, W) are those of the images."""
    n, *size = there
    if n != len(images.names):
        raise ValueError(f"{mask} holds {n} slices and its image {images.path} {len(images.names)}: save them all")
    if tuple(size) != images.size:
        one, other = (" x ".join(map(str, reversed(s))) for s in (tuple(size), images.size))
        raise ValueError(
            f"{mask} is {one} px (width x height) and its image {images.path} {other}: save the mask at the size of "
            "its image"
        )


class MissingExtraError(ImportError, ValueError):
    """A file needs a package that comes with an extra."""

    def __init__(self, path: Path, what: str, package: str, extra: str) -> None:
        super().__init__(f"{path}: {what} needs {package}, which is not installed: pip install 'sam_gym[{extra}]'")
