"""Reference observations hold a few kilobytes, and resolve to the last bit into what full ones spell out."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from numpy.typing import NDArray

from sam_gym.envs import references

MakeVec = Callable[..., gymnasium.vector.VectorEnv]
N, G = 5, 16
RATIO = {"SamPrompt-ISBI-v0": 14, "SamBoxRefine-ISBI-v0": 13, "SamPromptSemantic-VNCMitochondria-v0": 13}
"""By task: how many times smaller than full observations they are, at least."""


def tensors(seen: dict[str, NDArray]) -> dict[str, torch.Tensor]:
    """A batch as SB3 hands it to a policy: images in [0, 1], all float32."""
    return {
        name: torch.as_tensor(a).float() / (255 if a.dtype == np.uint8 else 1) for name, a in seen.items()
    }  # fmt: skip


@pytest.fixture(params=list(RATIO))
def both(make_vec: MakeVec, tiny_clip: str, request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """A vector environment with full observations and one with references."""
    return tuple(
        make_vec(N, request.param, observation=name, autoreset_mode="SameStep", max_prompts=3, clip=tiny_clip)
        for name in ("full", "reference")
    )


def test_they_resolve_into_full_observations(both: tuple[Any, Any]) -> None:
    both[0].action_space.seed(0)
    full, short = (env.reset(seed=3)[0] for env in both)
    for _ in range(9):  # three episodes and more
        resolved = references.resolve(tensors(short), G)
        expected = tensors(full)
        assert resolved.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(resolved[name], tensor), name
        actions = both[0].action_space.sample()
        (full, rewards, *_, infos), (short, same_rewards, *_, same_infos) = (env.step(actions) for env in both)
        np.testing.assert_array_equal(rewards, same_rewards)
        assert infos.keys() == same_infos.keys()


def test_what_was_resolved_may_be_written_into(both: tuple[Any, Any]) -> None:
    short, _ = both[1].reset(seed=3)
    first = references.resolve(tensors(short), G)
    kept = {name: tensor.clone() for name, tensor in first.items()}
    for tensor in first.values():
        tensor.zero_()
    second = references.resolve(tensors(short), G)
    assert all(torch.equal(second[name], kept[name]) for name in ("maps", "embedding"))


def test_scenes_that_were_forgotten_are_made_again(both: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    short, _ = both[1].reset(seed=3)
    expected = references.resolve(tensors(short), G)
    for name in ("_maps", "_embeddings"):
        monkeypatch.setattr(references, name, references.EmbeddingCache(1))  # keeps the newest only
    calls = both[1].engine.backend.encoder_calls
    again = references.resolve(tensors(short), G)
    assert all(torch.equal(again[name], expected[name]) for name in expected)
    assert both[1].engine.backend.encoder_calls == calls


def test_references_are_small(both: tuple[Any, Any]) -> None:
    full, short = (env.single_observation_space for env in both)
    size = {name: sum(s.dtype.itemsize * int(np.prod(s.shape)) for s in space.values()) for name, space in
            (("full", full), ("reference", short))}  # fmt: skip
    assert size["reference"] < 4600
    assert size["full"] > RATIO[both[0].spec.id] * size["reference"]


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has seen nothing yet."""
    monkeypatch.setattr(references, "_images", {})
    for name in ("_maps", "_embeddings"):
        monkeypatch.setattr(references, name, references.EmbeddingCache(references.SCENE_BYTES))


def test_a_process_is_told_of_images_that_others_see(both: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    short, _ = both[1].reset(seed=3)
    expected = references.resolve(tensors(short), G)
    forget(monkeypatch)
    with pytest.raises(ValueError, match=r"which no environment of this process has seen: .*references.know\(env\)"):
        references.resolve(tensors(short), G)
    references.know(both[1])
    resolved = references.resolve(tensors(short), G)
    assert all(torch.equal(resolved[name], expected[name]) for name in expected)


def test_a_copy_knows_its_images(both: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    env = both[1]
    env.reset(seed=3)
    actions = env.action_space.sample()
    stored = pickle.dumps(env)
    expected = references.resolve(tensors(env.step(actions)[0]), G)
    forget(monkeypatch)
    copy = pickle.loads(stored)
    resolved = references.resolve(tensors(copy.step(actions)[0]), G)
    for name, tensor in expected.items():
        assert torch.equal(resolved[name], tensor), name


def test_numbers_are_float32_and_tell_encoders_and_images_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{encoder} {key}" for encoder in ("one", "two") for key in range(5000)]
    numbers = np.array([references._number(name) for name in names])
    assert len(np.unique(numbers)) == len(names)
    assert np.array_equal(numbers, numbers.astype(np.float32))
    sizes = np.abs(numbers)
    assert sizes.min() >= np.finfo(np.float32).tiny
    assert sizes.max() < 4
    monkeypatch.setattr(references, "_images", {})
    monkeypatch.setattr(references, "_number", lambda name: 1.0)
    pixels, backend = np.zeros((2, 2, 3), np.uint8), SimpleNamespace(encoder="one")
    assert references.register(backend, pixels, "a") == references.register(backend, pixels, "a")
    with pytest.raises(ValueError, match="two images have the same reference, 1.0, by chance"):
        references.register(backend, pixels, "b")


@pytest.mark.parametrize("env_id", ["SamPrompt-ISBI-v0", "SamBoxRefine-ISBI-v0", "SamPrefer-ISBI-v0"])
@pytest.mark.parametrize("observation", ["full", "reference"])
def test_action_masks_can_be_observed(make_vec: MakeVec, make_env: Any, env_id: str, observation: str) -> None:
    """In every mode of autoreset an observation's mask is that of its own episode, the last one's included."""
    settings = {"observation": observation, "action_mask": True, "max_prompts": 2}
    if "BoxRefine" in env_id:
        settings["action_mode"] = "discrete"
    single = make_env(env_id, **settings)
    assert single.reset(seed=1)[0] in single.observation_space
    env = make_vec(3, env_id, autoreset_mode="SameStep", **settings)
    twin = make_vec(3, env_id, autoreset_mode="Disabled", **settings)
    seen, same = env.reset(seed=1)[0], twin.reset(seed=1)[0]
    env.action_space.seed(0)
    for _ in range(4):
        assert seen["action_mask"].dtype == np.int8
        np.testing.assert_array_equal(seen["action_mask"], env.action_masks())
        np.testing.assert_array_equal(same["action_mask"], seen["action_mask"])
        actions = env.action_space.sample()
        seen, _, ended, _, infos = env.step(actions)
        same, *_ = twin.step(actions)
        if ended.any():
            for row in np.flatnonzero(ended):
                last = infos["final_obs"][row]["action_mask"]
                np.testing.assert_array_equal(last, same["action_mask"][row])
            same, _ = twin.reset(options={"reset_mask": ended})


def test_masks_need_discrete_actions(make_env: Any) -> None:
    with pytest.raises(ValueError, match="action masks exist for discrete actions, not for 'point'"):
        make_env(action_mode="point", action_mask=True)


@pytest.mark.parametrize("env_id", list(RATIO))
def test_check_env(make_env: Callable[..., gymnasium.Env], tiny_clip: str, env_id: str) -> None:
    check_env(make_env(env_id, observation="reference", clip=tiny_clip).unwrapped, skip_render_check=True)


def test_unknown_observation(make_env: Callable[..., gymnasium.Env]) -> None:
    with pytest.raises(ValueError, match="unknown observation 'refrence'; did you mean 'reference'"):
        make_env(observation="refrence")
