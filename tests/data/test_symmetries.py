"""The eight orientations of a split."""

from __future__ import annotations

import numpy as np

from sam_gym.data import SegmentationData
from sam_gym.data.symmetries import SYMMETRIES, in_all_orientations, turned


def small_split() -> SegmentationData:
    rng = np.random.default_rng(0)
    images = [rng.integers(256, size=(40, 60, 3), dtype=np.uint8), rng.integers(256, size=(50, 50, 3), dtype=np.uint8)]
    labels = [np.zeros(image.shape[:2], np.int32) for image in images]
    labels[0][2:32, 5:15], labels[0][3:5, 30:32], labels[1][10:30, 4:44] = 7, 9, 2
    return SegmentationData("small", "train", "small", ["a", "b"], images, labels)


def test_each_image_has_eight_different_orientations_and_itself_comes_first() -> None:
    data = small_split()
    eight = in_all_orientations(data)
    assert eight.image_ids[:3] == ("a", "b", "a/1")
    assert len(eight.image_ids) == len(set(eight.image_ids)) == SYMMETRIES * 2
    for image_id in ("a", "b"):
        np.testing.assert_array_equal(eight.image(image_id), data.image(image_id))
        looks = {eight.image(one).tobytes() for one in eight.image_ids if one.split("/")[0] == image_id}
        assert len(looks) == SYMMETRIES


def test_objects_keep_ids_areas_and_pixels_in_every_orientation() -> None:
    data = small_split()
    eight = in_all_orientations(data)
    assert len(eight.objects) == SYMMETRIES * len(data.objects)  # object 9 is too small in all of them
    for row in range(len(eight.objects)):
        index, object_id = int(eight.objects.image_index[row]), int(eight.objects.object_id[row])
        image_id = eight.image_ids[index].split("/")[0]
        original = data.objects.area[data.find(image_id, object_id)]
        assert eight.objects.area[row] == original
        pixels, before = (d.image(i)[d.mask(i, object_id)] for d, i in ((eight, index), (data, image_id)))
        np.testing.assert_array_equal(np.sort(pixels.ravel()), np.sort(before.ravel()))


def test_a_turn_by_hand() -> None:
    array = np.array([[1, 2, 3], [4, 5, 6]])
    np.testing.assert_array_equal(turned(array, 0), array)
    np.testing.assert_array_equal(turned(array, 1), [[3, 2, 1], [6, 5, 4]])
    np.testing.assert_array_equal(turned(array, 2), [[4, 5, 6], [1, 2, 3]])
    np.testing.assert_array_equal(turned(array, 4), [[1, 4], [2, 5], [3, 6]])
    np.testing.assert_array_equal(turned(array, 3), array[::-1, ::-1])
