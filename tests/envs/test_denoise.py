"""Denoise environments: the steps, the reward, the interfaces, and what is said of bad input."""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import gymnasium
import numpy as np
import pytest
import safetensors.torch
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from stable_baselines3.common.env_checker import check_env as check_env_for_sb3

from sam_gym.data.smears import NUCLEI
from sam_gym.envs import DenoiseVectorEnv
from sam_gym.generative.classifier import JUDGE, REWARD, Classifier
from sam_gym.generative.files import PACKAGED, weights_file
from sam_gym.generative.model import Denoiser, ModelError, sample, to_pixels
from sam_gym.generative.schedule import Schedule
from sam_gym.registration import denoise_ids

ID, N, STEPS = "Denoise-Smears-v0", 3, 3
MODES = [mode.value for mode in AutoresetMode]
SHAPE = (3, 32, 32)

# A sample of a normal distribution has no bounds; and SB3 takes float arrays of three axes for images.
EXPECTED = (
    "observation space minimum value is -infinity", "observation space maximum value is infinity",
    "observation x is an image but its `dtype`", "observation space x is an image but the upper and lower bounds",
    "The minimal resolution for an image is 36x36", "symmetric and normalized Box action space",
)  # fmt: skip


@pytest.fixture
def make(denoise: dict[str, Any]) -> Callable[..., gymnasium.Env]:
    return lambda **changes: gymnasium.make(ID, **{**denoise, **changes})


@pytest.fixture
def make_many(denoise: dict[str, Any]) -> Callable[..., DenoiseVectorEnv]:
    return lambda n=N, mode="NextStep", **changes: DenoiseVectorEnv(n, autoreset_mode=mode, **{**denoise, **changes})


@pytest.mark.parametrize("action_mode", ["sample", "noise"])
def test_checkers(make: Callable[..., gymnasium.Env], action_mode: str) -> None:
    env = make(action_mode=action_mode, render_mode="rgb_array").unwrapped
    for checker, more in ((check_env, {}), (check_env_for_sb3, {"warn": True})):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            checker(env, skip_render_check=False, **more)
        said = [str(warning.message) for warning in caught]
        assert not [text for text in said if not any(known in text for known in EXPECTED)]
        assert len(said) <= len(EXPECTED)


def test_an_episode(make: Callable[..., gymnasium.Env]) -> None:
    env = make()
    observation, info = env.reset(seed=0, options={"class": "bright"})
    assert (observation["class"], observation["t"], info) == (1, STEPS, {"class": "bright"})
    assert abs(observation["x"].std() - 1) < 0.05
    rng = np.random.default_rng(0)
    for left in (2, 1, 0):
        action = rng.uniform(-1, 1, SHAPE).astype(np.float32)
        observation, reward, terminated, truncated, info = env.step(action)
        np.testing.assert_array_equal(observation["x"], action)
        assert (observation["t"], terminated, truncated) == (left, left == 0, False)
        if left:
            assert reward == 0
            assert info == {"class": "bright"}
    said = env.unwrapped.engine.classifier(torch.as_tensor(action)[None])[0]
    assert reward == pytest.approx(float(said[1]), rel=1e-5)
    assert info["log_probability"] == reward
    assert info["correct"] == bool(said.argmax() == 1)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(action)
    right = make(reward="correct")
    for label in (0, 1):
        right.reset(options={"class": label})
        for _ in range(STEPS):
            _, reward, *_ = right.step(action)
        assert reward == float(said.argmax() == label)


def test_noise_is_the_plain_model(make_many: Callable[..., DenoiseVectorEnv]) -> None:
    """Normal noise as the action draws what `sample` draws; guidance too. The noise does not depend on the class."""
    for guidance in (1.0, 3.0):
        env = make_many(action_mode="noise", guidance=guidance)
        observation, _ = env.reset(seed=5, options={"class": [0, 1, 1]})
        other, _ = env.reset(seed=5, options={"class": 0})
        np.testing.assert_array_equal(observation["x"], other["x"])
        observation, _ = env.reset(seed=5, options={"class": [0, 1, 1]})

        draws = [torch.as_tensor(observation["x"])]
        generator = torch.Generator().manual_seed(1)
        for _ in range(STEPS):
            draws.append(torch.randn(N, *SHAPE, generator=generator))
            observation, *_ = env.step(draws[-1].numpy())
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "randn", Mock(side_effect=draws))
            expected = sample(env.engine.model, Schedule(STEPS), torch.tensor([0, 1, 1]), generator, guidance)
        np.testing.assert_allclose(observation["x"], expected, atol=1e-5)


def roll(env: VectorEnv, seed: Any, actions: list) -> list:
    said = [env.reset(seed=seed)]
    for action in actions:
        result = env.step(action)
        said.append(result)
        ended = result[2] | result[3]
        if env.metadata["autoreset_mode"] is AutoresetMode.DISABLED and ended.any():
            said.append(env.reset(options={"reset_mask": ended.copy()}))
    return said


def assert_near(one: Any, other: Any) -> None:
    """Equal, but for how a network rounds when it is given more rows at once."""
    if isinstance(one, dict):
        assert set(one) == set(other)
        for key in one:
            assert_near(one[key], other[key])
    elif isinstance(one, tuple | list):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_near(a, b)
    elif isinstance(one, np.ndarray) and one.dtype == object:
        assert_near(list(one), list(other))
    elif isinstance(one, np.ndarray) and one.dtype.kind == "f":
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, atol=1e-4, rtol=1e-4)
    elif isinstance(one, float):
        assert one == pytest.approx(other, abs=1e-4)
    else:
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("action_mode", "limit"), [("noise", None), ("sample", None), ("noise", 2)])
def test_equals_single_environments(denoise: dict[str, Any], mode: str, action_mode: str, limit: int | None) -> None:
    changes = {**denoise, "action_mode": action_mode}
    single = partial(gymnasium.make, ID, max_episode_steps=limit, **changes)
    sync = SyncVectorEnv([single] * N, autoreset_mode=AutoresetMode(mode))
    vector = DenoiseVectorEnv(N, autoreset_mode=mode, max_episode_steps=limit, **changes)
    rng = np.random.default_rng(2)
    actions = [rng.standard_normal((N, *SHAPE), np.float32) for _ in range(2 * STEPS + 2)]
    assert_near(roll(vector, [3, 9, 4], actions), roll(sync, [3, 9, 4], actions))


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_one_call_of_the_network_a_step(
    make_many: Callable[..., DenoiseVectorEnv], monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """Also where rows stand at different steps, and where some begin anew."""
    env = make_many(mode=mode, action_mode="noise")
    calls, forward = [], Denoiser.forward

    def counted(self: Denoiser, x: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        return forward(self, x, *rest)

    monkeypatch.setattr(Denoiser, "forward", counted)
    env.reset(seed=0)
    env.step(env.action_space.sample())
    env.reset(options={"reset_mask": np.array([True, False, False])})
    for _ in range(4):
        env.step(env.action_space.sample())
    assert calls == ([3, 3, 3, 1, 2] if mode == "NextStep" else [3, 3, 3, 3, 3])


def test_spec_survives_json(denoise: dict[str, Any], same: Callable[[Any, Any], None]) -> None:
    env = gymnasium.make_vec(ID, num_envs=2, autoreset_mode="SameStep", render_mode="rgb_array", **denoise)
    text = env.spec.to_json()
    assert json.loads(text)["kwargs"]["autoreset_mode"] == "SameStep"
    twin = gymnasium.make_vec(EnvSpec.from_json(text), num_envs=2)
    same(env.reset(seed=4), twin.reset(seed=4))
    assert len(twin.render()) == 2


def test_film_strip(make: Callable[..., gymnasium.Env]) -> None:
    env = make(render_mode="rgb_array", action_mode="noise")
    observation, _ = env.reset(seed=0)
    before = env.render()
    noise = to_pixels(torch.as_tensor(observation["x"])[None])[0]
    top = 64 + 8  # below the caption
    np.testing.assert_array_equal(before[top : top + 64 : 2, 8 : 8 + 64 : 2], noise)
    for _ in range(STEPS):
        observation, *_ = env.step(env.action_space.sample())
    after = env.render()
    last = to_pixels(torch.as_tensor(observation["x"])[None])[0]
    x = 8 + STEPS * (64 + 8)
    np.testing.assert_array_equal(after[top : top + 64 : 2, x : x + 64 : 2], last)
    assert before.shape == after.shape
    assert make().unwrapped.render() is None


# ------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("action_mode", ["sample", "noise"])
def test_actions_that_are_none(make_many: Callable[..., DenoiseVectorEnv], action_mode: str) -> None:
    env = make_many(action_mode=action_mode)
    before, _ = env.reset(seed=0)
    for value in (np.nan, np.inf):
        actions = np.zeros((N, *SHAPE), np.float32)
        actions[1, 0, 4, 4] = value
        with pytest.raises(ValueError, match=r"in -10..10; those of rows \[1\] are not, or are NaN"):
            env.step(actions)
    with pytest.raises(ValueError, match=r"\(3, 32, 32\) numbers, got \(3, 16, 16\)"):
        env.step(np.zeros((N, 3, 16, 16), np.float32))
    after, *_ = env.step(np.zeros((N, *SHAPE), np.float32))  # and nothing has happened before
    assert (after["t"] == before["t"] - 1).all()


@pytest.mark.parametrize("wanted", ["eosinophil", 2, -1, 0.5, None, True])
def test_classes_that_the_pictures_lack(make: Callable[..., gymnasium.Env], wanted: Any) -> None:
    env = make()
    if wanted is None:
        with pytest.raises(ValueError, match="unknown reset option 'clas'"):
            env.reset(options={"clas": 0})
        return
    with pytest.raises(ValueError, match=r"smears have no class .*; there are 0 'dark', 1 'bright'"):
        env.reset(options={"class": wanted})


def test_settings_that_are_none(make: Callable[..., gymnasium.Env], denoise: dict[str, Any]) -> None:
    for changes, complaint in (
        ({"action_mode": "noises"}, "did you mean 'noise'"),
        ({"reward": "iou"}, "unknown reward 'iou'"),
        ({"dataset": "smear"}, "did you mean 'smears'"),
        ({"steps": 0}, "steps=0"),
        ({"steps": 2.5}, "steps=2.5"),
        ({"sigma_floor": 0}, "sigma_floor=0"),
        ({"guidance": float("nan")}, "guidance=nan"),
        ({"render_mode": "human"}, "render_mode 'human'"),
    ):
        with pytest.raises(ValueError, match=complaint):
            DenoiseVectorEnv(1, **{**denoise, **changes})
    with pytest.raises(TypeError, match="did you mean 'guidance'"):
        make(guidence=2.0)


def test_files_that_do_not_fit(make: Callable[..., gymnasium.Env], denoise: dict[str, Any], tmp_path: Path) -> None:
    small, other, text = tmp_path / "small.safetensors", tmp_path / "other.safetensors", tmp_path / "text.safetensors"
    Classifier(("dark", "bright"), REWARD, size=28).save(small)
    Classifier(("dark", "bright", "grey"), REWARD).save(other)
    text.write_text("no tensors")
    foreign = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(1)}, foreign)
    for changes, complaint in (
        ({"classifier": str(small)}, r"28 x 28 px, and samples have 32 x 32"),
        ({"classifier": str(other), "action_mode": "noise"}, r"draws \['dark', 'bright'\]"),
        ({"classifier": denoise["model"]}, "holds denoiser, not a classifier"),
        ({"classifier": str(text)}, "is no safetensors file"),
        ({"classifier": str(foreign)}, "sam_gym did not write"),
        ({"classifier": str(tmp_path / "none")}, "there is no file"),
    ):
        with pytest.raises(ModelError, match=complaint):
            make(**changes)
    with pytest.raises(ValueError, match=r"32 x 32 px in 3 channels, and was given \(3, 28, 28\)"):
        Classifier.load(denoise["classifier"])(torch.zeros(1, 3, 28, 28))


def test_diffusers_missing(make: Callable[..., gymnasium.Env], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ModelError, match=r'pip install "sam_gym\[diffusion\]"'):
        make(action_mode="noise")
    make()  # acts in samples: the network is the agent's


def test_untrained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached_models: Path) -> None:
    """Environments of other sets say which command trains their models; trained ones are found."""
    with pytest.raises(ModelError, match="train_base --dataset WBC"):
        gymnasium.make("Denoise-WBC-v0")
    shutil.copytree(cached_models, cached_models.parent / "wbc-cell")
    assert gymnasium.make("Denoise-WBC-v0").unwrapped.engine.classes == ("dark", "bright")


def test_ids() -> None:
    assert denoise_ids() == [f"Denoise-{name}-v0" for name in ("Smears", "DSB", "WBC", "Synthetic")]
    for name in denoise_ids():
        EnvSpec.from_json(gymnasium.spec(name).to_json())


def test_the_models_of_the_smears_ship(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAM_GYM_CACHE", str(tmp_path))
    assert {weights_file("smears", what).parent for what in ("base", REWARD, JUDGE)} == {PACKAGED / "smears"}
    env = gymnasium.make("Denoise-Smears-v0", steps=2, device="cpu")
    _, info = env.reset(seed=0)
    assert info["class"] in NUCLEI
    env.close()
