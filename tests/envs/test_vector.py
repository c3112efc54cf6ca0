"""Vector environments are a SyncVectorEnv of single ones, to the last bit, at one decode call a step."""

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
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sam_gym.envs import (
    SamBoxRefineVectorEnv,
    SamPreferVectorEnv,
    SamPromptSemanticVectorEnv,
    SamPromptVectorEnv,
    SamReportVectorEnv,
)

N = 3
STOP = 2 * 16 * 16
MODES = [mode.value for mode in AutoresetMode]

any_action = st.integers(0, STOP)
action = st.one_of(any_action, st.just(STOP), st.sampled_from([120, 120 + 256]))  # stops and repeated cells are common
seeds = st.none() | st.integers(0, 2**31) | st.lists(st.integers(0, 2**31), min_size=N, max_size=N)


PROMPT, REFINE, SEMANTIC = "SamPrompt-ISBI-v0", "SamBoxRefine-ISBI-v0", "SamPromptSemantic-WBC-v0"
PREFER, REPORT = "SamPrefer-ISBI-v0", "SamReport-DSB-v1"
CLASSES = {
    PROMPT: SamPromptVectorEnv, REFINE: SamBoxRefineVectorEnv, SEMANTIC: SamPromptSemanticVectorEnv,
    PREFER: SamPreferVectorEnv, REPORT: SamReportVectorEnv,
}  # fmt: skip

REAL = [pytest.param(one, marks=pytest.mark.real_images) for one in (SEMANTIC, REPORT)]
"""Of datasets that nothing generated stands in for."""


def sync(
    tiny: dict[str, Any], mode: str, max_episode_steps: int | None, env_id: str = PROMPT, **changes: Any
) -> SyncVectorEnv:
    single = partial(gymnasium.make, env_id, max_episode_steps=max_episode_steps, **{**tiny, **changes})
    return SyncVectorEnv([single] * N, autoreset_mode=AutoresetMode(mode))


def roll(env: VectorEnv, seed: Any, actions: list, reset_seed: int) -> list:
    """Everything that an environment says while `actions` are played; ended episodes are reset where one must."""
    said = [env.reset(seed=seed)]
    for number, each in enumerate(actions):
        result = env.step(np.array(each, env.action_space.dtype))
        said.append(result)
        ended = result[2] | result[3]
        if env.metadata["autoreset_mode"] is AutoresetMode.DISABLED and ended.any():
            # with a seed now and then: those that are not reset must not take it
            again = reset_seed + number if number % 2 else None
            said.append(env.reset(seed=again, options={"reset_mask": ended.copy()}))
    said.append([generator.random() for generator in env.np_random])
    return said


@pytest.mark.parametrize(
    "env_id",
    [PROMPT, REFINE, PREFER, *(pytest.param(one, marks=pytest.mark.real_images) for one in (SEMANTIC, REPORT))],
)
@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=8)
@given(
    actions=st.lists(st.lists(action, min_size=N, max_size=N), min_size=1, max_size=8),
    seed=seeds.filter(lambda seed: seed is not None),
    limit=st.none() | st.integers(1, 3),
    reset_seed=st.integers(0, 99),
)
@example(actions=[[STOP] * N] * 3, seed=0, limit=None, reset_seed=0)
@example(actions=[[7, STOP, 7 + 256]] * 7, seed=5, limit=3, reset_seed=0)
@example(actions=[[7, STOP, 7 + 256]] * 7, seed=[5, 4, 5], limit=1, reset_seed=0)
def test_equals_single_environments(
    tiny: dict[str, Any],
    tiny_clip: str,
    same: Callable[[Any, Any], None],
    mode: str,
    env_id: str,
    actions: list,
    seed: Any,
    limit: int | None,
    reset_seed: int,
) -> None:
    changes = {"max_prompts": 3, "reward": {"iou": 1.0, "hit": 0.1}, "prompt_cost": 0.01}
    if env_id == SEMANTIC:
        changes |= {"dataset": "wbc-cell", "clip": tiny_clip, "reward": {"iou": 1.0, "clip": 0.5}}
    if env_id == REFINE:
        changes["action_mode"] = "discrete"
        actions = [[9 if one == STOP else one % 9 for one in each] for each in actions]
    if env_id == PREFER:
        actions = [[one % 4 for one in each] for each in actions]
    if env_id == REPORT:
        changes |= {
            "dataset": "dsb2018-153",
            "window_side": 128,
            "clip": tiny_clip,
            "reward": {"f1": 1.0, "grounded_f1": 1},
        }
        changes |= {"min_area": 1, "granularity": "largest"}  # so that the tiny SAM finds regions
        actions = [[256 if one == STOP else one % 256 for one in each] for each in actions]
    vector = CLASSES[env_id](N, autoreset_mode=mode, max_episode_steps=limit, **tiny, **changes)
    expected = roll(sync(tiny, mode, limit, env_id, **changes), seed, actions, reset_seed)
    same(roll(vector, seed, actions, reset_seed), expected)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("env_id", "action_mode"), [(PROMPT, "point"), (PROMPT, "box"), (REFINE, "continuous")])
def test_equals_single_environments_with_continuous_actions(
    tiny: dict[str, Any], same: Callable[[Any, Any], None], mode: str, env_id: str, action_mode: str
) -> None:
    changes = {"action_mode": action_mode, "max_prompts": 2}
    vector = CLASSES[env_id](N, autoreset_mode=mode, **tiny, **changes)
    vector.action_space.seed(1)
    actions = [vector.action_space.sample() for _ in range(7)]
    if env_id == REFINE:
        for number, each in enumerate(actions):
            each[number % N] = vector.engine.actions.stop
    else:
        assert (np.array(actions)[..., -1] > 0.5).any()  # some stop
    same(roll(vector, 3, actions, 0), roll(sync(tiny, mode, None, env_id, **changes), 3, actions, 0))


@pytest.mark.weights
def test_equals_single_environments_on_real_weights(tiny: dict[str, Any], same: Callable[[Any, Any], None]) -> None:
    actions = [[120, STOP, 390], [121, 122, 123]]
    real = {**tiny, "checkpoint": "mobile_sam"}
    vector = SamPromptVectorEnv(N, autoreset_mode="SameStep", **real)
    same(roll(vector, 0, actions, 0), roll(sync(real, "SameStep", None), 0, actions, 0))


@pytest.mark.parametrize(
    ("mode", "calls"),
    [("NextStep", [1, 1, 0, 1, 1]), ("SameStep", [1, 1, 1, 1, 1]), ("Disabled", [1, 1, 0])],
)
def test_one_decode_call_a_step(make_vec: Callable[..., VectorEnv], mode: str, calls: list[int]) -> None:
    """However many act and begin anew; a step in which all stop needs none, unless they begin anew in it."""
    env = make_vec(N, autoreset_mode=mode)
    backend = env.unwrapped.engine.backend
    for image in range(2):
        env.reset(options={"image": image})  # both sections are encoded from here on
    counted = []
    encoded = backend.encoder_calls
    for actions in ([1, 2, 3], [4, 5, 6], [STOP] * N, [7, 8, 9], [STOP, 10, 11])[: len(calls)]:
        before = backend.decoder_calls
        env.step(np.array(actions))
        counted.append(backend.decoder_calls - before)
    assert counted == calls
    before = backend.decoder_calls
    env.reset(seed=1)
    assert backend.decoder_calls == before + 1
    assert backend.encoder_calls == encoded


@pytest.mark.parametrize("mode", MODES)
def test_mixed_steps_need_one_decode_call(make_vec: Callable[..., VectorEnv], mode: str) -> None:
    """Some act, some stop, some begin anew: one call."""
    env = make_vec(N, autoreset_mode=mode, max_prompts=2)
    env.reset(seed=0)
    for actions in ([1, STOP, 3], [4, 5, 6], [7, STOP, 8]):
        before = env.unwrapped.engine.backend.decoder_calls
        _, _, terminated, truncated, _ = env.step(np.array(actions))
        assert env.unwrapped.engine.backend.decoder_calls == before + 1
        if mode == "Disabled" and (ended := terminated | truncated).any():
            env.reset(options={"reset_mask": ended})


@pytest.mark.parametrize("env_id", [one for one in CLASSES if one != REPORT])  # facts are found on the host
@pytest.mark.parametrize("observation", ["full", "reference"])
def test_no_full_size_mask_comes_to_the_host(
    make_vec: Callable[..., VectorEnv], tiny_clip: str, observation: str, env_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step copies small maps, scalars and boxes from the device; 512 x 512 and 64 x 64 logits stay there."""
    env = make_vec(N, env_id, observation=observation, clip=tiny_clip)
    env.reset(seed=0)
    copied: list[tuple[int, ...]] = []
    for name in ("cpu", "numpy", "tolist", "__array__"):
        original = getattr(torch.Tensor, name)

        def recorded(self: torch.Tensor, *args: Any, original: Any = original, **kwargs: Any) -> Any:
            copied.append(tuple(self.shape))
            return original(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, recorded)
    env.step(np.ones((N, 4), np.float32) if env_id == REFINE else np.arange(N))
    monkeypatch.undo()
    assert copied
    maps = [(N, 64, 64), *([(4 * N, 64, 64)] if env_id == PREFER else [])]
    numbers = {REFINE: 4, PREFER: 3 * 4}.get(env_id, 3)  # boxes have four, and there are three new candidates
    assert all(shape in maps or np.prod(shape) <= numbers * N for shape in copied), copied
    assert all(copied.count(shape) <= 2 for shape in maps)  # .cpu() and .numpy() of one tensor


def test_spec_survives_json(make_vec: Callable[..., VectorEnv], same: Callable[[Any, Any], None]) -> None:
    env = make_vec(2, autoreset_mode="SameStep", reward={"iou": 1.0, "hit": 0.1}, render_mode="rgb_array")
    assert isinstance(env, SamPromptVectorEnv)
    text = env.spec.to_json()
    assert json.loads(text)["kwargs"]["autoreset_mode"] == "SameStep"
    twin = gymnasium.make_vec(EnvSpec.from_json(text), num_envs=2)
    assert twin.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    same(env.reset(seed=4), twin.reset(seed=4))
    assert [frame.shape for frame in twin.render()] == [(512, 448, 3)] * 2


def test_make_vec_passes_the_step_limit_on(make_vec: Callable[..., VectorEnv]) -> None:
    env = make_vec(2, max_episode_steps=1)
    env.reset(seed=0)
    _, _, terminated, truncated, _ = env.step(np.array([3, STOP]))
    assert terminated.tolist() == [False, True]
    assert truncated.tolist() == [True, True]


def test_spaces(make_vec: Callable[..., VectorEnv]) -> None:
    env = make_vec(N)
    observation, _ = env.reset(seed=0)
    assert observation in env.observation_space
    assert env.step(env.action_space.sample())[0] in env.observation_space
    assert env.action_masks().shape == (N, STOP + 1)


def test_options_by_row(make_vec: Callable[..., VectorEnv]) -> None:
    env = make_vec(N)
    data = env.unwrapped.engine.data
    rows = [0, 1, len(data.objects) - 1]
    images = [int(data.objects.image_index[row]) for row in rows]
    objects = [int(data.objects.object_id[row]) for row in rows]
    cues = data.objects.box[rows]
    _, info = env.reset(options={"image": images, "object": objects, "cue": cues})
    assert info["object"].tolist() == objects
    assert info["image"].tolist() == [data.image_ids[i] for i in images]
    np.testing.assert_array_equal(env.unwrapped.engine.episodes.cue, cues)
    _, info = env.reset(options={"image": data.image_ids[1], "cue": (10, 20, 30, 40)})
    assert info["image"].tolist() == [data.image_ids[1]] * N
    assert (env.unwrapped.engine.episodes.cue == (10, 20, 30, 40)).all()


def test_options_equal_those_of_single_environments(
    tiny: dict[str, Any], make_vec: Callable[..., VectorEnv], same: Callable[[Any, Any], None]
) -> None:
    singles, vector = sync(tiny, "NextStep", None), make_vec(N)
    for options in ({"image": 1}, {"cue": (100, 100, 160, 150)}):
        same(vector.reset(seed=9, options=dict(options)), singles.reset(seed=9, options=dict(options)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": [0, 1]}, "'image' has 2 entries for 3"),
        ({"cue": np.zeros((2, 4))}, "'cue' has 2 entries for 3"),
        ({"picture": 1}, r"unknown reset options \['picture'\]"),
        ({"reset_mask": np.ones(2, np.bool_)}, r"shape \(3,\)"),
        ({"reset_mask": np.ones(3)}, "bool array"),
        ({"reset_mask": np.zeros(3, np.bool_)}, "with a True in it"),
    ],
)
def test_bad_options_are_named(make_vec: Callable[..., VectorEnv], options: dict[str, Any], message: str) -> None:
    env = make_vec(N)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        env.reset(options=options)


def test_a_refused_step_changes_nothing(make_vec: Callable[..., VectorEnv], same: Callable[[Any, Any], None]) -> None:
    env, twin = make_vec(N), make_vec(N)
    for each in (env, twin):
        each.reset(seed=0)
        each.step(np.array([1, STOP, 2]))
    with pytest.raises(ValueError, match="action 513"):
        env.step(np.array([3, 4, 513]))
    same(env.step(np.array([3, 4, 5])), twin.step(np.array([3, 4, 5])))


def test_reset_mask_touches_nobody_else(make_vec: Callable[..., VectorEnv]) -> None:
    env = make_vec(N, autoreset_mode="Disabled")
    env.reset(seed=0)
    before = env.step(np.array([5, STOP, 9]))[0]
    after, info = env.reset(options={"reset_mask": np.array([False, True, False])})
    for key, array in before.items():
        np.testing.assert_array_equal(after[key][[0, 2]], array[[0, 2]])
    assert info["_iou"].tolist() == [False, True, False]
    assert after["state"][:, 0].tolist() == pytest.approx([0.8, 1.0, 0.8])


def test_order_of_calls_is_enforced(make_vec: Callable[..., VectorEnv]) -> None:
    env = make_vec(N, autoreset_mode="Disabled")
    with pytest.raises(ResetNeeded, match="needs reset"):
        env.step(np.zeros(N, np.int64))
    with pytest.raises(ResetNeeded, match="first reset"):
        env.reset(options={"reset_mask": np.array([True, False, False])})
    env.reset(seed=0)
    env.step(np.array([1, STOP, 2]))
    with pytest.raises(ResetNeeded, match=r"episodes of \[1\] have ended"):
        env.step(np.array([1, 2, 3]))


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        ([1, 2], "2 actions for 3"),
        ([1, 2, STOP + 1], "action 513"),
        ([0, -1, 2], "action -1"),
        ([0.0, 1.0, 2.0], "0.0"),
    ],
)
def test_bad_actions_are_named(make_vec: Callable[..., VectorEnv], actions: list, message: str) -> None:
    env = make_vec(N)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        env.step(np.array(actions))


def test_bad_arguments_are_named(tiny: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="num_envs must be at least 1, got 0"):
        SamPromptVectorEnv(0, **tiny)
    with pytest.raises(ValueError, match="Sometimes"):
        SamPromptVectorEnv(1, autoreset_mode="Sometimes", **tiny)
    with pytest.raises(TypeError, match="did you mean 'max_prompts'"):
        SamPromptVectorEnv(1, max_prompt=2, **tiny)


def test_what_was_returned_is_never_touched_again(make_vec: Callable[..., VectorEnv]) -> None:
    env = make_vec(N, autoreset_mode="SameStep", max_prompts=2)
    kept = []
    observation, _ = env.reset(seed=0)
    for actions in ([1, 2, STOP], [3, 4, 5], [6, 7, 8]):
        finals = [o for o in env.step(np.array(actions))[-1].get("final_obs", ()) if o is not None]
        for each in (observation, *finals):
            kept.append((each, {key: array.copy() for key, array in each.items()}))
        observation = env.step(np.array(actions))[0]
    for seen, copy in kept:
        for key in seen:
            np.testing.assert_array_equal(seen[key], copy[key])
