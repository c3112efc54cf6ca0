"""Gymnasium's and Stable-Baselines3's own checkers on every task and action mode, their warnings counted exactly.

What the checkers look at is the same whatever the images are, so they see each task on one data set; every id is made
and played all the same.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_for_sb3

import sam_gym
from sam_gym import data
from sam_gym.registration import CLASSES, OBJECTS, REPORTS, TASKS

# An embedding has no natural bounds, and Gymnasium would rather have some.
GYMNASIUM_WARNINGS = (
    "A Box observation space minimum value is -infinity",
    "A Box observation space maximum value is infinity",
)
# SB3 takes every Box of three axes for an image. The embedding (C, G, G) is none: it is float, unbounded, small, and
# (with the tiny SAM's 32 channels) thinner along its second axis. sam_gym.sb3's extractor reads it as what it is.
SB3_WARNINGS = (
    "your observation embedding is an image but its `dtype` is (float32)",
    "your observation space embedding is an image but the upper and lower bounds",
    "Treating image space as channels-last, while second dimension was smallest of the three",
    "The minimal resolution for an image is 36x36",
)


def warnings_of(check: Callable[..., Any], *args: Any, **kwargs: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check(*args, **kwargs)
    return [re.sub(r"\x1b\[\d+m", "", str(warning.message)) for warning in caught]


def check(env: gymnasium.Env) -> None:
    """Both checkers pass, and warn of nothing but what is explained above, once each."""
    for checker, arguments, expected in (
        (check_env, {"skip_render_check": False}, GYMNASIUM_WARNINGS),
        (check_env_for_sb3, {"warn": True, "skip_render_check": False}, SB3_WARNINGS),
    ):
        found = warnings_of(checker, env.unwrapped, **arguments)
        unexplained = [text for text in found if not any(known in text for known in expected)]
        assert not unexplained
        assert len(found) <= len(expected)


MODES = {
    "SamPrompt": ("grid", "point", "box"),
    "SamBoxRefine": ("continuous", "discrete"),
    "SamProofread": ("grid", "point", "box"),
    "SamPrefer": ("choice",),
    "SamPromptSemantic": ("grid",),
    "SamReport": ("regions",),
}


def test_every_task_is_checked() -> None:
    assert set(MODES) == {task.name for task in TASKS}
    assert len(sam_gym.env_ids()) == 4 * len(OBJECTS) + len(CLASSES) + len(REPORTS) == len(set(sam_gym.env_ids()))


@pytest.mark.parametrize(("task", "action_mode"), [(task, mode) for task, modes in MODES.items() for mode in modes])
def test_checkers(make_env: Callable[..., gymnasium.Env], tiny_clip: str, task: str, action_mode: str) -> None:
    check(make_env(f"{task}-Synthetic-v0", action_mode=action_mode, render_mode="rgb_array", clip=tiny_clip))


@pytest.mark.parametrize("env_id", sam_gym.env_ids())
def test_every_id_can_be_played(make_env: Callable[..., gymnasium.Env], tiny_clip: str, env_id: str) -> None:
    """Its images, its objects, one prompt; through `gymnasium.make` and its passive checker, without a warning."""
    env = make_env(env_id, max_prompts=1, clip=tiny_clip)
    observation, info = env.reset(seed=0)
    assert observation in env.observation_space
    dataset = data.DATASETS[env.spec.kwargs["dataset"]]
    assert info["source"] == ((env.spec.kwargs["data"] != "real" and dataset.stand_in) or dataset.name)
    space = env.action_space
    action = 0 if isinstance(space, gymnasium.spaces.Discrete) else np.full(space.shape, -0.5, space.dtype)
    observation, reward, terminated, truncated, info = env.step(action)
    assert observation in env.observation_space
    assert np.isfinite(reward)
    assert (terminated, truncated, info["prompts"]) == (True, False, 1)


@pytest.mark.weights
def test_checkers_with_real_weights(make_env: Callable[..., gymnasium.Env]) -> None:
    check(make_env(checkpoint="mobile_sam", max_prompts=1, render_mode="rgb_array"))


def test_making_and_using_an_environment_warns_of_nothing(make_env: Callable[..., gymnasium.Env]) -> None:
    """Through `gymnasium.make`, with its passive checker on; a warning is an error here."""
    env = make_env(render_mode="rgb_array")
    env.reset(seed=0)
    env.step(env.action_space.sample())
    env.render()
