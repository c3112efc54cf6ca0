"""Agents for boxes, and the tuning of SAM's decoder that they work on: agents/train_ppo.py and tune_decoder.py."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from stable_baselines3 import PPO

from sam_gym.sam import load_sam
from sam_gym.sam.tuning import Tuner

SECTION = {
    "n_envs": 2, "n_timesteps": 32, "policy": "BoxPolicy", "n_steps": 8, "batch_size": 16, "n_epochs": 1,
    "learning_rate": "lin_1.0e-4", "gamma": 0.99, "reward_scale": 10.0,
    "clone": {"total_timesteps": 24, "round_steps": 4, "gradient_steps": 2, "batch_size": 8},
}  # fmt: skip
FEW = ["--eval-objects", "2", "--test-objects", "4"]

Script = Callable[..., str | None]
BOX_ID = "SamBoxRefine-Synthetic-v0"
TUNE = [
    "--dataset", "synthetic-em", "--checkpoint", "tiny_random", "--device", "cpu",
    "--steps", "6", "--batch-size", "2", "--eval-objects", "2",
]  # fmt: skip


def test_an_agent_for_boxes(script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same script, by the policy that the config names; on a decoder that was tuned."""
    decoder, run, config = tmp_path / "tuned.safetensors", tmp_path / "run", tmp_path / "boxes.yml"
    config.write_text(yaml.safe_dump({BOX_ID: SECTION}))
    assert script("tune_decoder.py", *TUNE, "--out", decoder) is None
    said = script(
        "train_ppo.py", "--env", BOX_ID, "--checkpoint", decoder, "--device", "cpu", *FEW, "--config", config,
        "--run-dir", run,
    )  # fmt: skip
    assert said is None
    policy = PPO.load(run / "model.zip").policy
    record = json.loads((run / "record.json").read_text())
    assert float(policy.stop_below) == pytest.approx(record["best"]["stop_below"])
    assert record["best"]["stop_below"] in policy.stop_choices
    assert record["best"]["gain"] >= max(point["gain"] for point in record["points"])  # theirs are of the largest value
    assert [e["name"] for e in record["evaluation"]] == ["box only", "random", "oracle box", "clone alone", "agent"]
    assert record["evaluation"][0]["checkpoint"].startswith("tuned-")
    capsys.readouterr()
    more = ["--env", BOX_ID, "--checkpoint", decoder, "--device", "cpu", "--objects", "2", "--split", "val"]
    assert script("evaluate.py", run / "model.zip", *more) is None
    assert "oracle box" in capsys.readouterr().out


def test_an_unknown_policy_is_named(script: Script, tmp_path: Path) -> None:
    config = tmp_path / "boxes.yml"
    config.write_text(yaml.safe_dump({BOX_ID: {**SECTION, "policy": "CirclePolicy"}}))
    said = script("train_ppo.py", "--env", BOX_ID, "--config", config, "--run-dir", tmp_path / "run")
    assert "unknown policy 'CirclePolicy'; " in str(said)


def test_tuning_says_what_it_gained(script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "runs" / "decoder.safetensors"
    assert script("tune_decoder.py", *TUNE, "--method", "decoder", "--out", out) is None
    printed = capsys.readouterr().out
    assert re.search(r"before: 0\.\d+ at 0%, 0\.\d+ at 20%, 0\.\d+ at 40%", printed)
    assert re.search(r"after: 0\.\d+ at 0%, 0\.\d+ at 20%, 0\.\d+ at 40%", printed)
    assert [path.name for path in out.parent.iterdir()] == ["decoder.safetensors"]
    assert "is there already" in str(script("tune_decoder.py", *TUNE, "--method", "decoder", "--out", out))


def test_tuning_is_taken_up_after_ctrl_c(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The decoder of an interrupted tuning is that of one that was not."""
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    assert script("tune_decoder.py", *TUNE, "--out", whole) is None
    step = Tuner._step

    def interrupted(tuner: Tuner) -> float:
        if tuner.steps_done == 3:
            raise KeyboardInterrupt
        return step(tuner)

    with monkeypatch.context() as patched:
        patched.setattr(Tuner, "_step", interrupted)
        assert "stopped after 3 steps; the same command goes on" in str(
            script("tune_decoder.py", *TUNE, "--out", parts)
        )
    assert not parts.exists()
    assert script("tune_decoder.py", *TUNE, "--out", parts) is None
    a, b = (load_sam(path).state_dict() for path in (whole, parts))
    assert all(torch.equal(a[name], b[name]) for name in a)
