"""Values of mask files -> labels: what is binary, what holds integers, and what is no mask. Opens no file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from sam_gym.data.formats.source import Labels
from sam_gym.data.segmentation import number_regions

Array = npt.NDArray[np.generic]


def to_labels(values: Array, path: Path | str) -> Labels:
    """The values of a mask file that holds all objects, (n, H, W) or (n, H, W, channels) -> int32 (n, H, W), 0 = none.

    With one value beside 0 in the whole file it is binary, and the connected regions of each image are numbered; with
    several they are the objects' (grey, 16- or 32-bit, or indices of a palette). A JPEG cannot hold integers: it is
    binary, cut at 127.

    Raises:
        ValueError: They are those of no mask; the message says what to do.
    """
    numbers = to_integers(values, path)
    if is_jpeg(path) or _is_binary(numbers):
        return np.stack([number_regions(one > (127 if is_jpeg(path) else 0)) for one in numbers])
    between = numbers[(numbers > 0) & (numbers < 255)]
    if numbers.max() == 255 and len(between) < np.count_nonzero(numbers == 255) / 2 and len(np.unique(between)) > 3:
        raise ValueError(
            f"{path} looks like a binary mask with soft edges: {len(between)} pixels are neither 0 nor 255. Save "
            "it with two values; if it holds objects as integers, then with other numbers than 255"
        )
    return numbers.astype(np.int32)


def to_mask(values: Array, path: Path | str) -> npt.NDArray[np.bool_]:
    """The values of a mask file of one object -> bool (n, H, W): above 127 where there is more than one value beside 0.

    Raises:
        ValueError: They are those of no such mask.
    """
    numbers = to_integers(values, path)
    if _is_binary(numbers):
        return numbers > 0
    if numbers.max() <= 127:
        raise ValueError(
            f"{path} holds several values, up to {numbers.max()}: a mask of one object has 0 and one other"
        )
    return numbers > 127


def to_integers(values: Array, path: Path | str) -> npt.NDArray[np.integer]:
    """The same values as integers (n, H, W) from 0 to 2**31 - 1; ValueError if they are none."""
    array: npt.NDArray = values
    if array.ndim == 4:
        colours = array[..., :3]  # alpha says nothing
        if (colours != colours[..., :1]).any():
            raise ValueError(
                f"{path} is a colour image, a mask has one channel: save labels as grey or 16-bit integers"
            )
        array = colours[..., 0]
    if array.dtype.kind == "f" and np.isfinite(array).all() and (array == np.rint(array)).all():
        array = array.astype(np.int64)
    if array.dtype == np.bool_:
        array = array.astype(np.uint8)
    low, high = array.min(), array.max()
    if array.dtype.kind not in "ui" or low < 0 or high > np.iinfo(np.int32).max:
        raise ValueError(f"{path} holds {array.dtype} from {low} to {high}: a mask holds integers from 0 to 2**31 - 1")
    return array


def is_jpeg(path: Path | str) -> bool:
    """Whether a file's name is that of a JPEG."""
    return Path(path).suffix.lower() in (".jpg", ".jpeg")


def _is_binary(values: npt.NDArray) -> bool:
    """Whether there is at most one value beside 0."""
    return bool(((values == 0) | (values == values.max())).all())
