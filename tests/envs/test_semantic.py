"""SamPromptSemantic: where an episode begins and ends, what is seen of it, and how SAM is prompted.

What all tasks have in common is tested over all of them in the other files of this folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import VectorEnv

from sam_gym.data import DATASETS
from sam_gym.envs import SamPromptSemanticEnv, SamPromptSemanticVectorEnv
from sam_gym.envs.episode import in_view
from sam_gym.envs.rendering import CAPTION, CUE, NEGATIVE, POSITIVE
from sam_gym.envs.semantic import SemanticSettings
from sam_gym.sam import PromptBatch, get_backend
from sam_gym.semantics import get_scorer

ENV_ID, STAND_IN = "SamPromptSemantic-WBC-v0", "SamPromptSemantic-Synthetic-v0"  # where real images are missing
STOP = 2 * 16 * 16
POINTS = [(60, 55, 1), (3, 7, 0)]

Make = Callable[..., gymnasium.Env]
Same = Callable[[Any, Any], None]


@pytest.fixture
def make(make_env: Make, tiny: dict[str, Any], tiny_clip: str) -> Make:
    here = ENV_ID if tiny["data"] == "real" else STAND_IN
    return lambda env_id=here, **settings: make_env(env_id, clip=tiny_clip, **settings).unwrapped


@pytest.fixture
def make_several(make_vec: Callable[..., VectorEnv], tiny: dict[str, Any], tiny_clip: str) -> Callable[..., VectorEnv]:
    return partial(make_vec, env_id=ENV_ID if tiny["data"] == "real" else STAND_IN, clip=tiny_clip)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[PromptBatch]:
    """What SAM is prompted with from now on."""
    batches: list[PromptBatch] = []
    backend = get_backend("tiny_random", "cpu")
    decode = backend.decode
    monkeypatch.setattr(backend, "decode", lambda e, p, **more: (batches.append(p), decode(e, p, **more))[1])
    return batches


# ----------------------------------------------------------------------------------------------------------- episodes


@pytest.mark.real_images
def test_starting_state(make: Make, tiny_clip: str, sent: list[PromptBatch]) -> None:
    env = make()
    observation, info = env.reset(seed=0)
    assert not sent  # SAM is not asked, and so nothing is measured
    assert observation in env.observation_space
    assert sorted(observation) == ["embedding", "maps", "state", "text"]
    assert sorted(info) == ["dice", "image", "iou", "object", "prompts", "source", "text"]
    assert (info["iou"], info["dice"], info["prompts"], info["object"]) == (0.0, 0.0, 0, 1)
    assert (info["source"], info["text"]) == ("wbc-cell", "white blood cell")
    assert observation["state"].tolist() == [1, 0, 0, 1, 0]
    assert not observation["maps"][[3, 5, 6]].any()
    assert not env.engine.mask(0).any()
    embedded = get_scorer(tiny_clip, "cpu").embed_texts(["white blood cell"])[0].numpy()
    np.testing.assert_array_equal(observation["text"], embedded)
    assert np.linalg.norm(observation["text"]) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("size", [(40, 60), (60, 40), (50, 50)])
def test_the_view_is_the_whole_image(make: Make, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]) -> None:
    from sam_gym.data import SegmentationData
    from sam_gym.envs import engine

    height, width = size
    image = np.full((height, width, 3), 200, np.uint8)
    labels = np.zeros(size, np.int32)
    labels[3:9, 4:20] = 1
    data = SegmentationData("wbc-cell", "val", "wbc-cell", ["one"], [image], [labels], min_area=1)
    monkeypatch.setattr(engine, "load_whole_class", lambda *_: data)
    env = make()
    observation, _ = env.reset(seed=0)
    side = max(size)
    assert env.engine.episodes.view[0].tolist() == [(width - side) / 2, (height - side) / 2, side]
    inside = np.zeros((64, 64), np.bool_)
    at = (np.arange(64) + 0.5) / 64 * side
    inside[np.ix_(np.abs(at - side / 2) < height / 2, np.abs(at - side / 2) < width / 2)] = True
    np.testing.assert_array_equal(observation["maps"][4], inside * np.uint8(255))
    assert (observation["maps"][:3, ~inside] < 200).all()
    assert (observation["maps"][0] == 200)[inside].mean() > 0.9
    cells = inside[2::4, 2::4].ravel()
    np.testing.assert_array_equal(env.action_masks()[:256], cells)


def test_the_budget_terminates(make: Make) -> None:
    env = make(max_prompts=3)
    replies = [env.reset(seed=0), *(env.step(action) for action in (120, 5 + 256, 130))]
    assert [reply[2:4] for reply in replies[1:]] == [(False, False), (False, False), (True, False)]
    np.testing.assert_allclose([reply[0]["state"][0] for reply in replies], [1, 2 / 3, 1 / 3, 0], atol=1e-6)
    assert SemanticSettings().max_prompts == 15


def test_stopping_at_once_is_worth_nothing(make: Make, sent: list[PromptBatch]) -> None:
    env = make(prompt_cost=0.1)
    first, info = env.reset(seed=0)
    observation, reward, terminated, truncated, last = env.step(STOP)
    assert (reward, terminated, truncated) == (0.0, True, False)
    assert last == info
    np.testing.assert_array_equal(observation["maps"], first["maps"])
    assert not sent


def test_only_a_time_limit_truncates(make_env: Make, tiny_clip: str) -> None:
    env = make_env(ENV_ID, clip=tiny_clip, max_episode_steps=2)
    env.reset(seed=0)
    assert [env.step(action)[2:4] for action in (1, 2)] == [(False, False), (False, True)]


def test_rewards_sum_to_the_last_quality(make: Make) -> None:
    for reward in ("iou", "dice"):
        env = make(reward=reward)
        env.reset(seed=3)
        replies = [env.step(action) for action in (30, 90, 200 + 256, 120)]
        assert sum(reply[1] for reply in replies) == pytest.approx(replies[-1][-1][reward], abs=1e-12)
        assert replies[-1][-1][reward] > 0


@pytest.mark.real_images
def test_hit_rewards_clicks_that_tell_the_truth(make: Make) -> None:
    env = make(reward="hit")
    env.reset(seed=2)
    column, line = np.floor(in_view(env.engine.episodes.view[0], env.engine.actions.centres)).astype(int).T
    allowed = np.flatnonzero(env.action_masks()[:256])
    hits = env.engine.truth(0)[line[allowed], column[allowed]]
    on, off = int(allowed[hits][10]), int(allowed[~hits][0])
    assert [env.step(action)[1] for action in (on, on + 256, off, off + 256, STOP)] == [1.0, -1.0, -1.0, 1.0, 0.0]


# ------------------------------------------------------------------------------------------------- how SAM is prompted


def test_sam_is_prompted_with_clicks_alone_and_then_with_its_mask(make: Make, sent: list[PromptBatch]) -> None:
    env = make()
    env.reset(seed=1)
    logits = []
    for action in (100, 5 + 256, 140):
        env.step(action)
        logits.append(torch.stack(env.engine._logits))
    assert len(sent) == 3
    assert [(batch.labels >= 0).sum() for batch in sent] == [1, 2, 3]
    assert [batch.has_mask.tolist() for batch in sent] == [[False], [True], [True]]
    assert not any(batch.has_box.any() for batch in sent)
    assert sent[1].mask_logits.equal(logits[0])
    assert sent[2].mask_logits.equal(logits[1])
    assert sent[2].labels[sent[2].labels >= 0].tolist() == [1, 0, 1]


def test_given_points_are_decoded_at_once_and_stay(make: Make, sent: list[PromptBatch]) -> None:
    env = make(max_prompts=2)
    observation, info = env.reset(seed=1, options={"image": 3, "points": POINTS})
    given = sent[0].labels[0] >= 0
    assert sent[0].points[0, given].tolist() == [[60, 55], [3, 7]]
    assert sent[0].labels[0, given].tolist() == [1, 0]
    assert not sent[0].has_mask.any()
    backend = env.engine.backend
    image = backend.encode([env.engine.data.image(3)])
    alone = backend.decode(image, PromptBatch.from_lists(points=[[(60, 55), (3, 7)]], labels=[[1, 0]]))
    np.testing.assert_allclose(torch.stack(env.engine._logits), alone.logits[:, 0], atol=1e-4)
    assert (info["prompts"], info["iou"] > 0) == (0, True)  # they are none of the agent's
    assert observation["state"][[0, 4]].tolist() == [1, 0]
    assert observation["maps"][5].any()
    assert observation["maps"][6].any()
    first = info["iou"]
    env.step(100)
    _, _, terminated, _, info = env.step(101)
    assert terminated
    assert [(batch.labels >= 0).sum() for batch in sent if len(batch.boxes) == 1][-2:] == [3, 4]
    assert env.engine.first_iou[0] == first
    env.reset()
    assert (env.engine.episodes.given_labels == -1).all()  # the next episode has none


def test_points_by_row(make_several: Callable[..., VectorEnv], sent: list[PromptBatch], same: Same) -> None:
    """One list for all, or one for each sub-environment, of any length; only those that have any are decoded."""
    env = make_several(3)
    observations, info = env.reset(seed=0, options={"points": [POINTS, None, POINTS[:1]]})
    assert len(sent) == 1
    assert len(sent[0]) == 2
    assert ((env.engine.episodes.given_labels >= 0).sum(axis=1) == [2, 0, 1]).all()
    assert (info["iou"] > 0).tolist() == [True, False, True]
    assert not observations["maps"][1, 3].any()
    env.reset(seed=0, options={"points": np.array(POINTS)})
    assert ((env.engine.episodes.given_labels >= 0).sum(axis=1) == [2, 2, 2]).all()
    with pytest.raises(ValueError, match="'points' has 2 entries for 3"):
        env.reset(options={"points": [POINTS, POINTS]})


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_decode_calls(make_several: Callable[..., VectorEnv], sent: list[PromptBatch], mode: str) -> None:
    """One for those that were prompted, whoever begins anew; none where nobody was."""
    env = make_several(3, autoreset_mode=mode)
    env.reset(seed=0)
    assert not sent
    env.step(np.array([1, STOP, 2]))
    assert [len(batch) for batch in sent] == [2]
    env.step(np.array([STOP] * 3))
    assert len(sent) == 1
    env.step(np.array([3, 4, 5]))
    assert [len(batch) for batch in sent[1:]] == ([1] if mode == "NextStep" else [3])
    assert not sent[1].has_mask.any()


# ------------------------------------------------------------------------------------------- requests and what is wrong


@pytest.mark.real_images
def test_posed_images(make: Make) -> None:
    env = make()
    data = env.engine.data
    for image in (4, np.int64(4), data.image_ids[4]):
        assert env.reset(options={"image": image})[1]["image"] == data.image_ids[4]
        np.testing.assert_array_equal(env.engine.truth(0), data.mask(4, 1))
    assert len({env.reset(seed=seed)[1]["image"] for seed in range(12)}) > 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cue": (1, 2, 30, 40)}, r"unknown reset options \['cue'\]; known are 'image' and 'points'"),
        ({"object": 1, "image": 0}, r"unknown reset options \['object'\]"),
        ({"image": 99}, r"images 0\.\.14, not 99"),
        ({"points": [(1, 2)]}, r"up to 8 times x, y, label .*got \[\(1, 2\)\]"),
        ({"points": (1, 2, 1)}, r"got \(1, 2, 1\)"),
        ({"points": [(1, 2, 1), (1, 2)]}, "up to 8 times"),
        ({"points": [(1, 2, 2)]}, "label 1 .foreground. or 0 .background."),
        ({"points": [(1, 2, float("nan"))]}, "label 1"),
        ({"points": [(1, 2, 1)] * 9}, "up to 8 times"),
        ({"points": "middle"}, "got 'middle'"),
        ({"points": 3}, "got 3"),
        ({"points": [(-1, 2, 1)]}, r"leaves the image of \d+ x \d+ px"),
        ({"points": [(5, 1000, 1)]}, "leaves the image"),
        ({"points": [(float("nan"), 2, 1)]}, "leaves the image"),
    ],
)
@pytest.mark.real_images
def test_bad_reset_options_are_named(make: Make, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make().reset(options=options)


def test_no_points_are_no_points(make: Make, sent: list[PromptBatch]) -> None:
    for points in ([], None):
        make().reset(seed=0, options={"points": points})
    assert not sent


@pytest.mark.parametrize("env_id", ["SamPrompt-ISBI-v0", "SamBoxRefine-ISBI-v0"])
def test_other_tasks_know_no_points(make_env: Make, env_id: str) -> None:
    with pytest.raises(ValueError, match=r"unknown reset options \['points'\]"):
        make_env(env_id).reset(options={"points": POINTS})


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"action_mode": "point"}, ValueError, "'point' is unknown; there is 'grid'"),
        ({"box_noise": 0.1}, TypeError, "unknown argument 'box_noise'"),
        ({"max_prompts": 0}, ValueError, "max_prompts=0"),
        ({"min_area": 10**6}, ValueError, "the class of wbc-cell val has min_area=1000000"),
        ({"clip": "clip-mirco"}, RuntimeError, "unknown CLIP model 'clip-mirco'"),
        ({"dataset": "wbc"}, ValueError, "unknown dataset 'wbc'"),
    ],
)
@pytest.mark.real_images
def test_bad_settings_are_named(
    tiny: dict[str, Any], tiny_clip: str, settings: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        SamPromptSemanticEnv(**{**tiny, "dataset": "wbc-cell", "clip": tiny_clip, **settings})


def test_the_rules_hold_what_shapes_an_episode() -> None:
    assert SemanticSettings(clip="ViT-B-32/openai").rules() == {
        "action_mode": "grid", "grid": 16, "max_prompts": 15, "view_scale": 1.0, "clip": "ViT-B-32/openai",
        "labeler": "policy", "stop": True, "repeats": False, "first_clicks": "nothing", "max_images": 0,
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------- specs and pictures


def test_vector_specs_survive_json(make_several: Callable[..., VectorEnv], same: Same) -> None:
    vector = make_several(2, autoreset_mode="SameStep", max_prompts=2)
    assert isinstance(vector, SamPromptSemanticVectorEnv)
    text = vector.spec.to_json()
    assert json.loads(text)["kwargs"]["autoreset_mode"] == "SameStep"
    same(vector.reset(seed=4), gymnasium.make_vec(EnvSpec.from_json(text), num_envs=2).reset(seed=4))


def test_pictures_show_clicks_and_no_cue(make: Make) -> None:
    env = make(render_mode="rgb_array")
    env.reset(seed=1, options={"points": [(20, 30, 0)]})
    frames = [env.render()]
    for action in (120, STOP):
        env.step(action)
        frames.append(env.render())
    left, _, side = env.engine.episodes.view[0]
    for frame in frames:
        drawn = frame[CAPTION:]
        rows, columns = np.nonzero((drawn == NEGATIVE).all(axis=-1))
        expected = [((at + 0.5) / side / 1.15 + 0.075 / 1.15) * 448 for at in (20 - left, 30)]
        assert [columns.mean(), rows.mean()] == pytest.approx(expected, abs=4)
        corners = drawn[26:34, 26:34]  # about where a dashed box around the image would begin
        assert not (corners == CUE).all(axis=-1).any()
    assert not (frames[0] == POSITIVE).all(axis=-1).any()
    assert (frames[1] == POSITIVE).all(axis=-1).any()
    assert all((one != other).any() for one, other in zip(frames, frames[1:], strict=False))


def test_stand_ins_are_marked(make: Make) -> None:
    env = make("SamPromptSemantic-VNCMitochondria-v0", data="synthetic")
    info = env.reset(seed=0)[1]
    assert (info["source"], info["text"]) == ("synthetic-mitochondria", DATASETS["vnc-mitochondria"].text)
