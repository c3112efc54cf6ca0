"""Whole-class targets: all objects of an image as one, for environments whose target is a class and not an object.

It rearranges what `load_data` gives: the union of the instance labels, and tiles where images are too large for that.
Which dataset is cut into tiles, and what its class is called, its `DatasetSpec` says.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from sam_gym.data.datasets import DATASETS, load_data
from sam_gym.data.segmentation import MIN_AREA, SegmentationData

NO_LIMIT = 2**31 - 1
"""A `max_area` that leaves nothing out."""

WHOLE = 1
"""Id of the only object of an image."""


def load_whole_class(
    name: str, split: str = "train", data: str = "auto", min_area: int = MIN_AREA, max_area: int = NO_LIMIT
) -> SegmentationData:
    """Load one split of one dataset with a single object an image: all that the dataset labels, whatever its size.

    Equal arguments give the same object for as long as the process lives.

    Args:
        name: A key of `DATASETS`; its `text` says what the class is.
        split: "train", "val" or "test"; tiles belong to the split of their image.
        data: "auto", "real" or "synthetic", as for `load_data`.
        min_area: Images, or tiles, in which the class has fewer px are left out.
        max_area: Those in which it has more px are left out likewise.

    Returns:
        The data; object ids are 1, images without the class are missing. Tiles are called "<image>-r<row>c<column>".

    Raises:
        ValueError: As `load_data`, or no image is left.
        DataUnavailableError: As `load_data`.
    """
    instances = load_data(name, split, data, min_area=1, max_area=NO_LIMIT)
    return whole_class(instances, DATASETS[instances.source].tile, min_area, max_area)


@cache
def whole_class(
    data: SegmentationData, tile: int | None = None, min_area: int = 1, max_area: int = NO_LIMIT
) -> SegmentationData:
    """The same images with all their objects as one.

    Args:
        data: Any split.
        tile: Cut images into squares of this side in px, from the top left corner on; what is left at the right and
            at the bottom makes smaller tiles. None leaves images whole.
        min_area: Images, or tiles, in which the class has fewer px are left out.
        max_area: Those in which it has more px are left out likewise.

    Raises:
        ValueError: No image is left.
    """
    ids, images, labels = [], [], []
    for image_id in data.image_ids:
        image, label = data.image(image_id), (data.labels(image_id) > 0).astype(np.int32) * WHOLE
        for name, window in cut_windows(image_id, label.shape, tile):
            if min_area <= int(np.count_nonzero(label[window])) <= max_area:
                ids.append(name)
                images.append(image if tile is None else image[window])
                labels.append(label[window])
    if not ids:
        raise ValueError(
            f"the class of {data.name} {data.split} has min_area={min_area} to max_area={max_area} px in none of its"
            " images"
        )
    return SegmentationData(
        data.name, data.split, data.source, ids, images, labels, min_area=max(1, min_area), max_area=max_area
    )


@cache
def some_images(data: SegmentationData, n: int) -> SegmentationData:
    """The same with `n` of its images only, in order, drawn by a generator that is seeded by `n` alone."""
    chosen = np.sort(np.random.default_rng(n).choice(len(data.image_ids), n, replace=False))
    ids = [data.image_ids[i] for i in chosen]
    images, labels = [data.image(i) for i in ids], [data.labels(i) for i in ids]
    limits = {"min_area": data.min_area, "max_area": data.max_area}
    return SegmentationData(data.name, data.split, data.source, ids, images, labels, **limits)


def cut_windows(image_id: str, shape: tuple[int, ...], tile: int | None) -> list[tuple[str, tuple[slice, slice]]]:
    """Names and slices of the squares of side `tile` that an image of this shape is cut into; None: all of it."""
    if tile is None:
        return [(image_id, (slice(None), slice(None)))]
    return [
        (f"{image_id}-r{y // tile}c{x // tile}", (slice(y, y + tile), slice(x, x + tile)))
        for y in range(0, shape[0], tile)
        for x in range(0, shape[1], tile)
    ]
