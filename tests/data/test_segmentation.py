"""`SegmentationData` on small hand-made labels: table, boxes, masks, errors, immutability, hash."""

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sam_gym.data import SegmentationData


def make(*labels, min_area=1, max_area=10_000, images=None, source="mine"):
    labels = [np.asarray(label) for label in labels]
    if images is None:
        images = [np.full(label.shape, 7, np.uint8) for label in labels]
    ids = [f"im-{k}" for k in range(len(labels))]
    return SegmentationData("mine", "train", source, ids, images, labels, min_area=min_area, max_area=max_area)


LABEL = np.array([[0, 3, 3, 0], [0, 3, 0, 0], [5, 0, 0, 1]])


def test_hand_example():
    data = make(np.zeros((2, 2), int), LABEL)
    assert data.objects.image_index.tolist() == [1, 1, 1]
    assert data.objects.object_id.tolist() == [1, 3, 5]
    assert data.objects.area.tolist() == [1, 3, 1]
    # x0, y0, x1, y1 with exclusive x1, y1: a single pixel has width 1
    assert data.objects.box.tolist() == [[3, 2, 4, 3], [1, 0, 3, 2], [0, 2, 1, 3]]
    assert (data.objects.box.dtype, data.objects.area.dtype) == (np.float32, np.int32)
    assert len(data.objects) == 3
    assert data.find("im-1", 3) == data.find(1, 3) == 1
    assert np.array_equal(data.mask("im-1", 3), LABEL == 3)
    assert data.mask(1, 3).dtype == bool


def test_area_filter_keeps_ids_and_labels():
    data = make(LABEL, min_area=2)
    assert data.objects.object_id.tolist() == [3]
    assert data.labels(0)[2, 3] == 1
    assert data.mask(0, 1).sum() == 1
    with pytest.raises(ValueError, match=r"object 1 of im-0 has 1 px, outside min_area=2\.\.max_area=10000"):
        data.find(0, 1)


def test_sparse_ids():
    label = LABEL.astype(np.int64) * 400_000_000
    data = make(label)
    assert data.objects.object_id.tolist() == [400_000_000, 1_200_000_000, 2_000_000_000]
    assert data.objects.box[1].tolist() == [1, 0, 3, 2]


@settings(max_examples=60, deadline=None)
@given(arrays(np.int32, st.tuples(st.integers(1, 7), st.integers(1, 7)), elements=st.integers(0, 70)))
def test_table_equals_brute_force(label):
    if not label.any():
        with pytest.raises(ValueError, match="no object"):
            make(label)
        return
    data = make(label)
    ids = [i for i in np.unique(label) if i]
    assert data.objects.object_id.tolist() == ids
    for row, object_id in enumerate(ids):
        ys, xs = np.nonzero(label == object_id)
        assert data.objects.area[row] == len(ys)
        assert data.objects.box[row].tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        assert data.find(0, object_id) == row


def test_disconnected_objects_are_allowed():
    data = make([[4, 0, 4]])
    assert data.objects.area.tolist() == [2]
    assert data.objects.box.tolist() == [[0, 0, 3, 1]]


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (np.zeros((4, 3), int), r"labels of im-0 have shape \(4, 3\), its image has \(3, 4\)"),
        (np.zeros((3, 4, 1), int), r"have shape \(3, 4, 1\)"),
        (LABEL.astype(float), "must be integers, got dtype float64"),
        (-LABEL, r"must lie in 0\.\.2\*\*31-1, got -5\.\.0"),
        (LABEL.astype(np.int64) << 40, r"must lie in 0\.\.2\*\*31-1"),
        (np.zeros((3, 4), int), r"no object of mine train .*\(0 objects of any area\)"),
    ],
)
def test_bad_labels(label, message):
    with pytest.raises(ValueError, match=message):
        make(label, images=[np.zeros((3, 4), np.uint8)])


def test_bad_lists():
    image = np.zeros((3, 4), np.uint8)
    with pytest.raises(ValueError, match="1 image ids, 2 images, 1 labels"):
        SegmentationData("mine", "train", "mine", ["a"], [image, image], [LABEL])
    with pytest.raises(ValueError, match="image ids must be unique"):
        SegmentationData("mine", "train", "mine", ["a", "a"], [image, image], [LABEL, LABEL])
    with pytest.raises(ValueError, match="image a .*channel-first"):
        SegmentationData("mine", "train", "mine", ["a"], [np.zeros((3, 50, 40), np.uint8)], [LABEL])


@pytest.mark.parametrize("object_id", [0, -1, 2, 99])
def test_absent_object_has_no_mask(object_id):
    data = make(LABEL)
    with pytest.raises(ValueError, match=rf"im-0 has no object {object_id}; .* there are 1, 3, 5: .*would be empty"):
        data.mask(0, object_id)
    with pytest.raises(ValueError, match=rf"im-0 has no object {object_id}; within the area limits there are 1, 3, 5"):
        data.find(0, object_id)


@pytest.mark.parametrize("image", [-1, 2, "im-7", "0"])
def test_absent_image(image):
    data = make(LABEL, LABEL)
    for method in (data.image, data.labels, lambda i: data.find(i, 1), lambda i: data.mask(i, 1)):
        with pytest.raises(ValueError, match=r"mine train has (images 0\.\.1|no image .*im-0, im-1)"):
            method(image)


def test_numpy_integers_are_taken():
    data = make(LABEL)
    row = 1
    image, object_id = data.objects.image_index[row], data.objects.object_id[row]
    assert data.find(image, object_id) == row
    assert data.mask(image, object_id).sum() == 3
    assert data.image(image).shape == (3, 4, 3)


def _all_arrays(data):
    table = [getattr(data.objects, name) for name in ("image_index", "object_id", "area", "box")]
    return [data.image(0), data.labels(0), *table]


@pytest.mark.parametrize(
    "through",
    [lambda d: d, copy.copy, copy.deepcopy, lambda d: pickle.loads(pickle.dumps(d))],
    ids=["itself", "copy", "deepcopy", "pickle"],
)
def test_read_only(through):
    data = make(LABEL, min_area=2)
    other = through(data)
    assert other.hash() == data.hash()
    assert repr(other) == repr(data)
    for array in _all_arrays(other):
        assert not array.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
    assert other.image(0) is other.image(0)


def test_the_users_arrays_stay_theirs():
    image, label = np.zeros((3, 4, 3), np.uint8), LABEL.astype(np.int32)
    data = make(label, images=[image])
    before = data.hash()
    image[...] = 9
    label[...] = 9
    assert data.image(0).max() == 0
    assert data.labels(0).max() == 5
    # also through a read-only view of an array that can still be written
    view = np.zeros((3, 4, 3), np.uint8)[:]
    view.setflags(write=False)
    again = make(LABEL, images=[view])
    view.base[...] = 200
    assert again.hash() == before


def test_hash_depends_on_what_matters():
    image = np.zeros((3, 4), np.uint8)
    other_image, other_label = image.copy(), LABEL.copy()
    other_image[0, 0] = 1
    other_label[0, 0] = 3
    variants = [
        make(LABEL, images=[image]),
        make(LABEL, images=[other_image]),
        make(other_label, images=[image]),
        make(LABEL, images=[image], min_area=2),
        make(LABEL, images=[image], source="synthetic-em"),
    ]
    hashes = [data.hash() for data in variants]
    assert len(set(hashes)) == len(hashes)
    assert make(LABEL.astype(np.uint16), images=[image]).hash() == hashes[0]
    assert len(hashes[0]) == 64
