"""Agents for whole classes: rewarded by the text alone; AlignSAM's recipes as shipped; a run with a module, resumed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from sam_gym.envs.semantic import SemanticSettings
from sam_gym.registration import env_ids
from sam_gym.sb3.recalibrating import RecalibratingSettings, RecalibrationCallback
from sam_gym.semantics.recalibration import RecalibrationModule
from sam_gym.training import evaluation_kwargs, read_recipe, train_kwargs

ENV_ID = "SamPromptSemantic-Synthetic-v0"
SECTION = {
    "n_envs": 2, "n_timesteps": 16, "policy": "SpatialPolicy", "n_steps": 4, "batch_size": 8, "n_epochs": 1,
    "gamma": 0.99, "reward_scale": 10.0, "env_kwargs": {"grid": 4, "max_prompts": 2, "max_images": 3},
    "eval_env_kwargs": {"max_images": 2}, "recalibration": {"warm_up": 2, "updates": 1},
    "clone": {"total_timesteps": 4, "round_steps": 2, "gradient_steps": 1, "batch_size": 4},
}  # fmt: skip


@pytest.mark.parametrize("recipe", ["alignsam", "alignsam_gain"])
def test_shipped_recipes_hold_together(recipe: str) -> None:
    for env_id in (name for name in env_ids() if name.startswith("SamPromptSemantic")):
        config = read_recipe(recipe, env_id)
        train = SemanticSettings(**train_kwargs(config))
        test = SemanticSettings(split="test", **evaluation_kwargs(config))
        module = RecalibratingSettings(**config["recalibration"])
        assert train.labeler == test.labeler == "untrained"
        assert test.max_images == 0
        if recipe == "alignsam":
            assert (train.grid, train.max_prompts, train.stop, train.repeats) == (10, 15, False, True)
            assert (train.reward, train.first_clicks, test.first_clicks) == ("hit", "truth", "labeler")
            assert (train.max_images, config["n_epochs"], config["gae_lambda"]) == (50, 20, 1.0)
            assert config["n_envs"] * config["n_steps"] == 50 * train.max_prompts
            assert (config["gamma"], config["clip_range"], config["learning_rate"]) == (0.99, 0.2, 1e-4)
            assert (module.branch, module.updates, module.learning_rate) == ("implicit", 1, 1e-4)
            assert not module.context


def test_a_run_interrupted_resumed_and_evaluated(
    script: Callable[..., str | None], tmp_path: Path, tiny_clip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run = tmp_path / "tiny.yml", tmp_path / "run"
    config.write_text(yaml.safe_dump({ENV_ID: SECTION}))
    settings = ["--checkpoint", "tiny_random", "--device", "cpu", "--clip", tiny_clip]
    on_step = RecalibrationCallback._on_step

    def interrupt(callback: RecalibrationCallback) -> bool:
        if callback.num_timesteps > 8:  # in the second of two rollouts
            raise KeyboardInterrupt
        return on_step(callback)

    with monkeypatch.context() as patched:
        patched.setattr(RecalibrationCallback, "_on_step", interrupt)
        said = script(
            "train_ppo.py", "--env", ENV_ID, "--config", config, "--run-dir", run, *settings,
            "--eval-objects", "2", "--test-objects", "2", "--evaluations", "1",
        )  # fmt: skip
    assert said is not None
    assert "stopped" in said
    stored = torch.load(run / "recalibration.pt", weights_only=True)
    assert (stored["warmed_up"], stored["updates"]) == (2, 2 + 4)
    kept = RecalibrationModule.load(run / "model.safetensors")
    assert script("train_ppo.py", "--resume", run) is None
    assert json.loads((run / "state.json").read_text())["stage"] == "done"
    record = json.loads((run / "record.json").read_text())
    assert [entry["name"] for entry in record["evaluation"]] == ["no prompt", "random", "oracle cells", "agent"]
    assert {entry["labeler"] for entry in record["evaluation"]} != {"untrained"}
    final = RecalibrationModule.load(run / "model.safetensors")
    if record["best"]["stage"] == "ppo":
        pairs = zip(kept.parameters(), final.parameters(), strict=True)
        assert not all(torch.equal(a, b) for a, b in pairs)
    assert script("evaluate.py", run / "model.zip", "--env", ENV_ID, *settings, "--objects", "2") is None
    again = json.loads((run / "evaluation-test" / "record.json").read_text())["evaluation"]
    assert again[-1]["iou_after_prompts"] == record["evaluation"][-1]["iou_after_prompts"]


def test_an_agent_for_a_class(
    script: Callable[..., str | None], tiny_clip: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same script; PPO is rewarded by agreement with the text."""
    run, config = tmp_path / "run", tmp_path / "class.yml"
    plain = {
        name: value for name, value in SECTION.items() if name not in ("recalibration", "env_kwargs", "eval_env_kwargs")
    }
    config.write_text(yaml.safe_dump({ENV_ID: plain}))
    target = ["--env", ENV_ID, "--checkpoint", "tiny_random", "--device", "cpu", "--clip", tiny_clip]
    few = ["--eval-objects", "2", "--test-objects", "4", "--reward", "clip"]
    assert script("train_ppo.py", *target, *few, "--config", config, "--run-dir", run) is None
    record = json.loads((run / "record.json").read_text())
    names = ["no prompt", "random", "centre", "uncertainty", "oracle clicks", "clone alone", "agent"]
    assert [entry["name"] for entry in record["evaluation"]] == names
    assert record["evaluation"][0]["gain_over_no_prompt"]["mean"] == 0
    assert (record["arguments"]["reward"], record["arguments"]["clip"]) == ("clip", tiny_clip)
    newest = record["points"][-1]  # the validation split's truths chose nothing
    assert (record["best"]["stage"], record["best"]["timesteps"]) == (newest["stage"], newest["stage_timesteps"])
    assert (run / "table.md").read_text().startswith("| prompter | 0 | 1 | 2 | 3 | 5 | 10 | 15 | gain |")
    assert "IoU of no prompt" in " ".join(capsys.readouterr().out.split())
    assert script("evaluate.py", run / "model.zip", *target, "--objects", "2", "--split", "val") is None
    assert "oracle clicks" in capsys.readouterr().out
    said = script("train_ppo.py", *target[:-1], "clip-mirco", "--run-dir", tmp_path / "other")
    assert said is not None
    assert said.startswith("error: unknown CLIP model 'clip-mirco'")
