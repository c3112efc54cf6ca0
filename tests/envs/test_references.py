"""Reference observations hold a few kilobytes, and resolve to the last bit into what full ones spell out."""

from __future__ import annotations

import pickle
from collections.abc import Callable
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


def test_a_foreign_number_is_named(both: tuple[Any, Any]) -> None:
    short, _ = both[1].reset(seed=0)
    short["reference"][2, 0] = 1e6
    with pytest.raises(ValueError, match="reference to image 1000000, which no environment of this process"):
        references.resolve(tensors(short), G)


def test_a_copy_finds_its_images_where_numbers_differ(both: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """As in another process, which has given numbers to other images before."""
    env = both[1]
    env.reset(seed=3)
    actions = env.action_space.sample()
    stored = pickle.dumps(env)
    expected = references.resolve(tensors(env.step(actions)[0]), G)
    images = list(references._images[::-1])
    monkeypatch.setattr(references, "_images", images)
    monkeypatch.setattr(references, "_numbers", {})
    for name in ("_maps", "_embeddings"):
        monkeypatch.setattr(references, name, references.EmbeddingCache(1))
    copy = pickle.loads(stored)
    resolved = references.resolve(tensors(copy.step(actions)[0]), G)
    for name, tensor in expected.items():
        assert torch.equal(resolved[name], tensor), name


@pytest.mark.parametrize("env_id", list(RATIO))
def test_check_env(make_env: Callable[..., gymnasium.Env], tiny_clip: str, env_id: str) -> None:
    check_env(make_env(env_id, observation="reference", clip=tiny_clip).unwrapped, skip_render_check=True)


def test_unknown_observation(make_env: Callable[..., gymnasium.Env]) -> None:
    with pytest.raises(ValueError, match="unknown observation 'refrence'; did you mean 'reference'"):
        make_env(observation="refrence")
