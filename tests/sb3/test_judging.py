"""The judge learns IoU and changes nothing else; the anchor counts distance from another policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from sb3_contrib import MaskablePPO

from sam_gym.evaluation import evaluate
from sam_gym.sb3 import LightPolicy, ModelPrompter, SamVecEnv, load_model
from sam_gym.sb3.judging import JudgeSettings, train_judge


def ppo(small: dict[str, Any], **policy: Any) -> MaskablePPO:
    env = gymnasium.make_vec(num_envs=4, autoreset_mode="SameStep", **small)
    return MaskablePPO(
        LightPolicy, SamVecEnv(env), n_steps=4, batch_size=8, seed=0, device="cpu", learning_rate=1e-2, ent_coef=0.1,
        policy_kwargs=policy,
    )  # fmt: skip


def test_a_judge_learns_and_what_the_agent_does_stays(small: dict[str, Any], tmp_path: Path) -> None:
    model = ppo(small, judge=True)
    env: Any = gymnasium.make_vec(num_envs=4, autoreset_mode="SameStep", **small)
    before = {name: weight.clone() for name, weight in model.policy.state_dict().items()}
    few, many = (JudgeSettings(total_timesteps=200, gradient_steps=steps, batch_size=32) for steps in (1, 120))
    untrained = train_judge(model.policy, env, few, seed=0)
    assert train_judge(model.policy, env, many, seed=0) < 0.7 * untrained
    for name, weight in model.policy.state_dict().items():
        assert name.startswith("judge_") or torch.equal(weight, before[name])
    model.save(tmp_path / "model.zip")
    loaded = ModelPrompter(load_model(tmp_path / "model.zip", env.single_action_space, device="cpu"))
    observations, _ = env.reset(seed=3)
    mine, stored = ModelPrompter(model).judge, loaded.judge
    assert mine is not None
    assert stored is not None
    predicted = stored(observations)
    np.testing.assert_array_equal(predicted, mine(observations))
    assert ((predicted > 0) & (predicted < 1)).all()
    assert ModelPrompter(ppo(small)).judge is None


def test_an_agent_s_own_judge_chooses_in_an_evaluation(small: dict[str, Any]) -> None:
    model = ppo(small, judge=True)
    env: Any = gymnasium.make_vec(num_envs=4, autoreset_mode="Disabled", returns="best_predicted", **small)
    evaluate(ModelPrompter(model), env, max_objects=4, progress=False)
    assert env.engine.best.judge is not None
    evaluate(lambda observations, env: np.full(4, env.actions.stop), env, max_objects=4, progress=False)
    assert env.engine.best.judge is None


def test_the_anchor_is_the_divergence_from_the_other_policy(small: dict[str, Any]) -> None:
    model, other = ppo(small), ppo(small)
    other.policy.load_state_dict(model.policy.state_dict())
    policy: Any = model.policy
    observations = policy.obs_to_tensor(model.env.reset())[0]
    masks = np.ones((4, 513), np.bool_)
    masks[:, 7] = False
    actions = torch.tensor([1, 2, 300, 512])
    values, likelihood, _ = policy.evaluate_actions(observations, actions, masks)
    policy.stay_near(other.policy)
    anchored = policy.evaluate_actions(observations, actions, masks)
    torch.testing.assert_close(anchored[0], values)
    torch.testing.assert_close(anchored[1], likelihood)
    torch.testing.assert_close(anchored[2], torch.zeros(4))
    model.learn(32)
    moved = policy.evaluate_actions(observations, actions, masks)[2]
    mine, theirs = (
        p.outputs_and_values(observations)[0].masked_fill(~torch.as_tensor(masks), -torch.inf).log_softmax(dim=1)
        for p in (policy, other.policy)
    )
    terms = torch.where(torch.as_tensor(masks), mine.exp() * (mine - theirs), 0)
    torch.testing.assert_close(-moved, terms.sum(dim=1), rtol=1e-3, atol=1e-5)
    assert (moved < 0).all()
