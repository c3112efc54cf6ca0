"""Windows of images with up to so many objects each, for environments in which an image is described as a whole.

It rearranges what `load_data` gives: images are cut into squares, and each keeps the labels of its objects. A window
without any object is a window too. Which dataset is cut, and how large, is for the caller to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

from sam_gym.data.datasets import load_data
from sam_gym.data.segmentation import ObjectTable, SegmentationData
from sam_gym.data.whole_class import NO_LIMIT, WHOLE, cut_windows


class WindowData(SegmentationData):
    """Images that are described as a whole: a row of `objects` is an image, and stands for all objects in it.

    Args:
        name: The dataset that was asked for.
        split: Its split.
        source: What the pixels really are.
        image_ids: A name for each window, unique.
        images: The windows.
        labels: Integer array (H, W) each: 0 = none, else an object's id. All zero where there is no object.
        min_area: Objects of fewer px were left out of the labels.

    Attributes:
        objects: One row an image: id `WHOLE`, the area of all its objects, the whole image as the box.

    Raises:
        ValueError: As `SegmentationData`; so one image at least has an object.
    """

    def __init__(
        self,
        name: str,
        split: str,
        source: str,
        image_ids: Sequence[str],
        images: Sequence[npt.ArrayLike],
        labels: Sequence[npt.ArrayLike],
        *,
        min_area: int = 1,
    ) -> None:
        super().__init__(name, split, source, image_ids, images, labels, min_area=min_area, max_area=NO_LIMIT)
        n = len(self.image_ids)
        areas = [np.count_nonzero(self.labels(i)) for i in range(n)]
        boxes = [(0, 0, self.image(i).shape[1], self.image(i).shape[0]) for i in range(n)]
        self.objects = ObjectTable(
            np.arange(n, dtype=np.int32), np.full(n, WHOLE, np.int32), np.array(areas, np.int32),
            np.array(boxes, np.float32),
        )  # fmt: skip
        for column in vars(self.objects).values():
            column.setflags(write=False)

    def __reduce__(self) -> tuple[object, ...]:
        n = range(len(self.image_ids))
        rest = (self.name, self.split, self.source, self.image_ids, [*map(self.image, n)], [*map(self.labels, n)])
        return _rebuild, (rest, self.min_area)

    def mask(self, image: int | str, object_id: int = WHOLE) -> npt.NDArray[np.bool_]:
        """All objects of an image together, bool (H, W); False everywhere where there is none.

        Raises:
            ValueError: No such image, or another id than `WHOLE`.
        """
        if object_id != WHOLE:
            raise ValueError(f"the objects of a window are one target, of id {WHOLE}; there is no {object_id}")
        return self.labels(image) > 0


def _rebuild(arguments: tuple, min_area: int) -> WindowData:
    return WindowData(*arguments, min_area=min_area)


def load_windows(
    name: str, split: str = "train", data: str = "auto", side: int | None = None, most: int = 12, min_area: int = 50
) -> WindowData:
    """Load one split of one dataset as windows; equal arguments give the same object.

    Args:
        name: A key of `DATASETS`.
        split: "train", "val" or "test"; windows belong to the split of their image.
        data: "auto", "real" or "synthetic", as for `load_data`.
        side: Of the windows in px, from the top left corner on. What is left at the right and at the bottom makes no
            window, but an image that is smaller than one is a window itself. None leaves images whole.
        most: Windows with more objects are left out.
        min_area: What a window shows of an object counts if it has so many px; else it is background.

    Raises:
        ValueError: As `load_data`, or no object is left.
        DataUnavailableError: As `load_data`.
    """
    return windows_of(load_data(name, split, data, min_area=1, max_area=NO_LIMIT), side, most, min_area)


@cache
def windows_of(data: SegmentationData, side: int | None, most: int, min_area: int) -> WindowData:
    """`load_windows` of any split whose labels are instances."""
    ids, images, labels = [], [], []
    for image_id in data.image_ids:
        image, label = data.image(image_id), data.labels(image_id)
        for name, window in cut_windows(image_id, label.shape, side):
            part = _large_enough(label[window], min_area)
            whole = tuple(min(side or length, length) for length in label.shape)
            if part.shape != whole or len(np.unique(part[part > 0])) > most:
                continue
            ids.append(name)
            images.append(image[window])
            labels.append(part)
    return WindowData(data.name, data.split, data.source, ids, images, labels, min_area=min_area)


def _large_enough(labels: npt.NDArray[np.int32], min_area: int) -> npt.NDArray[np.int32]:
    ids, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return np.where(counts >= min_area, ids, 0)[inverse].reshape(labels.shape).astype(np.int32)
