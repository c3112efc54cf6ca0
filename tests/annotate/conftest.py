"""What tests of annotation share: an image of eight generated sections, and an untrained agent that clicks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import pytest
from sb3_contrib import MaskablePPO

from sam_gym.annotate import Segmenter
from sam_gym.data import load_data
from sam_gym.sb3 import LightPolicy, SamVecEnv, save_agent
from sam_gym.sb3.saved import SavedAgent

SAM = {"checkpoint": "tiny_random", "device": "cpu", "precision": "exact"}


@pytest.fixture(scope="session")
def agent_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained agent with a judge."""
    env: Any = gymnasium.make_vec("SamPrompt-Synthetic-v0", num_envs=2, split="val", autoreset_mode="SameStep", **SAM)
    policy = {"judge": True}
    model = MaskablePPO(LightPolicy, SamVecEnv(env), n_steps=2, batch_size=4, seed=3, policy_kwargs=policy)
    file = tmp_path_factory.mktemp("agent") / "model.zip"
    save_agent(model, file)
    return file


@pytest.fixture(scope="session")
def segmenter(agent_file: Path) -> Segmenter:
    return Segmenter(SavedAgent.load(agent_file, "cpu"), **SAM)


@pytest.fixture(scope="session")
def sections() -> Any:
    """The images and objects."""
    return load_data("synthetic-em", "val")
