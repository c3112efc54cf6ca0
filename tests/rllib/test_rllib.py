"""RLlib trains on the vector environments, with and without runner processes, and evaluates as `evaluate` does.

`make test-lower` runs these, on RLlib's own version of Gymnasium; nothing else finds this folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from gymnasium.vector import VectorEnv

from sam_gym.sb3 import SavedAgent
from sam_gym.trainers.rllib import compare_evaluations, ppo_config, with_evaluation
from sam_gym.trainers.run import read_log

# RLlib's own: it deprecates what it uses itself, and leaves log files to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:ray.*"),
]

ID = "SamPrompt-Synthetic-v0"
TINY = {"features_extractor_kwargs": {"embedding_channels": 32}}
SETTINGS = {
    "split": "val", "checkpoint": "tiny_random", "device": "cpu", "max_prompts": 2, "observation": "reference",
    "reward": {"iou": 10},
}  # fmt: skip
TRAINING: dict[str, Any] = {"train_batch_size_per_learner": 32, "minibatch_size": 16, "num_epochs": 1}


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(params=[0, 2], ids=["no_runners", "two_runners"])
def algorithm(request: pytest.FixtureRequest) -> Iterator[Any]:
    """PPO; with runners the learner is in a process without an environment, and is sent references."""
    config = ppo_config(
        ID, SETTINGS, runners=request.param, num_envs=4, policy_kwargs=TINY, seed=0, lr=1e-3, **TRAINING
    )
    made = with_evaluation(config, 12, split="test").build_algo()
    yield made
    made.stop()


def test_it_learns_and_its_evaluation_is_ours(algorithm: Any) -> None:
    policy = algorithm.learner_group._learner.module["default_policy"].policy
    before = {name: weights.clone() for name, weights in policy.state_dict().items()}
    results = algorithm.train()
    assert results["env_runners"]["num_env_steps_sampled_lifetime"] >= 32
    assert np.isfinite(results["learners"]["default_policy"]["total_loss"])
    assert any(not torch.equal(weights, before[name]) for name, weights in policy.state_dict().items())
    compared = compare_evaluations(algorithm, reward_scale=10)
    assert len(compared.trainer) >= 12
    assert np.ptp(compared.trainer) > 1e-4  # it acts, and episodes differ
    np.testing.assert_allclose(compared.trainer, compared.sam_gym, atol=1e-6)


def test_forbidden_actions_are_not_taken(algorithm: Any) -> None:
    """Where one action alone is allowed, exploration takes it."""
    module = algorithm.get_module()
    space = algorithm.config.observation_space or algorithm.env_runner.module.observation_space
    seen = {name: torch.as_tensor(np.stack([part.sample()] * 3)) for name, part in space.spaces.items()}
    env = algorithm.eval_env_runner.env
    seen["reference"][:] = torch.as_tensor(env.reset(seed=0)[0]["reference"][:3])
    seen["action_mask"][:] = 0
    for row, action in enumerate((7, 300, 512)):
        seen["action_mask"][row, action] = 1
    logits = module.forward_exploration({"obs": seen})["action_dist_inputs"]
    taken = module.get_exploration_action_dist_cls().from_logits(logits).sample()
    assert taken.tolist() == [7, 300, 512]


@pytest.mark.parametrize("interrupted", [False, True])
def test_the_script(
    script: Callable[..., str | None], tmp_path: Path, interrupted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run, an agent that commands take, and a run that goes on."""
    ray.shutdown()  # the script has a cluster of its own
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
    if interrupted:
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


def test_it_steps_our_own_vector_environment(algorithm: Any) -> None:
    inner = algorithm.eval_env_runner.env.unwrapped
    assert isinstance(inner, VectorEnv)
    assert type(inner).__name__ == "SamPromptVectorEnv"
    assert inner.autoreset_mode.value == "NextStep"
