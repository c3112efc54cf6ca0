"""`--wandb`: Weights & Biases' own client, offline, has what TensorBoard has; a resumed run is the same run there."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import yaml

from sam_gym.training import Training

Run = Callable[..., tuple[int, str, str]]
SECTION = {
    "n_envs": 2, "n_timesteps": 16, "policy": "LightPolicy", "n_steps": 8, "batch_size": 16, "n_epochs": 1,
    "learning_rate": 1.0e-4, "gamma": 0.99, "reward_scale": 10.0,
    "clone": {"total_timesteps": 8, "round_steps": 4, "gradient_steps": 2, "batch_size": 8},
}  # fmt: skip
TINY = (
    *("--env", "SamPrompt-Synthetic-v0", "--checkpoint", "tiny_random", "--device", "cpu"),
    *("--eval-objects", "2", "--test-objects", "2"),
)


def test_a_run_is_shown_and_goes_on(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_SILENT", "true")
    config, folder = tmp_path / "tiny.yml", tmp_path / "run"
    config.write_text(yaml.safe_dump({"SamPrompt-Synthetic-v0": SECTION}))

    def interrupted(training: Training) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Training, "ppo", interrupted)
        assert run("train", *TINY, "--config", str(config), "--run-dir", str(folder), "--wandb")[0] == 130
    monkeypatch.setattr(Training, "report", lambda training: None)
    assert run("train", "--resume", str(folder))[0] == 0
    state = json.loads((folder / "state.json").read_text())
    files = sorted((folder / "wandb").glob("offline-run-*/run-*.wandb"))  # by the time that stands in their names
    assert {file.stem for file in files} == {f"run-{state['wandb']}"}
    first, second = (written(file) for file in files)
    assert b"clone/kl_to_oracle" in first
    assert b"rollout/ep_rew_mean" not in first
    for name in (b"rollout/ep_rew_mean", b"train/approx_kl", b"validation/iou_gain", b"n_timesteps", b"MaskablePPO"):
        assert name in second


def written(file: Path) -> bytes:
    """A run's file, once the process that writes it has ended with it: that goes on for a moment after `finish`."""
    log, deadline = file.parent / "logs" / "debug-internal.log", time.monotonic() + 30
    while "stream: all finished" not in log.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    return file.read_bytes()


def test_without_weights_and_biases(run: Run, tmp_path: Path) -> None:
    with mock.patch.dict("sys.modules", wandb=None):
        status, _, err = run("train", *TINY, "--run-dir", str(tmp_path / "run"), "--wandb")
    assert status == 1
    assert "error: --wandb needs the extra wandb: pip install 'sam_gym[wandb]'" in err
    assert not (tmp_path / "run").exists()
