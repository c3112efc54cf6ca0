"""SamBoxRefine: where an episode begins and ends, and what is seen of it; its actions are in test_box_actions.py."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ResetNeeded
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from sam_gym._utils.boxes import tight_box
from sam_gym.envs import SamBoxRefineEnv, SamBoxRefineVectorEnv
from sam_gym.envs.box_refine import BoxRefineSettings
from sam_gym.envs.episode import view_of
from sam_gym.envs.rendering import BOX as BOX_COLOUR
from sam_gym.envs.rendering import CAPTION, CUE
from sam_gym.sam import PromptBatch, get_backend

ENV_ID = "SamBoxRefine-ISBI-v0"
REBOX, STOP = 8, 9
STILL = np.zeros(4, np.float32)

MakeEnv = Callable[..., gymnasium.Env]
Same = Callable[[Any, Any], None]


@pytest.fixture
def make(make_env: MakeEnv) -> MakeEnv:
    return lambda **settings: make_env(ENV_ID, **settings).unwrapped


def play(env: gymnasium.Env, actions: list, **reset: Any) -> list:
    return [env.reset(**{"seed": 0, **reset}), *(env.step(action) for action in actions)]


@pytest.mark.parametrize(
    ("action_mode", "action"),
    [
        ("discrete", 10),
        ("discrete", -1),
        ("discrete", 3.0),
        ("discrete", True),
        ("discrete", None),
        ("continuous", [0.0, 0.0, 1.0]),
        ("continuous", [0.0, 0.0, 0.0, 1.01]),
        ("continuous", [float("nan"), 0.0, 0.0, 0.0]),
        ("continuous", 3),
    ],
)
def test_impossible_actions(make: MakeEnv, same: Same, action_mode: str, action: Any) -> None:
    """Refused with the action in the message, and without a trace."""
    env, twin = (make(action_mode=action_mode) for _ in range(2))
    env.reset(seed=0)
    twin.reset(seed=0)
    with pytest.raises(ValueError, match="action") as raised:
        env.step(action)
    assert str(action) in str(raised.value)
    sample = twin.action_space.sample()
    same(env.step(sample), twin.step(sample))


def test_action_masks_belong_to_discrete_actions(make: MakeEnv) -> None:
    env = make()
    env.reset(seed=0)
    with pytest.raises(ValueError, match="not for 'continuous'"):
        env.action_masks()


# ----------------------------------------------------------------------------------------------------------- episodes


@pytest.mark.real_images
def test_starting_state(make: MakeEnv) -> None:
    env = make()
    observation, info = env.reset(seed=0)
    assert observation in env.observation_space
    assert sorted(info) == ["dice", "image", "iou", "object", "prompts", "source"]
    assert (info["prompts"], info["source"]) == (0, "isbi2012")
    assert observation["state"][[0, 4]].tolist() == [1.0, 0.0]
    episodes = env.engine.episodes
    np.testing.assert_array_equal(episodes.box, episodes.cue)
    np.testing.assert_array_equal(episodes.view[0], view_of(episodes.cue[0], 2.4))


@pytest.mark.parametrize(("action_mode", "move"), [("continuous", np.full(4, 0.3, np.float32)), ("discrete", 4)])
def test_the_budget_terminates(make: MakeEnv, action_mode: str, move: Any) -> None:
    env = make(action_mode=action_mode, max_prompts=3)
    said = play(env, [move] * 3)
    assert [step[2:4] for step in said[1:]] == [(False, False), (False, False), (True, False)]
    np.testing.assert_allclose([reply[0]["state"][0] for reply in said], [1, 2 / 3, 1 / 3, 0], atol=1e-6)
    assert [reply[-1]["prompts"] for reply in said] == [0, 1, 2, 3]
    with pytest.raises(ResetNeeded):
        env.step(move)


@pytest.mark.parametrize(
    ("action_mode", "move", "stop"),
    [("continuous", np.full(4, 0.3, np.float32), STILL), ("discrete", 4, STOP)],
)
def test_stop_terminates_and_changes_no_mask(make: MakeEnv, action_mode: str, move: Any, stop: Any) -> None:
    env = make(action_mode=action_mode, prompt_cost=0.5)
    env.reset(seed=0)
    moved = env.step(move)
    calls = env.engine.backend.decoder_calls
    observation, reward, terminated, truncated, info = env.step(stop)
    assert (reward, terminated, truncated) == (0.0, True, False)  # stopping is no prompt and costs nothing
    assert info == moved[-1]
    np.testing.assert_array_equal(observation["maps"], moved[0]["maps"])
    assert env.engine.backend.decoder_calls == calls


@pytest.mark.parametrize("reward", ["iou", "dice"])
@pytest.mark.parametrize("action_mode", ["continuous", "discrete"])
def test_rewards_sum_to_what_was_gained(make: MakeEnv, reward: str, action_mode: str) -> None:
    env = make(action_mode=action_mode, reward=reward)
    rng = np.random.default_rng(0)
    actions = list(rng.uniform(-1, 1, (5, 4)).astype(np.float32)) if action_mode == "continuous" else [0, 5, 2, 8, 7]
    first, *steps = play(env, actions, seed=3)
    assert sum(step[1] for step in steps) == pytest.approx(steps[-1][-1][reward] - first[-1][reward], abs=1e-12)
    assert any(step[1] != 0 for step in steps)
    assert all(type(step[1]) is float for step in steps)
    assert steps[-1][2]


def test_prompts_cost_and_boxes_hit_nothing(make: MakeEnv) -> None:
    free, dear = (play(make(action_mode="discrete", prompt_cost=c), [0, 5, STOP], seed=3) for c in (0.0, 0.25))
    difference = [a[1] - b[1] for a, b in zip(free[1:], dear[1:], strict=True)]
    assert difference == pytest.approx([0.25, 0.25, 0.0])
    assert [step[1] for step in play(make(action_mode="discrete", reward="hit"), [0, 5, REBOX])[1:]] == [0.0] * 3


def test_sam_is_prompted_with_the_box_alone(make: MakeEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    env = make(action_mode="discrete")
    sent: list[PromptBatch] = []
    decode = env.engine.backend.decode
    monkeypatch.setattr(env.engine.backend, "decode", lambda e, p, **more: (sent.append(p), decode(e, p, **more))[1])
    env.reset(seed=2)
    boxes = [env.engine.episodes.box[0].copy()]
    for action in (0, 7, REBOX):
        env.step(action)
        boxes.append(env.engine.episodes.box[0].copy())
    assert len(sent) == 4
    for batch, box in zip(sent, boxes, strict=True):
        np.testing.assert_array_equal(batch.boxes, [box])
        assert (batch.labels == -1).all()
        assert not batch.has_mask.any()


def test_a_box_has_one_mask_however_it_was_reached(make: MakeEnv) -> None:
    """To the last bit: nothing of the episode before it is fed back."""
    direct, there, back = (make(action_mode="discrete") for _ in range(3))
    direct.reset(options={"image": 0, "object": 5, "cue": (90, 100, 200, 220)})
    there.reset(options={"image": 0, "object": 5, "cue": (100, 100, 200, 220)})
    first = there.step(0)
    back.reset(options={"image": 0, "object": 5, "cue": (90, 100, 200, 220)})
    back.engine.episodes.mask_box[0] = np.nan  # as if its mask were empty: re-boxing goes back
    back.step(7)
    back.engine.episodes.mask_box[0] = np.nan
    last = back.step(REBOX)
    for other in (there, back):
        assert other.engine.episodes.box[0].tolist() == [90, 100, 200, 220]
        assert torch.stack(other.engine._logits).equal(torch.stack(direct.engine._logits))
    assert first[-1]["iou"] == last[-1]["iou"] == direct.engine.info(0)["iou"]
    backend = get_backend("tiny_random", "cpu")
    embedding = backend.encode([direct.engine.data.image(0)])
    alone = backend.decode(embedding, PromptBatch.from_lists(boxes=[(90, 100, 200, 220)]))
    assert alone.logits[:, 0].equal(torch.stack(direct.engine._logits))


@pytest.mark.real_images
def test_re_boxing_takes_the_tight_box_of_sams_mask(make: MakeEnv, answer: Callable) -> None:
    env = make(action_mode="discrete", max_prompts=9)
    seen: list[list[float]] = []
    masks = iter([(40, 60, 140, 100), (40, 61, 139, 100), None, (1, 2, 3, 4), (30, 40, 50, 70)])

    def respond(box: NDArray) -> NDArray[np.bool_]:
        seen.append(box.tolist())
        mask, corners = np.zeros((512, 512), np.bool_), next(masks)
        if corners is not None:
            mask[corners[1] : corners[3], corners[0] : corners[2]] = True
        return mask

    answer(env, respond)
    env.reset(seed=0, options={"image": 0, "cue": (50, 50, 150, 110)})
    for _ in range(4):
        assert env.action_masks()[REBOX]
        observation = env.step(REBOX)[0]
    boxes = [(50, 50, 150, 110), (40, 60, 140, 100), (40, 61, 139, 100), (40, 60, 140, 100), (1, 2, 3, 4)]
    assert seen == [list(box) for box in boxes]  # the third mask is empty, which goes back to the second box
    left, top, side = env.engine.episodes.view[0]
    assert observation["state"][9:] == pytest.approx(
        np.clip([(30 - left) / side, (40 - top) / side, (50 - left) / side, (70 - top) / side], 0, 1), abs=1e-6
    )


# ----------------------------------------------------------------------------------------------------- starting boxes


def size_errors(env: gymnasium.Env, count: int, **options: Any) -> NDArray[np.float64]:
    """|width / true width - 1| of drawn cues, of objects so far from the border that nothing is clipped."""
    engine, rng, found = env.engine, np.random.default_rng(0), []
    while len(found) < count:
        pose = engine.pose(rng, options)
        tight = engine.data.objects.box[engine.data.find(pose.image, pose.object_id)]
        width, height = tight[2:] - tight[:2]
        if (
            tight - (width, height, -width, -height) == np.clip(tight - (width, height, -width, -height), 0, 512)
        ).all():
            np.testing.assert_allclose((pose.cue[:2] + pose.cue[2:]) / 2, (tight[:2] + tight[2:]) / 2, atol=1e-3)
            found.append(abs((pose.cue[2] - pose.cue[0]) / width - 1))
    return np.array(found)


@pytest.mark.real_images
def test_errors_are_drawn_evenly_up_to_the_largest(make: MakeEnv) -> None:
    errors = size_errors(make(), 400)
    assert errors.max() == pytest.approx(0.4, abs=0.02)
    assert errors.mean() == pytest.approx(0.2, abs=0.02)
    assert np.histogram(errors, 4, (0, 0.4))[0].min() > 70
    assert size_errors(make(max_box_error=0.1), 50).max() == pytest.approx(0.1, abs=0.01)


@pytest.mark.real_images
def test_a_given_error_is_every_cues(make: MakeEnv) -> None:
    np.testing.assert_allclose(size_errors(make(box_error=0.3), 30), 0.3, atol=1e-4)
    np.testing.assert_allclose(size_errors(make(box_error=0.0), 30), 0.0, atol=1e-4)
    for env in (make(), make(box_error=0.3)):
        np.testing.assert_allclose(size_errors(env, 30, error=0.15), 0.15, atol=1e-4)
        np.testing.assert_allclose(size_errors(env, 30, error=0), 0.0, atol=1e-4)


@pytest.mark.real_images
def test_sides_are_wrong_by_themselves(make: MakeEnv) -> None:
    engine = make(box_error=0.2, size_error="sides").engine
    rng, moved = np.random.default_rng(0), []
    for _ in range(40):
        pose = engine.pose(rng)
        tight = engine.data.objects.box[engine.data.find(pose.image, pose.object_id)]
        if 20 < tight.min() and tight.max() < 490:
            moved.append((pose.cue - tight) / np.tile(tight[2:] - tight[:2], 2))
    np.testing.assert_allclose(np.abs(moved), 0.1, atol=1e-3)
    assert len(np.unique(np.sign(moved), axis=0)) > 6


def test_posed_cases(make: MakeEnv) -> None:
    env = make()
    data, episodes = env.engine.data, env.engine.episodes
    row = len(data.objects) // 2
    index, wanted = int(data.objects.image_index[row]), int(data.objects.object_id[row])
    info = env.reset(options={"image": data.image_ids[index], "object": wanted, "error": 0.25})[1]
    assert (info["image"], info["object"]) == (data.image_ids[index], wanted)
    np.testing.assert_array_equal(env.engine.truth(0), data.mask(index, wanted))
    env.reset(options={"cue": (-20, 30.5, 40, 60)})
    assert episodes.cue[0].tolist() == episodes.box[0].tolist() == [0, 30.5, 40, 60]
    boxes = {tuple(env.reset(seed=s, options={"image": index, "object": wanted, "error": 0.25}) and episodes.cue[0])
             for s in range(12)}  # fmt: skip
    assert len(boxes) == 2  # too large or too small


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"errors": 0.1}, r"unknown reset options \['errors'\]; known are 'image', 'object', 'cue' and 'error'"),
        ({"error": 0.1, "cue": (1, 2, 30, 40)}, r"'cue' is the box itself; leave out \['error'\]"),
        ({"error": -0.1}, r"reset option 'error' is a relative error of the box's size in 0\.\.0\.9, got -0\.1"),
        ({"error": 1.0}, "got 1.0"),
        ({"error": float("nan")}, "got nan"),
        ({"error": "much"}, "got 'much'"),
        ({"error": (0.1, 0.2)}, r"got \(0\.1, 0\.2\)"),
        ({"object": 3}, "'object' needs 'image'"),
        ({"image": 2}, r"images 0\.\.1, not 2"),
        ({"cue": (5, 2, 3, 9)}, r"got \(5, 2, 3, 9\)"),
    ],
)
@pytest.mark.real_images
def test_bad_reset_options_are_named(make: MakeEnv, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make().reset(options=options)


def test_sam_prompt_knows_no_error(make_env: MakeEnv) -> None:
    with pytest.raises(ValueError, match=r"unknown reset options \['error'\]; known are 'image', 'object' and 'cue'"):
        make_env().reset(options={"error": 0.1})


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"box_error": -0.1}, ValueError, r"box_error is a relative error of the box's size in 0\.\.0\.9, got -0\.1"),
        ({"box_error": 1.0}, ValueError, "got 1.0"),
        ({"box_error": float("nan")}, ValueError, "got nan"),
        ({"box_error": "0.1"}, ValueError, "got '0.1'"),
        ({"max_box_error": 0.95}, ValueError, r"max_box_error=0\.95 is outside 0\.\.0\.9"),
        ({"max_box_error": float("nan")}, ValueError, "max_box_error=nan"),
        ({"size_error": "corners"}, ValueError, "size_error 'corners' is unknown; choose from isotropic, sides"),
        ({"action_mode": "grid"}, ValueError, "'grid' is unknown; choose 'continuous' or 'discrete'"),
        ({"box_noise": 0.1}, TypeError, "unknown argument 'box_noise'"),
        ({"box_eror": 0.1}, TypeError, "did you mean 'box_error'"),
        ({"max_prompts": 0}, ValueError, "max_prompts=0"),
        ({"observation": "short"}, ValueError, "unknown observation 'short'"),
    ],
)
def test_bad_settings_are_named(tiny: dict[str, Any], settings: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SamBoxRefineEnv(**{**tiny, **settings})


def test_the_rules_hold_what_shapes_an_episode() -> None:
    rules = BoxRefineSettings(box_error=0.2, size_error="sides", checkpoint="tiny_random").rules()
    assert rules == {
        "action_mode": "continuous", "grid": 16, "max_prompts": 5, "view_scale": 2.4,
        "box_error": 0.2, "max_box_error": 0.4, "size_error": "sides",
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------------- observations


def shown(box: NDArray, view: NDArray) -> NDArray[np.uint8]:
    """(64, 64): 255 where the centre of a map pixel lies in the box."""
    left, top, side = (float(v) for v in view)
    at = (np.arange(64) + 0.5) / 64 * side
    across = (left + at >= box[0]) & (left + at < box[2])
    down = (top + at >= box[1]) & (top + at < box[3])
    return (down[:, None] & across[None]) * np.uint8(255)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.real_images
def test_observations_by_hand(make: MakeEnv, seed: int) -> None:
    env = make(max_prompts=4)
    engine = env.engine
    rng = np.random.default_rng(seed)
    observation, _ = env.reset(seed=seed)
    before = np.zeros((64, 64))
    for step in range(4):
        view, box = engine.episodes.view[0], engine.episodes.box[0]
        left, top, side = (float(v) for v in view)
        maps, state = observation["maps"], observation["state"]
        assert (maps.shape, state.shape) == ((6, 64, 64), (13,))
        np.testing.assert_array_equal(maps[4], shown(engine.episodes.cue[0], view))
        np.testing.assert_array_equal(maps[5], shown(box, view))
        mask = tight_box(engine.mask(0))
        assert mask is not None, "this seed shows too little"
        shares = np.clip((np.concatenate([box, mask]) - [left, top] * 4) / side, 0, 1)
        assert state[5:] == pytest.approx(shares, abs=1e-5)
        change = 0 if step == 0 else np.abs(maps[3] - before).mean() / 255
        expected = [1 - step / 4, maps[3].mean() / 255, side / 512, change]
        assert state[[0, 2, 3, 4]] == pytest.approx(expected, abs=1e-5)
        before = maps[3].astype(float)
        observation = env.step(rng.uniform(0.1, 0.6, 4).astype(np.float32))[0]
    assert (observation["maps"][5] != observation["maps"][4]).any()


@pytest.mark.real_images
def test_an_empty_mask_is_seen_as_zeros(make: MakeEnv, answer: Callable) -> None:
    env = make()
    answer(env, lambda box: np.zeros((512, 512), np.bool_))
    observation, info = env.reset(seed=0)
    assert info["iou"] == 0
    assert observation["state"][9:].tolist() == [0] * 4
    assert observation["state"][5:9].any()
    assert observation in env.observation_space


# -------------------------------------------------------------------------------------- seeds, vectors, specs, pictures


def test_seeds_decide_everything(make: MakeEnv, same: Same) -> None:
    actions = list(np.random.default_rng(0).uniform(-1, 1, (3, 4)).astype(np.float32))
    same(play(make(), actions, seed=5), play(make(), actions, seed=5))
    assert len({play(make(), [], seed=seed)[0][1]["object"] for seed in range(4)}) > 1


def test_a_copy_in_mid_episode_goes_on_equally(make: MakeEnv, same: Same) -> None:
    env = make(action_mode="discrete")
    play(env, [0, 5], seed=2)
    twin = copy.deepcopy(env)
    same(env.step(REBOX), twin.step(REBOX))
    same(env.action_masks(), twin.action_masks())
    same(env.reset(), twin.reset())


def test_options_by_row(make_vec: Callable[..., VectorEnv]) -> None:
    env = make_vec(3, ENV_ID)
    objects = env.engine.data.objects
    inner = np.flatnonzero((objects.box.min(axis=1) > 100) & (objects.box.max(axis=1) < 400))[:3]
    tight = objects.box[inner]
    assert (tight[:, 2:] - tight[:, :2]).max() < 200
    options = {"image": objects.image_index[inner].tolist(), "object": objects.object_id[inner].tolist()}
    env.reset(seed=0, options={**options, "error": [0.0, 0.1, 0.4]})
    width = env.engine.episodes.cue[:, 2] - env.engine.episodes.cue[:, 0]
    np.testing.assert_allclose(np.abs(width / (tight[:, 2] - tight[:, 0]) - 1), [0, 0.1, 0.4], atol=1e-4)
    env.reset(seed=0, options={**options, "error": 0.2})
    width = env.engine.episodes.cue[:, 2] - env.engine.episodes.cue[:, 0]
    np.testing.assert_allclose(np.abs(width / (tight[:, 2] - tight[:, 0]) - 1), 0.2, atol=1e-4)
    with pytest.raises(ValueError, match="'error' has 2 entries for 3"):
        env.reset(options={"error": [0.1, 0.2]})
    with pytest.raises(ValueError, match="leave out"):
        env.reset(options={"error": 0.1, "cue": (1, 2, 30, 40)})


def test_specs_survive_json(make_env: MakeEnv, make_vec: Callable[..., VectorEnv], same: Same) -> None:
    env = make_env(ENV_ID, action_mode="discrete", box_error=0.25, size_error="sides", max_prompts=2)
    twin = gymnasium.make(EnvSpec.from_json(env.spec.to_json()))
    same(play(env, [7, REBOX]), play(twin, [7, REBOX]))
    vector = make_vec(2, ENV_ID, autoreset_mode="SameStep", box_error=None)
    assert isinstance(vector, SamBoxRefineVectorEnv)
    text = vector.spec.to_json()
    assert json.loads(text)["kwargs"]["autoreset_mode"] == "SameStep"
    same(vector.reset(seed=4), gymnasium.make_vec(EnvSpec.from_json(text), num_envs=2).reset(seed=4))


def test_pictures_show_the_box_where_it_is(make: MakeEnv) -> None:
    env = make(render_mode="rgb_array", action_mode="discrete")
    env.reset(seed=1, options={"image": 0, "cue": (100, 100, 200, 180)})
    frames = [env.render()]
    assert frames[0].shape == (512, 448, 3)
    assert frames[0].dtype == np.uint8
    for action in (2, 3, STOP):
        env.step(action)
        frames.append(env.render())
    for i, one in enumerate(frames):
        assert not any((one == other).all() for other in frames[:i])
    view = env.engine.episodes.view[0]
    corner, side = view[:2] - 0.075 * view[2], 1.15 * view[2]  # of what is shown
    for frame, box in zip(frames[1:3], ((100, 100, 210, 180), (100, 100, 210, 188)), strict=True):
        rows, columns = np.nonzero((frame[CAPTION:] == BOX_COLOUR).all(axis=-1))
        expected = (np.array(box).reshape(2, 2) - corner) / side * 448
        assert [columns.min(), rows.min(), columns.max(), rows.max()] == pytest.approx(expected.ravel(), abs=2)
        assert (frame[CAPTION:] == CUE).all(axis=-1).any()  # where it began is still seen
    assert not (frames[0][CAPTION:] == BOX_COLOUR).all(axis=-1).any()
