"""What SamBoxRefine's actions do to a box, on episodes alone: no SAM, no environment."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sam_gym._utils.boxes import clip_box
from sam_gym.envs.box_refine import SideMoves, SideSteps
from sam_gym.envs.episode import Episodes

REBOX, STOP = 8, 9
STILL = np.zeros(4, np.float32)
ROW = np.zeros(1, np.intp)
BOX = (100, 50, 200, 90)  # 100 px wide, 40 high, in an image of 200 x 300 px

sides = st.lists(st.floats(-1, 1, width=32), min_size=4, max_size=4)


def one_episode(box: Any = BOX, size: tuple[int, int] = (200, 300), mask_box: Any = None) -> Episodes:
    episodes = Episodes.blank(1, 5, 16)
    episodes.image_size[0] = size
    episodes.cue[0] = episodes.box[0] = episodes.last_box[0] = box
    if mask_box is not None:
        episodes.mask_box[0] = mask_box
    return episodes


def after(mode: SideMoves | SideSteps, action: Any, episodes: Episodes | None = None) -> list[float]:
    episodes = episodes or one_episode()
    mode.apply(episodes, ROW, np.array([action]))
    return episodes.box[0].tolist()


# ------------------------------------------------------------------------------------------------- continuous actions


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        ((1, 0, 0, 0), (60, 50, 200, 90)),  # out by 0.4 of the width
        ((0, 1, 0, 0), (100, 34, 200, 90)),  # and of the height
        ((0, 0, 1, 0), (100, 50, 240, 90)),
        ((0, 0, 0, 1), (100, 50, 200, 106)),
        ((-0.5, -0.5, -0.5, -0.5), (120, 58, 180, 82)),
        ((1, -0.5, 0.25, 0.06), (60, 58, 210, 90.96)),
        ((-1, 0, -1, 0), (140, 50, 160, 90)),  # both sides to where a fifth is left
    ],
)
def test_moves_are_shares_of_the_extent_outward(action: tuple, expected: tuple) -> None:
    assert after(SideMoves(), action) == pytest.approx(expected, abs=1e-4)


@given(sides, st.tuples(st.integers(0, 250), st.integers(0, 150), st.integers(1, 50), st.integers(1, 50)))
def test_moved_boxes_stay_boxes_in_the_image(action: list[float], at: tuple[int, int, int, int]) -> None:
    x, y, w, h = at
    episodes = one_episode((x, y, x + w, y + h))
    x0, y0, x1, y1 = after(SideMoves(), action, episodes)
    assert 0 <= x0 < x1 <= 300
    assert 0 <= y0 < y1 <= 200
    assert min(x1 - x0, y1 - y0) >= 1 - 1e-4
    stopped = max(map(abs, action)) <= np.float32(0.05)
    assert bool(episodes.stopped[0]) == stopped
    assert episodes.prompts[0] == (not stopped)
    assert episodes.last_box[0].tolist() == [x, y, x + w, y + h]


def test_boxes_are_clipped_at_the_border() -> None:
    assert after(SideMoves(), (1, 1, 1, 1), one_episode((10, 5, 290, 190))) == [0, 0, 300, 200]
    assert after(SideMoves(), (-1, -1, -1, -1), one_episode((10, 5, 12, 7))) == pytest.approx((10.8, 5.8, 11.8, 6.8))


@pytest.mark.parametrize("action", [STILL, np.full(4, 0.05), np.array([0.05, -0.05, 0.0, 0.01])])
def test_keeping_still_says_stop(action: NDArray) -> None:
    episodes = one_episode()
    assert after(SideMoves(), action, episodes) == list(BOX)
    assert (episodes.stopped[0], episodes.prompts[0], episodes.terminated[0]) == (True, 0, True)


@pytest.mark.parametrize("side", range(4))
@pytest.mark.parametrize("sign", [-1, 1])
def test_one_side_that_moves_is_a_move(side: int, sign: int) -> None:
    episodes, action = one_episode(), np.zeros(4)
    action[side] = sign * 0.06
    assert after(SideMoves(), action, episodes) != list(BOX)
    assert (episodes.stopped[0], episodes.prompts[0]) == (False, 1)


@given(st.tuples(st.integers(40, 110), st.integers(40, 60), st.integers(20, 70), st.integers(20, 70)), sides)
def test_toward_gives_the_action_that_made_a_box(at: tuple[int, int, int, int], action: list[float]) -> None:
    x, y, w, h = at
    box = np.array([[x, y, x + w, y + h]], np.float32)
    episodes = one_episode(box[0], (400, 400))
    episodes.stopped[0] = False
    SideMoves().apply(episodes, ROW, np.array([action], np.float32))
    found = SideMoves().toward(box, episodes.box)[0]
    expected = np.where(episodes.stopped[0], 0, np.array(action, np.float32))
    np.testing.assert_allclose(found, expected, atol=1e-3)
    far = SideMoves().toward(box, box + np.float32([-300, 300, 300, -300]))[0]
    assert far.tolist() == [1, -1, 1, -1]


# --------------------------------------------------------------------------------------------------- discrete actions


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        (0, (90, 50, 200, 90)),
        (1, (100, 46, 200, 90)),
        (2, (100, 50, 210, 90)),
        (3, (100, 50, 200, 94)),
        (4, (110, 50, 200, 90)),
        (5, (100, 54, 200, 90)),
        (6, (100, 50, 190, 90)),
        (7, (100, 50, 200, 86)),
        (REBOX, (30, 20, 44, 61)),
        (STOP, BOX),
    ],
)
def test_steps_of_sides(action: int, expected: tuple) -> None:
    episodes = one_episode(mask_box=(30, 20, 44, 61))
    assert after(SideSteps(), action, episodes) == pytest.approx(expected, abs=1e-4)
    assert episodes.stopped[0] == (action == STOP)
    assert episodes.prompts[0] == (action != STOP)


def test_steps_are_clipped_at_the_border() -> None:
    near = (3, 2, 290, 199)
    assert [after(SideSteps(), side, one_episode(near))[side] for side in range(4)] == [0, 0, 300, 200]
    assert after(SideSteps(), 4, one_episode((7, 7, 8, 8))) == pytest.approx((7.1, 7, 8.1, 8))  # a pixel is the least


def test_re_boxing_an_empty_mask_goes_back() -> None:
    episodes = one_episode()
    assert after(SideSteps(), REBOX, episodes) == list(BOX)  # there was no other box
    moved = after(SideSteps(), 0, episodes)
    assert after(SideSteps(), REBOX, episodes) == list(BOX)
    assert after(SideSteps(), REBOX, episodes) == moved
    assert episodes.prompts[0] == 4


@st.composite
def some_episode(draw: st.DrawFn) -> Episodes:
    """A box in a small image, often at its border or a pixel small; its mask is empty, its own box, or another."""
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    corners = st.lists(st.floats(-10, 50, width=32), min_size=4, max_size=4)
    episodes = one_episode((0, 0, 1, 1), (height, width))
    episodes.last_box[0], episodes.box[0] = (clip_box(np.array(draw(corners)), (height, width)) for _ in range(2))
    kind = draw(st.sampled_from(["empty", "own", "other"]))
    if kind != "empty":
        episodes.mask_box[0] = episodes.box[0] if kind == "own" else clip_box(np.array(draw(corners)), (height, width))
    if draw(st.booleans()):
        episodes.last_box[0] = episodes.box[0]
    return episodes


@given(some_episode())
def test_masks_forbid_exactly_what_changes_nothing(episodes: Episodes) -> None:
    mode = SideSteps()
    allowed = mode.masks(episodes)
    assert allowed.shape == (1, 10)
    assert allowed[0, STOP]
    for action in range(9):
        trial = copy.deepcopy(episodes)
        mode.apply(trial, ROW, np.array([action]))
        assert allowed[0, action] == (trial.box[0] != episodes.box[0]).any(), action


def test_masks_of_several_episodes_are_their_own() -> None:
    rows = [one_episode((0, 0, 300, 200)), one_episode(mask_box=BOX), one_episode(mask_box=(1, 2, 3, 4))]
    together = Episodes.blank(3, 5, 16)
    for i, one in enumerate(rows):
        together.put(np.array([i]), one)
    masks = SideSteps().masks(together)
    np.testing.assert_array_equal(masks, [SideSteps().masks(one)[0] for one in rows])
    assert [np.flatnonzero(~row).tolist() for row in masks] == [[0, 1, 2, 3, REBOX], [REBOX], []]
