"""Pictures: what is drawn is where it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from sam_gym.envs import rendering
from sam_gym.envs.rendering import CAPTION, MARGIN, SIZE, film_strip

MakeEnv = Callable[..., gymnasium.Env]


@pytest.fixture
def env(make_env: MakeEnv) -> gymnasium.Env:
    return make_env(render_mode="rgb_array")


def inside_object(env: gymnasium.Env) -> NDArray[np.float64]:
    """(448, 448) for each pixel of the picture: how far inside the truth it lies (< 0 outside), in picture pixels."""
    engine = env.unwrapped.engine
    left, top, side = (float(v) for v in engine.episodes.view[0])
    scale = side * MARGIN / SIZE
    at = (np.arange(SIZE) + 0.5) * scale
    x = np.floor(left - side * (MARGIN - 1) / 2 + at).astype(int)
    y = np.floor(top - side * (MARGIN - 1) / 2 + at).astype(int)
    truth = np.pad(engine.truth(0), 1)  # nothing beyond the image
    height, width = truth.shape
    sampled = truth[np.clip(y + 1, 0, height - 1)][:, np.clip(x + 1, 0, width - 1)]
    return ndimage.distance_transform_edt(sampled) - ndimage.distance_transform_edt(~sampled)


def has_colour(frame: NDArray[np.uint8], colour: tuple[int, int, int]) -> NDArray[np.bool_]:
    return (frame[CAPTION:] == colour).all(axis=-1)


def test_shape_and_dtype(env: gymnasium.Env, make_env: MakeEnv) -> None:
    env.reset(seed=0)
    frame = env.render()
    assert frame.shape == (512, 448, 3)
    assert frame.dtype == np.uint8
    silent = make_env().unwrapped
    silent.reset(seed=0)
    assert silent.render() is None


def test_equal_episodes_are_equal_pictures(env: gymnasium.Env, make_env: MakeEnv) -> None:
    twin = make_env(render_mode="rgb_array")
    for each in (env, twin):
        each.reset(seed=3)
        each.step(100)
    first = env.render()
    np.testing.assert_array_equal(first, env.render())
    np.testing.assert_array_equal(first, twin.render())


def test_rendering_changes_nothing(env: gymnasium.Env, make_env: MakeEnv, same: Callable[[Any, Any], None]) -> None:
    twin = make_env()
    env.reset(seed=3)
    twin.reset(seed=3)
    env.render()
    same(env.step(100), twin.step(100))


def test_every_step_is_seen(env: gymnasium.Env) -> None:
    env.reset(seed=0)
    frames = [env.render()]
    for action in (100, 130 + 256, 512):
        env.step(action)
        frames.append(env.render())
    for i, one in enumerate(frames):
        assert not any((one == other).all() for other in frames[:i])


@pytest.mark.parametrize("seed", range(4))
def test_the_truth_is_outlined(env: gymnasium.Env, seed: int) -> None:
    env.reset(seed=seed)
    depth = inside_object(env)
    yellow = has_colour(env.render(), rendering.TRUTH)
    assert yellow.any()
    scale = SIZE / (MARGIN * float(env.unwrapped.engine.episodes.view[0, 2]))  # picture pixels per image pixel
    assert np.abs(depth[yellow]).max() <= 4 + scale  # all of it on the rim, and inside
    rim = (depth > 0) & (depth <= 1.5)
    near = ndimage.binary_dilation(yellow, iterations=int(np.ceil(scale)) + 2)
    assert near[rim].mean() > 0.9  # and (nearly) all of the rim; the cue box is drawn over a little of it


def test_clicks_are_drawn_where_they_are(env: gymnasium.Env) -> None:
    env.reset(seed=0)
    allowed = np.flatnonzero(env.unwrapped.action_masks()[:256])
    for cell, colour, offset in ((allowed[20], rendering.POSITIVE, 0), (allowed[-20], rendering.NEGATIVE, 256)):
        assert not has_colour(env.render(), colour).any()
        env.step(cell + offset)
        y, x = np.nonzero(has_colour(env.render(), colour))
        row, column = divmod(int(cell), 16)
        expected = [((i + 0.5) / 16 / MARGIN + (1 - 1 / MARGIN) / 2) * SIZE for i in (column, row)]
        assert [x.mean(), y.mean()] == pytest.approx(expected, abs=1.5)


def test_the_mask_is_blue(env: gymnasium.Env, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the truth itself for a mask, the inside of the object is bluer than its surroundings were."""
    env.reset(seed=1)
    engine = env.unwrapped.engine
    depth = inside_object(env)
    monkeypatch.setattr(engine, "mask", lambda _row: np.zeros_like(engine.truth(0)))
    without = env.render()[CAPTION:].astype(int)
    monkeypatch.setattr(engine, "mask", engine.truth)
    with_mask = env.render()[CAPTION:].astype(int)
    tinted = (without != with_mask).any(axis=-1)
    assert tinted[depth > 8].mean() > 0.95
    assert not tinted[depth < -8].any()
    gained = with_mask - without
    assert (gained[..., 2] - gained[..., 0])[depth > 8].mean() > 20


@pytest.mark.parametrize("cue", [(0, 0, 20, 20), (492, 500, 512, 512), (0, 200, 3, 330), (0, 0, 512, 512)])
@pytest.mark.real_images
def test_views_that_leave_the_image_are_black_there(env: gymnasium.Env, cue: tuple) -> None:
    env.reset(seed=0, options={"image": 0, "cue": cue})
    frame = env.render()
    assert frame.shape == (512, 448, 3)
    left, top, side = (float(v) for v in env.unwrapped.engine.episodes.view[0])
    at = (np.arange(SIZE) + 0.5) * side * MARGIN / SIZE - side * (MARGIN - 1) / 2
    outside = (top + at < -1)[:, None] | (left + at < -1) | (top + at > 513)[:, None] | (left + at > 513)
    picture = frame[CAPTION:]
    drawn = (picture[outside] != 0).any(axis=-1)
    assert outside.any()
    assert drawn.mean() < 0.1
    lines = {tuple(colour) for colour in np.unique(picture[outside][drawn], axis=0).tolist()}
    assert lines <= {rendering.CUE, (120, 120, 125)}  # the cue box and the view's border
    assert picture[~outside].mean() > 30


def test_film_strip() -> None:
    frames = [np.full((4, 3, 3), value, np.uint8) for value in (50, 100, 150)]
    sheet = film_strip(frames, columns=2, gap=1)
    assert sheet.shape == (11, 9, 3)
    assert (sheet[1:5, 1:4] == 50).all()
    assert (sheet[1:5, 5:8] == 100).all()
    assert (sheet[6:10, 1:4] == 150).all()
    assert (sheet[6:10, 5:8] == rendering.PAPER).all()
