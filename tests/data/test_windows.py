"""Windows of images: what is cut, what counts as an object, what is left out."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from sam_gym.data import SegmentationData
from sam_gym.data.windows import WindowData, load_windows, windows_of


def some_data() -> SegmentationData:
    """Two images of 8 x 14 and 3 x 3 px: four objects, one of them cut by a window's border, and one."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in ((8, 14), (3, 3))]
    labels = [np.zeros((8, 14), np.int32), np.ones((3, 3), np.int32)]
    labels[0][0:2, 3:6], labels[0][3, 0:2], labels[0][2, 2:4], labels[0][7, 13] = 1, 2, 3, 4
    return SegmentationData("some", "val", "some", ["a", "b"], images, labels, min_area=1)


def test_windows_keep_pixels_and_labels_and_may_be_empty() -> None:
    data = some_data()
    cut = windows_of(data, 4, 12, 1)
    # what is left at the right makes no window; an image that is smaller than one is one
    assert cut.image_ids == ("a-r0c0", "a-r0c1", "a-r0c2", "a-r1c0", "a-r1c1", "a-r1c2", "b-r0c0")
    for name in cut.image_ids[:-1]:
        y, x = 4 * int(name[3]), 4 * int(name[5])
        np.testing.assert_array_equal(cut.image(name), data.image("a")[y : y + 4, x : x + 4])
        np.testing.assert_array_equal(cut.labels(name), data.labels("a")[y : y + 4, x : x + 4])
        np.testing.assert_array_equal(cut.mask(name), cut.labels(name) > 0)
    assert np.unique(cut.labels("a-r0c0")).tolist() == [0, 1, 2, 3]
    assert cut.objects.area.tolist() == [6, 4, 0, 0, 0, 0, 9]
    assert cut.objects.box[0].tolist() == [0, 0, 4, 4]
    assert (cut.find("a-r1c0", 1), cut.objects.object_id.tolist()) == (3, [1] * 7)
    assert {cut.draw(np.random.default_rng(i)) for i in range(60)} == set(range(7))


def test_small_parts_and_crowded_windows_are_left_out() -> None:
    cut = windows_of(some_data(), 4, 12, 3)
    assert np.unique(cut.labels("a-r0c0")).tolist() == [0]  # all that is left of its three objects has 2 px
    assert np.unique(cut.labels("a-r0c1")).tolist() == [0, 1]
    assert "a-r0c0" not in windows_of(some_data(), 4, 2, 1).image_ids
    assert windows_of(some_data(), None, 12, 1).image_ids == ("a", "b")
    with pytest.raises(ValueError, match="no object"):
        windows_of(some_data(), 4, 12, 100)
    with pytest.raises(ValueError, match="one target, of id 1"):
        cut.mask("a-r0c0", 2)


def test_windows_travel_to_other_processes() -> None:
    cut = windows_of(some_data(), 4, 12, 1)
    twin = pickle.loads(pickle.dumps(cut))
    assert isinstance(twin, WindowData)
    assert twin.hash() == cut.hash()


@pytest.mark.real_images
@pytest.mark.parametrize(("name", "side"), [("vnc-mitochondria", 512), ("vnc-cells", 128), ("dsb2018-153", 128)])
def test_real_windows_have_12_objects_at_most(name: str, side: int) -> None:
    data = load_windows(name, "val", "real", side)
    counts = [len(np.unique(data.labels(i))) - 1 for i in data.image_ids]
    assert (max(counts) <= 12, np.mean(counts) > 1, len(set(counts)) > 4) == (True, True, True)
    assert load_windows(name, "val", "real", side) is data
