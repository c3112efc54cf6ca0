"""Whole-class targets: unions of labels, tiles, and what is left out."""

from __future__ import annotations

import numpy as np
import pytest

from sam_gym.data import DATASETS, SegmentationData, load_data, load_whole_class
from sam_gym.data.whole_class import NO_LIMIT, whole_class
from sam_gym.registration import CLASSES

SPLITS = ("train", "val", "test")
IMAGES = {  # of the splits, with at least 200 px of the class
    "vnc-mitochondria": (56, 8, 16), "wbc-cell": (95, 15, 40), "wbc-nucleus": (95, 15, 40), "dsb2018": (25, 6, 11),
    "dsb2018-153": (136, 6, 11), "synthetic-mitochondria": (31, 6, 8),
}  # fmt: skip


def some_data() -> SegmentationData:
    """Three images of 6 x 10 px: two objects, none, one of four pixels."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (6, 10, 3), dtype=np.uint8) for _ in range(3)]
    labels = np.zeros((3, 6, 10), np.int32)
    labels[0, :2, :3], labels[0, 4:, 6:], labels[2, 5, 6:] = 4, 9, 1
    return SegmentationData("some", "val", "some", ["a", "b", "c"], images, list(labels), min_area=1)


def test_all_objects_become_one_and_images_without_any_are_left_out() -> None:
    data = some_data()
    whole = whole_class(data)
    assert whole.image_ids == ("a", "c")
    assert whole.objects.object_id.tolist() == [1, 1]
    for name in whole.image_ids:
        np.testing.assert_array_equal(whole.image(name), data.image(name))
        np.testing.assert_array_equal(whole.mask(name, 1), data.labels(name) > 0)
    assert (whole.name, whole.split, whole.source) == ("some", "val", "some")
    assert data.objects.object_id.tolist() == [4, 9, 1]  # the instances are left alone
    assert whole.hash() != data.hash()


def test_tiles_are_cut_from_the_top_left_and_keep_every_pixel() -> None:
    data = some_data()
    tiled = whole_class(data, tile=4)
    assert tiled.image_ids == ("a-r0c0", "a-r1c1", "a-r1c2", "c-r1c1", "c-r1c2")
    for name in tiled.image_ids:
        image_id, row, column = name[0], int(name[3]), int(name[5])
        window = (slice(4 * row, 4 * row + 4), slice(4 * column, 4 * column + 4))
        np.testing.assert_array_equal(tiled.image(name), data.image(image_id)[window])
        np.testing.assert_array_equal(tiled.mask(name, 1), (data.labels(image_id) > 0)[window])
    assert tiled.objects.area.sum() == sum((data.labels(i) > 0).sum() for i in data.image_ids)


def test_area_limits_count_the_whole_class() -> None:
    data = some_data()
    assert whole_class(data, min_area=5).image_ids == ("a",)
    assert whole_class(data, max_area=13).image_ids == ("c",)
    with pytest.raises(ValueError, match="the class of some val has min_area=15 to max_area=.* in none of its images"):
        whole_class(data, min_area=15)


@pytest.mark.parametrize("name", list(CLASSES.values()))
def test_real_classes(name: str, real_folder: object) -> None:
    """Nothing is lost: not the small objects, nor the large unions, nor what a tile's border cuts."""
    spec = DATASETS[name]
    for split, images in zip(SPLITS, IMAGES[name], strict=True):
        data, instances = load_whole_class(name, split, "real"), load_data(name, split, "real", 1, NO_LIMIT)
        assert data is load_whole_class(name, split, "real")
        assert len(data.image_ids) == len(data.objects) == images
        assert data.objects.area.min() >= 200
        kept = {i: (instances.labels(i) > 0).sum() for i in instances.image_ids}
        dropped = sum(area for area in kept.values() if area < 200)
        assert data.objects.area.sum() == sum(kept.values()) - dropped
        if spec.tile:
            assert {data.image(i).shape for i in data.image_ids} == {(spec.tile, spec.tile, 3)}
        assert all(i.split("-r")[0] in spec.splits[split] for i in data.image_ids)  # tiles stay in their split


def test_stand_ins_are_whole_classes_of_generated_mitochondria(real_folder: object) -> None:
    data = load_whole_class("vnc-mitochondria", "val", "synthetic")
    assert (data.name, data.source) == ("vnc-mitochondria", "synthetic-mitochondria")
    generated = load_whole_class("synthetic-mitochondria", "val")
    assert data.image_ids == generated.image_ids
    np.testing.assert_array_equal(data.mask(0, 1), generated.mask(0, 1))
    np.testing.assert_array_equal(data.image(0), load_data("synthetic-em", "val").image(data.image_ids[0]))


def test_every_dataset_says_what_its_objects_are() -> None:
    texts = {name: spec.text for name, spec in DATASETS.items()}
    assert all(texts.values())
    expected = ("mitochondrion", "white blood cell", "nucleus of a white blood cell", "nucleus", "mitochondrion")
    assert tuple(texts[name] for name in CLASSES.values()) == expected
    assert all(DATASETS[s.stand_in].text == s.text for s in DATASETS.values() if s.stand_in)
