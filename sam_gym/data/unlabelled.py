"""`UnlabelledData`: images with a box for each object and nothing else known about them, for agents at work."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sam_gym.data.images import to_rgb_uint8
from sam_gym.data.segmentation import ObjectTable, SegmentationData


class UnlabelledData(SegmentationData):
    """Images whose objects have boxes but no masks.

    An environment takes it as `images`: episodes run as ever, IoU and rewards are NaN, and whatever asks for a truth
    gets a ValueError. The objects of an image are numbered 1, 2, ... in the order of its boxes; their areas are given
    as 0, since nobody knows them, and `labels` are all 0. The limits of area do not apply.

    Args:
        name: What messages and `info["source"]` call the images.
        image_ids: A name for each image, unique.
        images: One image each, as `to_rgb_uint8` takes it.
        boxes: (K, 4) each: x0, y0, x1, y1 in px of the image, x1 and y1 exclusive.

    Raises:
        ValueError: An image is none, or boxes are not (K, 4).
    """

    labelled = False

    def __init__(
        self, name: str, image_ids: Sequence[str], images: Sequence[npt.ArrayLike], boxes: Sequence[npt.ArrayLike]
    ) -> None:
        self.name, self.split, self.source = name, "unlabelled", name
        self.image_ids = tuple(image_ids)
        self.min_area, self.max_area = 0, 0
        self._index = {image_id: index for index, image_id in enumerate(self.image_ids)}
        self._images = tuple(to_rgb_uint8(image, f"image {i}") for i, image in zip(self.image_ids, images, strict=True))
        self._labels = tuple(np.zeros(image.shape[:2], np.int32) for image in self._images)
        tables = [np.asarray(one, np.float32) for one in boxes]
        for image_id, table in zip(self.image_ids, tables, strict=True):
            if table.ndim != 2 or table.shape[1] != 4:
                raise ValueError(f"the boxes of {image_id} must have shape (K, 4), got {table.shape}")
        counts = [len(table) for table in tables]
        self.objects = ObjectTable(
            np.repeat(np.arange(len(counts), dtype=np.int32), counts),
            np.concatenate([np.arange(1, count + 1, dtype=np.int32) for count in counts]),
            np.zeros(sum(counts), np.int32),
            np.concatenate(tables),
        )
        for array in (*self._images, *self._labels, *vars(self.objects).values()):
            array.setflags(write=False)

    def __reduce__(self) -> tuple[object, ...]:
        boxes = [self.objects.box[self.objects.image_index == index] for index in range(len(self.image_ids))]
        return UnlabelledData, (self.name, self.image_ids, self._images, boxes)
