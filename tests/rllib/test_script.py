"""agents/train_rllib.py: a run, an agent that commands take, Ctrl-C, and a run that goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sam_gym.sb3 import SavedAgent
from sam_gym.trainers.run import read_log

ID = "SamPrompt-Synthetic-v0"
TINY = {"features_extractor_kwargs": {"embedding_channels": 32}}
TRAINING: dict[str, Any] = {"train_batch_size_per_learner": 32, "minibatch_size": 16, "num_epochs": 1}


def test_the_script(script: Callable[..., str | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run, an agent that commands take, and a run that goes on."""
    config = tmp_path / "few.yml"
    config.write_text(
        json.dumps({"num_envs": 4, "reward_scale": 10.0, "policy": "LightPolicy", "policy_kwargs": TINY,
                    "training": TRAINING})
    )  # fmt: skip
    folder = tmp_path / "run"
    settings = ("--set", "max_prompts=2", "--env", ID, "--checkpoint", "tiny_random", "--test-objects", 4)
    said = script("train_rllib.py", *settings, "--config", config, "--steps", 40, "--run-dir", folder)
    assert said is None
    agent = SavedAgent.load(folder / "model.zip")
    assert (agent.task, agent.settings["max_prompts"]) == ("SamPrompt", 2)
    assert len(list((folder / "evaluations").glob("*.json"))) == 2
    from ray.rllib.algorithms.algorithm import Algorithm

    def stop(self: Algorithm) -> dict[str, Any]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Algorithm, "train", stop)
        said = script("train_rllib.py", "--resume", folder, "--steps", 200)
    assert said is not None
    assert f"go on with: python agents/train_rllib.py --resume {folder}" in said
    before = read_log(folder)
    assert script("train_rllib.py", "--resume", folder, "--steps", before[-1].steps + 1) is None
    assert len(read_log(folder)) == len(before) + 1
    assert SavedAgent.load(folder / "model.zip").identity != agent.identity
