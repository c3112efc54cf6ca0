"""SamPromptEnv: what an episode is, and what a user of Gymnasium may rely on."""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ResetNeeded
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv

from sam_gym.envs import SamPromptEnv
from sam_gym.sam import PromptBatch, get_backend

STOP = 2 * 16 * 16

MakeEnv = Callable[..., gymnasium.Env]
Same = Callable[[Any, Any], None]


@pytest.fixture(params=["SamPrompt-ISBI-v0", "SamPromptSemantic-WBC-v0"])
def make_any(request: pytest.FixtureRequest, make_env: MakeEnv, tiny_clip: str) -> MakeEnv:
    """`make_env` for each of the tasks that click on a grid."""
    return partial(make_env, request.param, clip=tiny_clip)


def play(env: gymnasium.Env, actions: list, seed: int | None = 0) -> list:
    return [env.reset(seed=seed), *(env.step(action) for action in actions)]


def object_cells(env: gymnasium.Env) -> tuple[int, int]:
    """An allowed cell of the grid whose centre lies on the object, and one whose centre does not."""
    engine = env.unwrapped.engine
    truth, view = engine.truth(0), engine.episodes.view[0]
    on, off = [], []
    for cell in np.flatnonzero(env.unwrapped.action_masks()[:256]):
        row, column = divmod(int(cell), 16)
        x, y = view[0] + (column + 0.5) / 16 * view[2], view[1] + (row + 0.5) / 16 * view[2]
        (on if truth[int(y), int(x)] else off).append(int(cell))
    return on[len(on) // 2], off[0]


# -------------------------------------------------------------------------------------------------------- episodes


@pytest.mark.real_images
def test_starting_state(make_env: MakeEnv) -> None:
    env = make_env()
    observation, info = env.reset(seed=0)
    assert observation in env.observation_space
    assert sorted(info) == ["dice", "image", "iou", "object", "prompts", "source"]
    assert info["prompts"] == 0
    assert info["source"] == "isbi2012"
    assert info["image"] in ("section-22", "section-23")
    assert observation["state"][[0, 4]].tolist() == [1.0, 0.0]
    assert observation["maps"][4].any()
    assert not observation["maps"][5:].any()
    engine = env.unwrapped.engine
    row = engine.data.find(info["image"], info["object"])
    tight, cue = engine.data.objects.box[row], engine.episodes.cue[0]
    assert (cue != tight).all()
    assert (np.abs(cue - tight) <= np.maximum(0.2 * np.tile(tight[2:] - tight[:2], 2), 1)).all()


def test_the_budget_terminates(make_env: MakeEnv) -> None:
    env = make_env(max_prompts=3)
    said = play(env, [10, 10 + 256, 11])
    assert [step[2] for step in said[1:]] == [False, False, True]
    assert not any(step[3] for step in said[1:])
    left = [reply[0]["state"][0] for reply in said]
    np.testing.assert_allclose(left, [1, 2 / 3, 1 / 3, 0], atol=1e-6)
    assert [reply[-1]["prompts"] for reply in said] == [0, 1, 2, 3]


def test_stop_terminates_and_changes_no_mask(make_env: MakeEnv) -> None:
    env = make_env(prompt_cost=0.5)
    _, click, stop = play(env, [10, STOP])
    calls = env.unwrapped.engine.backend.decoder_calls
    observation, reward, terminated, truncated, info = stop
    assert (reward, terminated, truncated) == (0.0, True, False)  # stopping is no prompt and costs nothing
    assert info == click[-1]
    np.testing.assert_array_equal(observation["maps"], click[0]["maps"])
    env.reset()
    env.step(STOP)
    assert env.unwrapped.engine.backend.decoder_calls == calls + 1  # the reset's


def test_clicks_are_seen_where_they_were_made(make_env: MakeEnv) -> None:
    env = make_env()
    env.reset(seed=1)
    positive, negative = np.flatnonzero(env.unwrapped.action_masks()[:256])[[40, 90]]
    env.step(positive)
    observation = env.step(negative + 256)[0]
    for channel, cell in ((5, positive), (6, negative)):
        expected = np.zeros((16, 16), np.uint8)
        expected.flat[cell] = 255
        np.testing.assert_array_equal(observation["maps"][channel], expected.repeat(4, 0).repeat(4, 1))


@pytest.mark.real_images
def test_sam_is_prompted_as_documented(make_env: MakeEnv) -> None:
    """The cue box first; then the box, all clicks, and the logits of the decode before. What comes back is observed."""
    env = make_env(max_prompts=4)
    engine = env.unwrapped.engine
    backend = get_backend("tiny_random", "cpu")
    observation, info = env.reset(seed=6)
    image = backend.encode([engine.data.image(info["image"])])
    cue, (left, top, side) = engine.episodes.cue[0], engine.episodes.view[0]
    masks = backend.decode(image, PromptBatch.from_lists(boxes=[cue]))
    shown = observation["maps"][3].astype(int)
    points, labels = [], []
    for action in (100, 120 + 256, 40):
        row, column = divmod(action % 256, 16)
        points.append((left + (column + 0.5) / 16 * side - 0.5, top + (row + 0.5) / 16 * side - 0.5))
        labels.append(int(action < 256))
        prompts = PromptBatch.from_lists(
            points=[np.clip(points, 0, 511)], labels=[labels], boxes=[cue], mask_logits=[masks.logits[0, 0]]
        )
        masks = backend.decode(image, prompts)
        observation, _, _, _, info = env.step(action)
        expected = backend.upscale(masks.logits[0, 0], image[0]).numpy()
        assert ((expected > 0) != engine.mask(0)).sum() <= 2  # float32 coordinates differ in the last bit
        before, shown = shown, observation["maps"][3].astype(int)
        assert observation["state"] == pytest.approx(
            [
                1 - len(points) / 4,
                np.clip(float(masks.predicted_iou), 0, 1),
                shown.mean() / 255,
                side / 512,
                np.abs(shown - before).mean() / 255,
            ],
            abs=1e-5,
        )
        truth = engine.data.mask(info["image"], info["object"])
        assert info["iou"] == pytest.approx((truth & engine.mask(0)).sum() / (truth | engine.mask(0)).sum())
        assert info["dice"] == pytest.approx(2 * info["iou"] / (1 + info["iou"]))


def test_rewards_sum_to_the_gain_over_the_box(make_env: MakeEnv) -> None:
    for reward in ("iou", "dice"):
        env = make_env(reward=reward)
        first, *steps = play(env, [30, 90, 200 + 256, 31, 140], seed=3)
        assert sum(step[1] for step in steps) == pytest.approx(steps[-1][-1][reward] - first[-1][reward], abs=1e-12)
        assert any(step[1] != 0 for step in steps)
        assert all(type(step[1]) is float for step in steps)


def test_prompts_cost(make_env: MakeEnv) -> None:
    free, dear = (play(make_env(prompt_cost=cost), [30, 90, STOP], seed=3) for cost in (0.0, 0.25))
    difference = [a[1] - b[1] for a, b in zip(free[1:], dear[1:], strict=True)]
    assert difference == pytest.approx([0.25, 0.25, 0.0])


def test_hit_rewards_clicks_that_tell_the_truth(make_env: MakeEnv) -> None:
    env = make_env(reward="hit")
    env.reset(seed=2)
    on, off = object_cells(env)
    assert [env.step(action)[1] for action in (on, on + 256, off, off + 256, STOP)] == [1.0, -1.0, -1.0, 1.0, 0.0]


def test_boxes_hit_nothing_and_move_the_mask(make_env: MakeEnv) -> None:
    env = make_env(action_mode="box", reward={"hit": 1.0})
    env.reset(seed=2)
    before = env.unwrapped.engine.mask(0)
    assert env.step(np.array([-1, -1, 0, 0, 0], np.float32))[1] == 0.0
    view = env.unwrapped.engine.episodes.view[0]
    box = env.unwrapped.engine.episodes.box[0]
    expected = np.clip([view[0], view[1], view[0] + view[2] / 2, view[1] + view[2] / 2], 0, 512)
    np.testing.assert_allclose(box, expected, atol=1e-2)
    assert (env.unwrapped.engine.mask(0) != before).any()


def test_action_masks_forbid_used_cells(make_env: MakeEnv) -> None:
    env = make_env()
    env.reset(seed=0)
    masks = env.unwrapped.action_masks
    free = np.flatnonzero(masks()[:256])
    first, second = int(free[3]), int(free[7])
    before = masks().copy()
    env.step(first)
    env.step(second + 256)
    assert np.flatnonzero(before & ~masks()).tolist() == sorted([first, second, first + 256, second + 256])
    assert masks()[STOP]
    env.reset(seed=0)
    np.testing.assert_array_equal(masks(), before)


def test_action_masks_belong_to_discrete_actions(make_env: MakeEnv) -> None:
    env = make_env(action_mode="point")
    env.reset(seed=0)
    with pytest.raises(ValueError, match="action masks exist for discrete actions, not for 'point'"):
        env.unwrapped.action_masks()


def test_objects_of_one_pixel(make_env: MakeEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    from sam_gym.data import SegmentationData
    from sam_gym.envs import engine

    labels = np.zeros((40, 60), np.int32)
    labels[0, 0], labels[39, 59], labels[20, 30] = 1, 2, 3
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    data = SegmentationData("isbi2012", "val", "isbi2012", ["dots"], [image], [labels], min_area=1)
    monkeypatch.setattr(engine, "load_data", lambda *_: data)
    env = make_env(min_area=1)
    for seed in range(6):
        for observation, *_ in play(env, [0, 255, 100 + 256], seed):
            assert observation in env.observation_space
            assert np.isfinite(observation["embedding"]).all()


# -------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("action_mode", "action"),
    [
        ("grid", STOP + 1),
        ("grid", -1),
        ("grid", 3.0),
        ("grid", float("nan")),
        ("grid", None),
        ("grid", np.array([1, 2])),
        ("grid", True),
        ("point", [0.0, 0.0, 1.0]),
        ("point", [0.0, 0.0, 1.5, 0.0]),
        ("point", [float("nan"), 0.0, 1.0, 0.0]),
        ("box", [0.0, 0.0, 1.0, 0.0]),
        ("box", [0.0, 0.0, float("inf"), 0.0, 0.0]),
    ],
)
def test_impossible_actions(make_env: MakeEnv, same: Same, action_mode: str, action: Any) -> None:
    """Refused with the action in the message, and without a trace."""
    env, twin = (make_env(action_mode=action_mode).unwrapped for _ in range(2))
    env.reset(seed=0)
    twin.reset(seed=0)
    with pytest.raises(ValueError, match="action") as raised:
        env.step(action)
    shown = action.tolist() if isinstance(action, np.ndarray) else action
    assert str(shown) in str(raised.value)
    sample = twin.action_space.sample()
    same(env.step(sample), twin.step(sample))


def test_order_of_calls_is_enforced(make_env: MakeEnv) -> None:
    env = make_env().unwrapped
    with pytest.raises(ResetNeeded):
        env.step(0)
    env.reset(seed=0)
    env.step(STOP)
    with pytest.raises(ResetNeeded):
        env.step(0)
    env.reset()
    env.step(0)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"max_prompt": 3}, TypeError, "unknown argument 'max_prompt'; did you mean 'max_prompts'"),
        ({"xyzzy": 3}, TypeError, "unknown argument 'xyzzy'; there are dataset, split"),
        ({"grid": 1}, ValueError, r"grid=1 is outside 2\.\.32"),
        ({"grid": 64}, ValueError, "grid=64"),
        ({"grid": 16.5}, ValueError, "grid=16.5"),
        ({"max_prompts": 0}, ValueError, "max_prompts=0"),
        ({"max_prompts": 2.5}, ValueError, "max_prompts=2.5"),
        ({"box_noise": -0.1}, ValueError, "box_noise=-0.1"),
        ({"box_noise": 0.6}, ValueError, "box_noise=0.6"),
        ({"box_noise": float("nan")}, ValueError, "box_noise=nan"),
        ({"view_scale": 0.5}, ValueError, "view_scale=0.5"),
        ({"prompt_cost": float("nan")}, ValueError, "prompt_cost=nan"),
        ({"reward": "iuo"}, ValueError, "did you mean 'iou'"),
        ({"reward": {}}, ValueError, "reward is empty"),
        ({"action_mode": "clicks"}, ValueError, "'clicks' is unknown"),
        ({"dataset": "isbi2021"}, ValueError, "did you mean 'isbi2012'"),
        ({"split": "valid"}, ValueError, "'valid'"),
        ({"data": "fake"}, ValueError, "'fake'"),
        ({"min_area": 10**6}, ValueError, "min_area"),
        ({"render_mode": "human"}, ValueError, "'human' is unknown"),
        ({"device": "cuda:99"}, ValueError, "cuda"),
    ],
)
def test_bad_settings_are_named(tiny: dict[str, Any], settings: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SamPromptEnv(**{**tiny, **settings})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": 0}, r"unknown reset options \['images'\]; known are 'image', 'object' and 'cue'"),
        ({"image": 2}, r"images 0\.\.1, not 2"),
        ({"image": -1}, "not -1"),
        ({"image": "section-0"}, "no image 'section-0'; there are section-22, section-23"),
        ({"object": 3}, "'object' needs 'image'"),
        ({"image": 0, "object": 10**6}, "section-22 has no object 1000000"),
        ({"image": 0, "object": 0}, "no object 0"),
        ({"cue": (1, 2, 3)}, r"x0 < x1 and y0 < y1, got \(1, 2, 3\)"),
        ({"cue": (5, 2, 3, 9)}, r"got \(5, 2, 3, 9\)"),
        ({"cue": (0, 0, float("nan"), 9)}, "nan"),
        ({"cue": (600, 600, 700, 700)}, r"outside the image.*\(600, 600, 700, 700\)"),
    ],
)
@pytest.mark.real_images
def test_bad_reset_options_are_named(make_env: MakeEnv, options: dict[str, Any], message: str) -> None:
    env = make_env()
    with pytest.raises(ValueError, match=message):
        env.reset(options=options)


# ---------------------------------------------------------------------------------------------------------- posing


def test_posed_cases(make_env: MakeEnv) -> None:
    env = make_env()
    data = env.unwrapped.engine.data
    episodes = env.unwrapped.engine.episodes
    for row in (0, 17, len(data.objects) - 1):
        index, wanted = int(data.objects.image_index[row]), int(data.objects.object_id[row])
        for image in (index, np.int64(index), data.image_ids[index]):
            info = env.reset(options={"image": image, "object": wanted})[1]
            assert (info["image"], info["object"]) == (data.image_ids[index], wanted)
            np.testing.assert_array_equal(env.unwrapped.engine.truth(0), data.mask(index, wanted))
    env.reset(options={"cue": (-20, 30.5, 40, 60)})
    assert episodes.cue[0].tolist() == [0, 30.5, 40, 60]
    found = {env.reset(seed=seed, options={"image": 1})[1]["object"] for seed in range(10)}
    assert len(found) > 5


def test_drawn_objects_cover_the_split(make_env: MakeEnv) -> None:
    engine = make_env().unwrapped.engine
    rng = np.random.default_rng(0)
    drawn = {(pose.image, pose.object_id) for pose in (engine.pose(rng) for _ in range(3000))}
    table = engine.data.objects
    assert drawn == set(zip(table.image_index.tolist(), table.object_id.tolist(), strict=True))


# ------------------------------------------------------------------------------------- determinism, copies, processes


def test_seeds_decide_everything(make_any: MakeEnv, same: Same) -> None:
    actions = [100, 3, 40 + 256]
    same(play(make_any(), actions, seed=5), play(make_any(), actions, seed=5))
    infos = [play(make_any(), [], seed=seed)[0][1] for seed in range(4)]
    assert len({(info["image"], info["object"]) for info in infos}) > 1


ROLLOUT = """
import hashlib, json, sys, warnings
warnings.simplefilter("error")
import gymnasium, numpy as np, sam_gym
env = gymnasium.make(**json.loads(sys.argv[1]))
digest = hashlib.sha256()
def note(reply):
    observation, *scalars, info = reply
    for key in sorted(observation):
        digest.update(observation[key].tobytes())
    digest.update(repr((scalars, info)).encode())
note(env.reset(seed=11))
rng = np.random.default_rng(0)
for action in rng.choice(513, 25):
    reply = env.step(int(action))
    note(reply)
    if reply[2]:
        note(env.reset())
print(digest.hexdigest())
"""


@pytest.mark.parametrize(
    "env_id", ["SamPrompt-ISBI-v0", pytest.param("SamPromptSemantic-WBC-v0", marks=pytest.mark.real_images)]
)
def test_fresh_processes_agree(tiny: dict[str, Any], tiny_clip: str, env_id: str) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ROLLOUT, json.dumps({"id": env_id, **tiny, "clip": tiny_clip})],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
        )
        for hash_seed in ("1", "2")
    ]
    digests = [process.communicate(timeout=120)[0].strip() for process in processes]
    assert len(digests[0]) == 64
    assert digests[0] == digests[1]


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_a_copy_in_mid_episode_goes_on_equally(make_any: MakeEnv, same: Same, duplicate: Callable) -> None:
    env = make_any(max_prompts=4, render_mode="rgb_array", reward={"iou": 1.0, "clip": 1.0})
    play(env, [100, 140 + 256], seed=2)
    twin = duplicate(env)
    same(env.step(7), twin.step(7))
    same(env.render(), twin.render())
    same(env.reset(), twin.reset())  # the generator came along
    kept = env.step(50)
    twin.step(60)
    twin.reset(seed=9)
    same(env.unwrapped.engine.observation(0), kept[0])  # and the two share nothing


def test_spec_survives_json(make_any: MakeEnv, same: Same) -> None:
    env = make_any(reward={"iou": 1.0, "hit": 0.5}, max_prompts=2)
    twin = gymnasium.make(EnvSpec.from_json(env.spec.to_json()))
    same(play(env, [7, 9]), play(twin, [7, 9]))


def test_processes_of_an_async_vector_env(tiny: dict[str, Any], same: Same) -> None:
    single = partial(gymnasium.make, "sam_gym:SamPrompt-ISBI-v0", **tiny)
    here, there = SyncVectorEnv([single] * 2), AsyncVectorEnv([single] * 2, context="spawn")
    try:
        same(there.reset(seed=3), here.reset(seed=3))
        for actions in ([1, STOP], [400, 20], [5, 6]):
            same(there.step(np.array(actions)), here.step(np.array(actions)))
    finally:
        there.close()


def test_what_was_returned_is_never_touched_again(make_any: MakeEnv, same: Same) -> None:
    env = make_any(max_prompts=3)
    said = play(env, [30])
    kept = copy.deepcopy(said)
    said += [env.step(31), env.step(32), env.reset(), env.step(33)]
    same(said[:2], kept)
    arrays = [array for reply in said for array in reply[0].values()]
    for i, one in enumerate(arrays):
        assert not any(np.shares_memory(one, other) for other in arrays[:i])


def test_what_the_agent_does_to_arrays_is_its_own_business(make_any: MakeEnv, same: Same) -> None:
    env, twin = make_any(), make_any()
    env.reset(seed=1)
    observation, info = twin.reset(seed=1)
    for array in observation.values():
        array[...] = 1
    info.clear()
    twin.unwrapped.action_masks()[:] = False
    same(env.step(20), twin.step(20))
    same(env.unwrapped.action_masks(), twin.unwrapped.action_masks())
