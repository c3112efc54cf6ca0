"""TorchRL's PPO on the vector environments: masks, resets of some rows, and the same evaluation as `evaluate`'s."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchrl.envs.utils import ExplorationType, set_exploration_type

from sam_gym.sb3 import SavedAgent
from sam_gym.trainers.policies import allowed_logits, new_policy
from sam_gym.trainers.run import read_log
from sam_gym.trainers.torchrl import actor_critic, compare_evaluations, make_env, suite_env

pytestmark = [
    pytest.mark.filterwarnings("ignore:Creating .*WeightUpdater which:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:torchrl"),
]

ID = "SamPrompt-Synthetic-v0"
SETTINGS: dict[str, Any] = {
    "split": "val", "checkpoint": "tiny_random", "device": "cpu", "max_prompts": 3, "reward": {"iou": 10},
}  # fmt: skip


def policy_for(env: Any, **kwargs: Any) -> Any:
    inner = suite_env(env)
    torch.manual_seed(0)
    return new_policy("LightPolicy", inner.single_observation_space, inner.single_action_space, **kwargs)


@pytest.mark.parametrize("observation", ["full", "reference"])
def test_its_evaluation_is_ours(observation: str) -> None:
    env = make_env(ID, 4, observation=observation, **SETTINGS)
    env.set_seed(3)
    tiny = {} if observation == "full" else {"features_extractor_kwargs": {"embedding_channels": 32}}
    compared = compare_evaluations(policy_for(env, **tiny), env, 10, reward_scale=10)
    assert len(compared.trainer) == 12
    assert np.ptp(compared.trainer) > 1e-4
    np.testing.assert_allclose(compared.trainer, compared.sam_gym, atol=1e-6)
    assert str(compared).startswith("12 episodes, mean return by the trainer ")


def test_actions_are_allowed_and_ended_rows_alone_begin_anew() -> None:
    env = make_env(ID, 3, **SETTINGS)
    env.set_seed(0)
    policy = policy_for(env, stop_share=0.4)
    actor = actor_critic(policy).get_policy_operator()
    inner = suite_env(env)
    seeds = inner.np_random_seed
    assert len(set(seeds)) == 3
    with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
        played = env.rollout(12, actor, break_when_any_done=False)
    masks, actions = played["action_mask"].bool(), played["action"]
    assert masks.gather(2, actions[..., None]).all()
    ended = played["next", "terminated"][..., 0]
    assert 0 < ended.sum() < ended.numel()
    assert not torch.equal(ended[0], ended[1])  # rows end at different times
    state = played["observation"]  # TorchRL's name of `state`
    assert (state[:, 1:, 0][ended[:, :-1]] == 1).all()  # a new episode has all prompts left
    assert (state[:, 1:, 0][~ended[:, :-1]] < 1).all()


def test_actor_and_critic_are_the_policy() -> None:
    env = make_env(ID, 2, **SETTINGS)
    policy = policy_for(env)
    operator = actor_critic(policy)
    assert {id(one) for one in operator.parameters()} <= {id(one) for one in policy.parameters()}
    with torch.no_grad():
        seen = env.rollout(4, break_when_any_done=False)  # (2, 4): two batch dimensions
        made = operator(seen.clone())
        flat = {name: seen[{"state": "observation"}.get(name, name)].flatten(0, 1) for name in policy.observation_space}
        logits, values = policy.outputs_and_values(flat)
    expected = allowed_logits(logits, seen["action_mask"].flatten(0, 1))
    torch.testing.assert_close(made["logits"].flatten(0, 1), expected)
    torch.testing.assert_close(made["state_value"].flatten(), values)


def test_the_script(script: Callable[..., str | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run, an agent that commands take, and a run that goes on after Ctrl-C."""
    config = tmp_path / "few.yml"
    training = {
        "lr": 1e-3, "gamma": 0.99, "lmbda": 0.95, "clip_epsilon": 0.2, "entropy_coeff": 0.01, "frames_per_batch": 24,
        "minibatch_size": 12, "num_epochs": 1, "critic_coeff": 0.5, "max_grad_norm": 0.5,
    }  # fmt: skip
    kwargs = {"features_extractor_kwargs": {"embedding_channels": 32}}
    config.write_text(
        json.dumps({"num_envs": 4, "reward_scale": 10.0, "policy": "LightPolicy", "policy_kwargs": kwargs,
                    "training": training})
    )  # fmt: skip
    folder = tmp_path / "run"
    settings = ("--set", "max_prompts=2", "--env", ID, "--checkpoint", "tiny_random", "--test-objects", 4)
    assert script("train_torchrl.py", *settings, "--config", config, "--steps", 48, "--run-dir", folder) is None
    assert [row.steps for row in read_log(folder)] == [24, 48]
    agent = SavedAgent.load(folder / "model.zip")
    assert (agent.task, agent.settings["max_prompts"]) == ("SamPrompt", 2)
    assert len(list((folder / "evaluations").glob("*.json"))) == 2

    from torchrl.collectors import Collector

    def stop(self: Collector) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Collector, "__iter__", stop)
        said = script("train_torchrl.py", "--resume", folder, "--steps", 72)
    assert f"go on with: python agents/train_torchrl.py --resume {folder}" in str(said)
    assert SavedAgent.load(folder / "model.zip").identity == agent.identity
    assert script("train_torchrl.py", "--resume", folder, "--steps", 72) is None
    assert [row.steps for row in read_log(folder)] == [24, 48, 72]
    assert SavedAgent.load(folder / "model.zip").identity != agent.identity
    assert "holds a run already" in str(script("train_torchrl.py", "--run-dir", folder, "--config", config))
    assert "there is no run of this script" in str(script("train_torchrl.py", "--resume", tmp_path))
