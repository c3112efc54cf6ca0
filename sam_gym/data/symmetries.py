"""A split with all its images in the eight orientations of the square, to train on; it is no dataset of its own."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sam_gym.data.segmentation import SegmentationData

SYMMETRIES = 8


def in_all_orientations(data: SegmentationData) -> SegmentationData:
    """Eight images for each one, mirrored and transposed, with their labels.

    Tissue under a microscope has no up or left, so they are as good as new images for whatever is trained on them; a
    network that was trained on all (SAM's encoder, of everyday pictures) sees them differently. For splits that are
    trained on, never for results.

    Args:
        data: The split.

    Returns:
        A split of the same name and source. The image "a" becomes "a", "a/1", ..., "a/7"; object ids stay.
    """
    ids, images, labels = [], [], []
    for which in range(SYMMETRIES):  # all images as they are first, so that their indices stay
        for index, image_id in enumerate(data.image_ids):
            ids.append(f"{image_id}/{which}" if which else image_id)
            images.append(turned(data.image(index), which))
            labels.append(turned(data.labels(index), which))
    return SegmentationData(
        data.name, data.split, data.source, ids, images, labels, min_area=data.min_area, max_area=data.max_area
    )


def turned(array: npt.NDArray, which: int) -> npt.NDArray:
    """One of the eight symmetries of the square (H, W, ...): bit 0 mirrors x, bit 1 y, bit 2 swaps them afterwards."""
    if which & 1:
        array = array[:, ::-1]
    if which & 2:
        array = array[::-1]
    return np.ascontiguousarray(array.swapaxes(0, 1) if which & 4 else array)
