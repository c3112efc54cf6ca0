"""RLlib trains on the vector environments, with and without runner processes, and evaluates as `evaluate` does.

`make test-lower` runs these, on RLlib's own version of Gymnasium; nothing else finds this folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import ray
import torch
from gymnasium.vector import VectorEnv

from sam_gym.trainers.rllib import compare_evaluations, ppo_config, with_evaluation

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


@pytest.fixture(scope="module", params=[0, 2], ids=["no_runners", "two_runners"])
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


def test_it_steps_our_own_vector_environment(algorithm: Any) -> None:
    inner = algorithm.eval_env_runner.env.unwrapped
    assert isinstance(inner, VectorEnv)
    assert type(inner).__name__ == "SamPromptVectorEnv"
    assert inner.autoreset_mode.value == "NextStep"
