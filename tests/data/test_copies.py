"""Copies of training images: of training images only, the same each time, labels where their pixels are."""

from __future__ import annotations

import numpy as np
import pytest

from sam_gym.data import load_data
from sam_gym.data.copies import altered, with_copies


def test_copies_follow_the_originals_and_from_the_images() -> None:
    data = load_data("synthetic-em", "train")
    more = with_copies(data, 2)
    assert more.image_ids[: len(data.image_ids)] == data.image_ids
    assert more.image_ids[len(data.image_ids)] == f"{data.image_ids[0]}~1"
    assert len(more.image_ids) == 3 * len(data.image_ids)
    np.testing.assert_array_equal(more.image(0), data.image(0))
    again = altered(data.image(0), data.labels(0), np.random.default_rng([0, 1]))
    np.testing.assert_array_equal(more.image(f"{data.image_ids[0]}~1"), again[0])
    np.testing.assert_array_equal(more.labels(f"{data.image_ids[0]}~1"), again[1])
    with pytest.raises(ValueError, match="are for training"):
        with_copies(load_data("synthetic-em", "test"), 1)


@pytest.mark.parametrize("seed", range(8))
def test_labels_stay_on_their_objects(seed: int) -> None:
    # a bright square on black: after any alteration, what is labelled is the brightest there is
    image, labels = np.zeros((90, 120, 3), np.uint8), np.zeros((90, 120), np.int32)
    image[30:60, 40:80], labels[30:60, 40:80] = 220, 7
    copy, label = altered(image, labels, np.random.default_rng(seed))
    assert copy.dtype == np.uint8
    assert copy.shape[:2] == label.shape
    assert copy[..., 0].std() > 0
    np.testing.assert_array_equal(copy[..., 0], copy[..., 2])  # grey stays grey
    assert copy[label == 7].mean() > copy[label == 0].mean() + 60
    assert set(np.unique(label)) == {0, 7}
