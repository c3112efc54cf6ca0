"""Boxes: errors are as large as they say, in either convention, and masks have the boxes that one would draw."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sam_gym._utils.boxes import SIZE_ERRORS, box_iou, missized_box, tight_box

SIZE = (1000, 1200)  # of an image in which nothing below is clipped
TIGHT = np.array([400, 300, 500, 340], np.float32)

conventions = st.sampled_from(SIZE_ERRORS)
seeds = st.integers(0, 2**32)
errors = st.floats(0, 0.9)


@st.composite
def boxes_well_inside(draw: st.DrawFn) -> NDArray[np.float32]:
    """Boxes in the middle of the image, large enough that none shrinks to less than a pixel."""
    width, height = draw(st.integers(20, 250)), draw(st.integers(20, 250))
    x0, y0 = draw(st.integers(250, 700)), draw(st.integers(250, 500))
    return np.array([x0, y0, x0 + width, y0 + height], np.float32)


def extents(box: NDArray) -> NDArray[np.float64]:
    return (box[2:] - box[:2]).astype(np.float64)


# ------------------------------------------------------------------------------------------------- errors of the size


@given(boxes_well_inside(), errors, seeds)
def test_an_isotropic_error_scales_the_box_about_its_centre(tight: NDArray, error: float, seed: int) -> None:
    box = missized_box(tight, error, "isotropic", SIZE, np.random.default_rng(seed))
    assert box.dtype == np.float32
    np.testing.assert_allclose((box[:2] + box[2:]) / 2, (tight[:2] + tight[2:]) / 2, atol=1e-3)
    ratios = extents(box) / extents(tight)
    assert ratios[0] == pytest.approx(ratios[1], abs=1e-4)
    assert abs(ratios[0] - 1) == pytest.approx(error, abs=1e-4)


@given(boxes_well_inside(), errors, seeds)
def test_an_error_of_sides_moves_each_by_half_of_it(tight: NDArray, error: float, seed: int) -> None:
    box = missized_box(tight, error, "sides", SIZE, np.random.default_rng(seed))
    moved = (box - tight) / np.tile(extents(tight), 2)
    np.testing.assert_allclose(np.abs(moved), error / 2, atol=1e-4)
    for ratio in extents(box) / extents(tight):
        assert min(abs(ratio - expected) for expected in (1 - error, 1, 1 + error)) < 1e-4


@pytest.mark.parametrize(("convention", "ways"), [("isotropic", 2), ("sides", 16)])
def test_all_directions_come_with_even_odds(convention: str, ways: int) -> None:
    rng = np.random.default_rng(0)
    boxes = np.array([missized_box(TIGHT, 0.2, convention, SIZE, rng) for _ in range(4000)])
    outward = (boxes - TIGHT) * (-1, -1, 1, 1) > 0
    assert len(np.unique(outward, axis=0)) == ways
    np.testing.assert_allclose(outward.mean(axis=0), 0.5, atol=0.03)


def test_the_two_sizes_by_hand() -> None:
    rng = np.random.default_rng(0)
    found = {tuple(missized_box(TIGHT, 0.4, "isotropic", SIZE, rng).tolist()) for _ in range(30)}
    assert found == {(380, 292, 520, 348), (420, 308, 480, 332)}


@given(boxes_well_inside(), conventions, seeds)
def test_without_error_the_box_is_tight(tight: NDArray, convention: str, seed: int) -> None:
    np.testing.assert_array_equal(missized_box(tight, 0.0, convention, SIZE, np.random.default_rng(seed)), tight)


@given(conventions, st.floats(0.01, 0.9), st.floats(0.01, 0.9), seeds)
def test_the_direction_does_not_depend_on_the_error(convention: str, one: float, other: float, seed: int) -> None:
    """So equal seeds make a series of worse and worse boxes; after each the generator stands at the same place."""
    generators = [np.random.default_rng(seed) for _ in range(3)]
    boxes = [missized_box(TIGHT, e, convention, SIZE, g) for e, g in zip((one, other, 0.0), generators, strict=True)]
    np.testing.assert_array_equal(np.sign(boxes[0] - TIGHT), np.sign(boxes[1] - TIGHT))
    assert len({generator.random() for generator in generators}) == 1


@given(st.tuples(st.integers(1, 300), st.integers(1, 300)), conventions, errors, seeds, st.data())
def test_boxes_stay_in_the_image_and_have_a_pixel(
    size: tuple[int, int], convention: str, error: float, seed: int, data: st.DataObject
) -> None:
    height, width = size
    x0, y0 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    tight = np.array([x0, y0, data.draw(st.integers(x0 + 1, width)), data.draw(st.integers(y0 + 1, height))])
    x0, y0, x1, y1 = missized_box(tight, error, convention, size, np.random.default_rng(seed))
    assert 0 <= x0 < x1 <= width
    assert 0 <= y0 < y1 <= height
    assert min(x1 - x0, y1 - y0) >= 1 - 1e-4


def test_a_box_that_grows_out_of_the_image_is_clipped() -> None:
    tight = np.array([0, 10, 60, 40], np.float32)
    rng = np.random.default_rng(0)
    found = {tuple(missized_box(tight, 0.5, "isotropic", (42, 64), rng).tolist()) for _ in range(30)}
    assert found == {(0, 2.5, 64, 42), (15, 17.5, 45, 32.5)}


def test_an_unknown_convention_is_named() -> None:
    with pytest.raises(ValueError, match="'corners' is unknown; choose from isotropic, sides"):
        missized_box(TIGHT, 0.1, "corners", SIZE, np.random.default_rng(0))


# ---------------------------------------------------------------------------------------------------------- of masks


def test_the_tight_box_by_hand() -> None:
    mask = np.zeros((6, 9), np.bool_)
    mask[1, 7] = mask[4, 2] = True
    box = tight_box(mask)
    assert box.dtype == np.float32
    assert box.tolist() == [2, 1, 8, 5]
    assert tight_box(~np.zeros_like(mask)).tolist() == [0, 0, 9, 6]
    assert tight_box(np.zeros_like(mask)) is None


@given(st.data())
def test_the_tight_box_holds_the_mask_and_nothing_smaller_does(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(seeds))
    mask = rng.random((data.draw(st.integers(1, 12)), data.draw(st.integers(1, 12)))) < data.draw(st.floats(0, 1))
    box = tight_box(mask)
    if box is None:
        assert not mask.any()
        return
    x0, y0, x1, y1 = box.astype(int)
    assert mask[y0:y1, x0:x1].sum() == mask.sum()
    assert all(line.any() for line in (mask[y0, :], mask[y1 - 1, :], mask[:, x0], mask[:, x1 - 1]))


# ------------------------------------------------------------------------------------------------------- how they meet

small_boxes = st.builds(
    lambda x, y, w, h: np.array([x, y, x + w, y + h], np.float32),
    st.integers(0, 20), st.integers(0, 20), st.integers(1, 20), st.integers(1, 20),
)  # fmt: skip


@given(small_boxes, small_boxes)
def test_iou_is_that_of_the_pixels(box: NDArray, other: NDArray) -> None:
    masks = []
    for x0, y0, x1, y1 in (box.astype(int), other.astype(int)):
        masks.append(np.zeros((40, 40), np.bool_))
        masks[-1][y0:y1, x0:x1] = True
    expected = (masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum()
    assert box_iou(box, other) == pytest.approx(expected, abs=1e-12)
    assert box_iou(box, other) == box_iou(other, box)
    assert box_iou(box, box) == 1.0


def test_iou_of_an_isotropic_error_by_hand() -> None:
    """A box 1 + e times as large, or 1 - e, about the same centre."""
    rng = np.random.default_rng(0)
    found = {round(box_iou(TIGHT, missized_box(TIGHT, 0.4, "isotropic", SIZE, rng)), 6) for _ in range(30)}
    assert found == {round(1 / 1.4**2, 6), round(0.6**2, 6)}
