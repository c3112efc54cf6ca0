"""Geometry: cells, clicks, boxes, views and maps are in one frame. Pure functions, no model."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sam_gym._utils.boxes import clip_box, noisy_box
from sam_gym.envs import observations
from sam_gym.envs.episode import (
    BoxActions,
    Episodes,
    GridActions,
    PointActions,
    in_view,
    view_of,
)
from sam_gym.envs.prompt import PromptSettings
from sam_gym.sam import ImageEmbedding

MAP = observations.MAP_SIZE
ROW = np.zeros(1, np.intp)

sizes = st.tuples(st.integers(1, 700), st.integers(1, 700))


@st.composite
def image_and_box(draw: st.DrawFn, smallest: int = 1) -> tuple[tuple[int, int], NDArray[np.float32]]:
    """An image's size, and the tight box of an object of at least one pixel in it."""
    height, width = draw(sizes.filter(lambda size: min(size) >= smallest))
    x0, y0 = draw(st.integers(0, width - smallest)), draw(st.integers(0, height - smallest))
    x1, y1 = draw(st.integers(x0 + smallest, width)), draw(st.integers(y0 + smallest, height))
    return (height, width), np.array([x0, y0, x1, y1], np.float32)


def one_episode(size: tuple[int, int], cue: NDArray, grid: int = 16, max_prompts: int = 5) -> Episodes:
    episodes = Episodes.blank(1, max_prompts, grid)
    episodes.image_size[0] = size
    episodes.cue[0] = episodes.box[0] = cue
    episodes.view[0] = view_of(np.asarray(cue, np.float32), 1.7)
    return episodes


# ------------------------------------------------------------------------------------------------- boxes and views


@given(image_and_box(), st.floats(0, 0.45), st.integers(0, 2**32))
def test_noisy_boxes_stay_near_the_object_and_in_the_image(
    case: tuple[tuple[int, int], NDArray], noise: float, seed: int
) -> None:
    (height, width), tight = case
    box = noisy_box(tight, noise, (height, width), np.random.default_rng(seed))
    x0, y0, x1, y1 = box
    assert box.dtype == np.float32
    assert 0 <= x0 < x1 <= width
    assert 0 <= y0 < y1 <= height
    assert min(x1 - x0, y1 - y0) >= 1 - 1e-4
    extent = np.tile(tight[2:] - tight[:2], 2)
    moved = np.abs(box - tight)
    assert (moved <= np.maximum(noise * extent, 1) + 1e-3).all()  # a pixel more where it had to be widened


@given(image_and_box())
def test_without_noise_the_cue_is_the_tight_box(case: tuple[tuple[int, int], NDArray]) -> None:
    size, tight = case
    np.testing.assert_array_equal(noisy_box(tight, 0.0, size, np.random.default_rng(0)), tight)


def test_noise_is_uniform_on_each_side() -> None:
    rng = np.random.default_rng(0)
    tight = np.array([200, 100, 300, 140], np.float32)
    boxes = np.array([noisy_box(tight, 0.2, (400, 500), rng) for _ in range(4000)])
    moved = (boxes - tight) / (100, 40, 100, 40)
    np.testing.assert_allclose(moved.mean(axis=0), 0, atol=0.01)
    np.testing.assert_allclose(moved.std(axis=0), 0.4 / np.sqrt(12), rtol=0.05)
    np.testing.assert_allclose(np.abs(moved).max(axis=0), 0.2, rtol=0.01)
    assert np.abs(np.corrcoef(moved.T) - np.eye(4)).max() < 0.06


@given(sizes, st.lists(st.floats(-1000, 2000), min_size=4, max_size=4))
def test_clipped_boxes_are_boxes(size: tuple[int, int], corners: list[float]) -> None:
    height, width = size
    x0, y0, x1, y1 = clip_box(np.array(corners), size)
    assert 0 <= x0 < x1 <= width
    assert 0 <= y0 < y1 <= height
    swapped = [corners[2], corners[1], corners[0], corners[3]]
    np.testing.assert_array_equal(clip_box(np.array(swapped), size), (x0, y0, x1, y1))


@given(image_and_box(), st.floats(1, 20))
def test_views_are_squares_around_the_cue(case: tuple[tuple[int, int], NDArray], scale: float) -> None:
    _, cue = case
    left, top, side = (float(v) for v in view_of(cue, scale))
    assert side == pytest.approx(scale * max(cue[2] - cue[0], cue[3] - cue[1]), rel=1e-5)
    centre = (cue[:2] + cue[2:]) / 2
    assert (left + side / 2, top + side / 2) == pytest.approx(tuple(centre), abs=0.01)
    assert left <= cue[0] + 0.01
    assert top + side >= cue[3] - 0.01


# ---------------------------------------------------------------------------------------------- actions and clicks


@given(image_and_box(), st.sampled_from([2, 7, 16, 32]), st.data())
def test_clicks_fall_into_the_cell_they_name(
    case: tuple[tuple[int, int], NDArray], grid: int, data: st.DataObject
) -> None:
    size, cue = case
    episodes = one_episode(size, cue, grid)
    actions = GridActions(grid)
    cell = data.draw(st.integers(0, grid * grid - 1))
    positive = data.draw(st.booleans())
    allowed = actions.masks(episodes)[0]
    actions.apply(episodes, ROW, np.array([cell if positive else cell + grid * grid]))
    x, y = episodes.points[0, 0] + 0.5  # from SAM's pixel centres to the continuous frame
    left, top, side = episodes.view[0]
    row, column = divmod(cell, grid)
    centre = left + (column + 0.5) / grid * side, top + (row + 0.5) / grid * side
    inside = 0 <= centre[0] < size[1] and 0 <= centre[1] < size[0]
    near_edge = min(abs(np.subtract(centre, 0)).min(), abs(np.subtract(centre, size[::-1])).min()) < 1e-2
    assert inside == allowed[cell] == allowed[cell + grid * grid] or near_edge
    # the centre itself, or the nearest pixel of the image
    assert x == pytest.approx(np.clip(centre[0], 0.5, size[1] - 0.5), abs=1e-2)
    assert y == pytest.approx(np.clip(centre[1], 0.5, size[0] - 0.5), abs=1e-2)
    assert episodes.labels[0].tolist() == [int(positive), -1, -1, -1, -1]
    assert episodes.prompts[0] == 1


def test_masks_forbid_used_cells_of_both_signs_and_never_stop() -> None:
    actions = GridActions(4)
    episodes = one_episode((100, 100), np.array([40, 40, 60, 60]), grid=4)
    assert actions.masks(episodes).all()
    actions.apply(episodes, ROW, np.array([5]))
    actions.apply(episodes, ROW, np.array([16 + 10]))
    assert np.flatnonzero(~actions.masks(episodes)[0]).tolist() == [5, 10, 16 + 5, 16 + 10]


def test_masks_forbid_cells_outside_the_image() -> None:
    episodes = one_episode((100, 100), np.array([0, 40, 20, 60]), grid=4)  # the view begins at x = -7, cells are 8.5
    forbidden = ~GridActions(4).masks(episodes)[0, :16].reshape(4, 4)
    assert forbidden[:, 0].all()  # centres at x = -2.75
    assert not forbidden[:, 1:].any()


@given(st.lists(st.integers(0, 32), min_size=1, max_size=5))
def test_prompts_and_stops_are_counted(actions: list[int]) -> None:
    episodes = one_episode((50, 50), np.array([10, 10, 30, 30]), grid=4)
    mode = GridActions(4)
    for action in actions:
        mode.apply(episodes, ROW, np.array([action]))
    assert episodes.prompts[0] == sum(action != mode.stop for action in actions)
    assert episodes.stopped[0] == (mode.stop in actions)
    assert episodes.terminated[0] == (mode.stop in actions or len(actions) == 5)


@given(image_and_box(), st.lists(st.floats(-1, 1, width=32), min_size=4, max_size=4))
def test_point_actions(case: tuple[tuple[int, int], NDArray], values: list[float]) -> None:
    size, cue = case
    episodes = one_episode(size, cue)
    PointActions().apply(episodes, ROW, np.array([values], np.float32))
    x, y, label, stop = values
    assert episodes.stopped[0] == (stop > 0.5)
    assert episodes.prompts[0] == (not stop > 0.5)
    if stop <= 0.5:
        left, top, side = episodes.view[0]
        expected = np.clip((left + (x + 1) / 2 * side, top + (y + 1) / 2 * side), 0.5, (size[1] - 0.5, size[0] - 0.5))
        np.testing.assert_allclose(episodes.points[0, 0] + 0.5, expected, atol=1e-2)
        assert episodes.labels[0, 0] == (label >= 0)


@given(image_and_box(), st.lists(st.floats(-1, 1, width=32), min_size=5, max_size=5))
def test_box_actions(case: tuple[tuple[int, int], NDArray], values: list[float]) -> None:
    size, cue = case
    episodes = one_episode(size, cue)
    BoxActions().apply(episodes, ROW, np.array([values], np.float32))
    if values[4] > 0.5:
        np.testing.assert_array_equal(episodes.box[0], cue)
        return
    corners = in_view(episodes.view[0], (np.array(values[:4], np.float32).reshape(2, 2) + 1) / 2).ravel()
    np.testing.assert_allclose(episodes.box[0], clip_box(corners, size), atol=1e-3)
    assert (episodes.labels == -1).all()
    assert episodes.prompts[0] == 1


def test_unknown_action_mode() -> None:
    with pytest.raises(ValueError, match="'clicks' is unknown; choose 'grid', 'point' or 'box'"):
        PromptSettings(action_mode="clicks").actions()


# ----------------------------------------------------------- all maps show the same place: ramps tell where they look


def embedding_of(size: tuple[int, int], features: NDArray) -> ImageEmbedding:
    """A stand-in for SAM's encoder, as ResizeLongestSide would place the image in an input frame of 256 px."""
    scale = 256 / max(size)
    input_size = (int(size[0] * scale + 0.5), int(size[1] * scale + 0.5))
    return ImageEmbedding("", torch.as_tensor(features, dtype=torch.float32), size, input_size)


def ramps(size: tuple[int, int], cells: int) -> NDArray[np.float64]:
    """(2, cells, cells): the image coordinates (x, y) of the centre of each cell of the model's input frame."""
    frame = embedding_of(size, np.zeros((1, 1, 1)))
    centres = (np.arange(cells) + 0.5) / cells * 256
    x, y = centres * size[1] / frame.input_size[1], centres * size[0] / frame.input_size[0]
    return np.stack(np.broadcast_arrays(x[None, :], y[:, None]))


def centres_in_view(view: NDArray, cells: int) -> tuple[NDArray, NDArray]:
    """Image coordinates x (1, cells) and y (cells, 1) of the centres of a grid over the view."""
    middle = (np.arange(cells) + 0.5) / cells * float(view[2])
    return (float(view[0]) + middle)[None], (float(view[1]) + middle)[:, None]


def well_inside(x: NDArray, y: NDArray, size: tuple[int, int], margin: float) -> NDArray[np.bool_]:
    return (x > margin) & (x < size[1] - margin) & (y > margin) & (y < size[0] - margin)


class Scene(NamedTuple):
    image_map: NDArray[np.uint8]
    cue_map: NDArray[np.uint8]
    embedding: NDArray[np.float32]
    sampling: observations.Sampling


def scene_of(
    image: NDArray[np.uint8], embedding: ImageEmbedding, view: NDArray[np.float32], cue: NDArray, grid: int
) -> Scene:
    return Scene(
        *observations.scene_maps(image, view, cue),
        observations.embedding_map(embedding, view, grid).numpy(),
        observations.sampling_of(view, embedding),
    )


@settings(max_examples=60)
@given(image_and_box(smallest=6), st.sampled_from([4, 16, 32]))
def test_maps_are_aligned(case: tuple[tuple[int, int], NDArray], grid: int) -> None:
    """Where the image map, the mask map, the cue map and the embedding say they look is where they look."""
    size, cue = case
    assume(max(size) / min(size) < 8)  # thinner than that, rounding the input frame's size distorts it
    view = view_of(cue, 1.7)
    # each pixel of the image holds its own coordinate, as far as 8 bits go
    step = max(1.0, max(size) / 255)
    across = np.broadcast_to((np.arange(size[1]) / step)[None], size)
    down = np.broadcast_to((np.arange(size[0]) / step)[:, None], size)
    image = np.stack([across, down, np.full(size, 200.0)], axis=-1).round().astype(np.uint8)
    scene = scene_of(image, embedding_of(size, ramps(size, 16)), view, cue, grid)

    x, y = centres_in_view(view, MAP)
    outside = (x < -1 - view[2] / MAP) | (x > size[1] + 1 + view[2] / MAP)
    assert (scene.image_map[2][np.broadcast_to(outside, (MAP, MAP))] == 0).all()
    inside = well_inside(x, y, size, 1 + float(view[2]) / MAP)
    for channel, expected in zip(scene.image_map[:2], ((x - 0.5) / step, (y - 0.5) / step), strict=True):
        difference = np.abs(channel - np.broadcast_to(expected, (MAP, MAP)))[inside]
        assert difference.max(initial=0) <= 1.5

    in_cue = (x >= cue[0]) & (x < cue[2]) & (y >= cue[1]) & (y < cue[3])
    np.testing.assert_array_equal(scene.cue_map, in_cue * np.uint8(255))

    x, y = centres_in_view(view, grid)
    cell = max(size) / 16  # side of one feature in image pixels
    inside = well_inside(x, y, size, cell / 2 + float(view[2]) / grid)
    for channel, expected in zip(scene.embedding, (x, y), strict=True):
        difference = np.abs(channel - np.broadcast_to(expected, (grid, grid)))[inside]
        assert difference.max(initial=0) <= 0.01 * cell + 1e-3
    beyond = well_inside(x, y, size, -float(view[2]) / grid)
    assert (scene.embedding[:, ~beyond] == 0).all()

    # logits that rise by one every two map pixels, zero in the middle of the cue
    slope = 32 / float(view[2])
    middle = (cue[:2] + cue[2:]) / 2
    low = (ramps(size, 64) - middle[:, None, None]) * slope
    x, y = centres_in_view(view, MAP)
    inside = well_inside(x, y, size, max(size) / 64 / 2)
    for logits, expected in zip(low, ((x - middle[0]) * slope, (y - middle[1]) * slope), strict=True):
        got = observations.mask_maps(torch.as_tensor(logits, dtype=torch.float32)[None], scene.sampling)[0]
        probability = np.broadcast_to(255 / (1 + np.exp(-expected)), (MAP, MAP))
        assert np.abs(got - probability)[inside].max(initial=0) <= 1
        assert (got[~well_inside(x, y, size, 0) & ~well_inside(x, y, size, -1e-3)] == 0).all()


@given(image_and_box())
def test_features_reach_to_the_image_border_undimmed(case: tuple[tuple[int, int], NDArray]) -> None:
    size, cue = case
    view = view_of(cue, 1.7)
    scene = scene_of(np.zeros((*size, 3), np.uint8), embedding_of(size, np.ones((1, 16, 16))), view, cue, 8)
    x, y = centres_in_view(view, 16)
    inside = well_inside(x, y, size, 0).reshape(8, 2, 8, 2).mean(axis=(1, 3))
    edges = np.abs(np.concatenate([x.ravel(), x.ravel() - size[1], y.ravel(), y.ravel() - size[0]])).min()
    assume(edges > 1e-3)
    np.testing.assert_allclose(scene.embedding[0], inside, atol=1e-5)


@given(st.sampled_from([2, 4, 8, 16, 32]), st.data())
def test_point_maps_mark_the_cell_that_was_clicked(grid: int, data: st.DataObject) -> None:
    size = (300, 200)
    episodes = one_episode(size, np.array([50, 100, 150, 180]), grid)
    cells = data.draw(st.lists(st.integers(0, 2 * grid * grid - 1), min_size=1, max_size=5, unique=True))
    allowed = GridActions(grid).masks(episodes)[0]
    expected = np.zeros((2, grid, grid), np.uint8)
    for action in cells:
        assume(allowed[action])
        GridActions(grid).apply(episodes, ROW, np.array([action]))
        sign, cell = divmod(action, grid * grid)
        expected[sign].flat[cell] = 255
    maps = observations.point_maps(episodes.points[0], episodes.labels[0], episodes.view[0], grid)
    np.testing.assert_array_equal(maps, expected.repeat(MAP // grid, axis=1).repeat(MAP // grid, axis=2))


@pytest.mark.parametrize("cue", [(0, 0, 1, 1), (511, 511, 512, 512), (0, 300, 1, 301), (0, 0, 512, 512)])
def test_extreme_objects_give_finite_observations(cue: Any) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(1, 256, (512, 512, 3), dtype=np.uint8)
    box = np.array(cue, np.float32)
    scene = scene_of(image, embedding_of((512, 512), rng.normal(size=(4, 16, 16))), view_of(box, 1.7), box, 16)
    assert np.isfinite(scene.embedding).all()
    assert scene.image_map.any()
    assert scene.cue_map.any()
    assert observations.mask_maps(torch.full((1, 64, 64), 20.0), scene.sampling).max() == 255
