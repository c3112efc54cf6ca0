"""PromptBatch: what goes in comes out in its place, and what makes no sense is refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sam_gym.sam import PromptBatch
from sam_gym.sam.prompts import ABSENT

coordinate = st.floats(-50, 2000, width=32)
point = st.tuples(coordinate, coordinate)
corner_and_size = st.tuples(coordinate, coordinate, st.floats(0, 500), st.floats(0, 500))
row = st.tuples(
    st.lists(st.tuples(point, st.integers(0, 1)), max_size=6),
    st.none() | corner_and_size.map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])),
    st.booleans(),
)


@given(st.lists(row, max_size=6))
def test_lists_become_padded_arrays(rows: list) -> None:
    masks = [torch.full((4, 4), float(i + 1)) if with_mask else None for i, (_, _, with_mask) in enumerate(rows)]
    batch = PromptBatch.from_lists(
        points=[[xy for xy, _ in clicks] for clicks, _, _ in rows],
        labels=[[label for _, label in clicks] for clicks, _, _ in rows],
        boxes=[box for _, box, _ in rows],
        mask_logits=masks,
    )
    assert len(batch) == len(rows)
    assert (batch.points.dtype, batch.labels.dtype, batch.boxes.dtype) == (np.float32, np.int8, np.float32)
    assert batch.labels.shape[1] == max((len(clicks) for clicks, _, _ in rows), default=0)
    for i, (clicks, box, with_mask) in enumerate(rows):
        k = len(clicks)
        assert batch.labels[i, :k].tolist() == [label for _, label in clicks]
        assert (batch.labels[i, k:] == ABSENT).all()
        np.testing.assert_array_equal(batch.points[i, :k], np.array([xy for xy, _ in clicks]).reshape(-1, 2))
        assert batch.has_box[i] == (box is not None)
        if box is not None:
            np.testing.assert_array_equal(batch.boxes[i], np.float32(box))
        assert batch.has_mask[i] == with_mask
        if with_mask:
            assert (batch.mask_logits[i] == i + 1).all()


def test_no_lists_given_are_absent_prompts() -> None:
    batch = PromptBatch.from_lists(points=[[(3, 4)], None], labels=[[1], None])
    assert batch.labels.tolist() == [[1], [ABSENT]]
    assert not batch.has_box.any()
    assert batch.mask_logits is None


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({}, "one common length"),
        ({"points": [None], "boxes": [None, None]}, r"one common length, got \[1, 2\]"),
        ({"points": [[(1, 2)]]}, "mask 0 has 1 points and 0 labels"),
        ({"points": [None, [(1, 2)]], "labels": [None, [1, 0]]}, "mask 1 has 1 points and 2 labels"),
        ({"points": [[(1, 2)]], "labels": [[-1]]}, r"mask 0 has labels other than 1 .*\[-1\]"),
        ({"points": [[(1, 2)]], "labels": [[0.5]]}, "mask 0 has labels other than 1"),
        ({"points": [[(1, 2, 3), (4, 5, 6)]], "labels": [[1, 1, 1]]}, r"mask 0 has points of shape \(2, 3\)"),
        ({"points": [[(np.nan, 2)]], "labels": [[1]]}, "points holds NaN or infinity"),
        ({"points": [[(np.inf, 2)]], "labels": [[0]]}, "points holds NaN or infinity"),
        ({"boxes": [None, (0, 0, np.nan, 3)]}, "boxes holds a row that is partly NaN"),
        ({"boxes": [(0, 0, np.inf, 3)]}, "boxes holds a row that is partly NaN or infinite"),
        ({"boxes": [(5, 0, 4, 3)]}, "x1 < x0"),
        ({"boxes": [(0, 3, 4, 2)]}, "y1 < y0"),
        ({"boxes": [(0, 0, 4)]}, "box 0 has shape"),
        ({"boxes": [None, (5,)]}, "box 1 has shape"),
        ({"mask_logits": [torch.zeros(4, 4), torch.zeros(8, 8)]}, "mask_logits .*one shape"),
    ],
)
def test_nonsense_lists_are_refused(lists: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PromptBatch.from_lists(**lists)


def arrays(**changes: Any) -> dict[str, Any]:
    """Arguments of a batch of two: a click and a box, and a box alone."""
    good = {
        "points": np.zeros((2, 1, 2), np.float32),
        "labels": np.array([[1], [ABSENT]], np.int8),
        "boxes": np.array([[0, 0, 5, 5], [1, 1, 1, 1]], np.float32),
        "mask_logits": None,
        "has_mask": np.zeros(2, np.bool_),
    }
    return good | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"points": np.zeros((2, 2, 2), np.float32)}, r"points has shape \(2, 2, 2\), expected \(2, 1, 2\)"),
        ({"boxes": np.zeros((1, 4), np.float32)}, r"boxes has shape \(1, 4\), expected \(2, 4\)"),
        ({"has_mask": np.zeros(3, np.bool_)}, r"has_mask has shape \(3,\), expected \(2,\)"),
        ({"labels": np.array([[2], [0]], np.int8)}, "labels holds other values"),
        ({"has_mask": np.array([True, False])}, "has_mask is set, but mask_logits"),
        (
            {"has_mask": np.array([True, False]), "mask_logits": torch.zeros(1, 4, 4)},
            "has_mask is set, but mask_logits",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PromptBatch(**arrays(**changes))


def test_what_pads_a_row_may_hold_anything() -> None:
    points = np.array([[[1, 2]], [[np.nan, np.inf]]], np.float32)
    batch = PromptBatch(**arrays(points=points, boxes=np.full((2, 4), np.nan, np.float32)))
    assert batch.has_box.tolist() == [False, False]
