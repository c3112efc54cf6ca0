"""The sketch: drawn of the truth in the view, learned beforehand, frozen afterwards, stored with the agent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from sb3_contrib import MaskablePPO

from sam_gym.envs.observations import MAP_SIZE
from sam_gym.sb3 import ModelPrompter, SamVecEnv, SketchPolicy, load_model
from sam_gym.sb3.sketching import Sketcher, SketchSettings, sketch_iou, train_sketcher, truth_in_view

N = 4


@pytest.fixture
def env(small: dict[str, Any]) -> Any:
    return gymnasium.make_vec(num_envs=N, autoreset_mode="SameStep", **small)


def test_truth_in_view_is_where_the_object_is(env: Any) -> None:
    env.reset(seed=1)
    for row in range(N):
        drawn = truth_in_view(env, row) / 16
        left, top, side = env.episodes.view[row]
        pixel = side / MAP_SIZE
        lines, columns = np.nonzero(env.truth(row))
        inside = (
            (columns + 0.5 >= left) & (columns + 0.5 < left + side) & (lines + 0.5 >= top) & (lines + 0.5 < top + side)
        )
        assert drawn.sum() * pixel**2 == pytest.approx(inside.sum(), rel=0.05)
        middle = np.average(np.indices(drawn.shape), axis=(1, 2), weights=drawn)
        np.testing.assert_allclose(
            (middle[::-1] + 0.5) * pixel + (left, top),
            (columns[inside].mean() + 0.5, lines[inside].mean() + 0.5),
            atol=2 * pixel,
        )


def test_it_learns_to_draw(env: Any) -> None:
    torch.manual_seed(0)
    sketcher = Sketcher(env.single_observation_space)
    few, many = (SketchSettings(total_timesteps=160, gradient_steps=steps, batch_size=16) for steps in (1, 60))
    before = train_sketcher(sketcher, env, few, seed=0)
    assert train_sketcher(sketcher, env, many, seed=0) > max(0.5, before + 0.2)
    assert not any(weight.requires_grad for weight in sketcher.parameters())


def test_iou_of_sketches() -> None:
    truth, logits = torch.zeros(1, 8, 8), torch.full((1, 8, 8), -1.0)
    truth[0, :4], logits[0, 2:6] = 1, 1
    assert float(sketch_iou(logits, truth)) == pytest.approx(16 / 48)


def test_a_policy_s_sketch_is_used_kept_and_never_changed(small: dict[str, Any], tmp_path: Path, env: Any) -> None:
    model = MaskablePPO(
        SketchPolicy, SamVecEnv(env), n_steps=4, batch_size=8, seed=0, device="cpu", learning_rate=1e-2,
        policy_kwargs={"judge": True},
    )  # fmt: skip
    policy: Any = model.policy
    trained = Sketcher(env.single_observation_space)
    policy.use_sketcher(trained.state_dict())
    observations, _ = env.reset(seed=2)
    seen = policy.obs_to_tensor(observations)[0]
    before = policy.outputs_and_values(seen)[0]
    model.learn(32)
    for extractor in (policy.features_extractor, policy.judge_extractor):
        for name, weight in extractor.sketcher.state_dict().items():
            assert torch.equal(weight, trained.state_dict()[name])
    assert not torch.equal(policy.outputs_and_values(seen)[0], before)
    model.save(tmp_path / "model.zip")
    loaded: Any = load_model(tmp_path / "model.zip", env.single_action_space, device="cpu")
    torch.testing.assert_close(loaded.policy.outputs_and_values(seen)[0], policy.outputs_and_values(seen)[0])
    assert ModelPrompter(loaded).judge is not None
    with torch.no_grad():  # another sketch, another policy
        policy.features_extractor.sketcher.ink.bias += 3
    assert not torch.allclose(policy.outputs_and_values(seen)[0], loaded.policy.outputs_and_values(seen)[0])


def test_references_are_refused(small: dict[str, Any]) -> None:
    env = gymnasium.make_vec(num_envs=1, autoreset_mode="SameStep", observation="reference", **small)
    with pytest.raises(ValueError, match="observation='full'"):
        MaskablePPO(SketchPolicy, SamVecEnv(env), device="cpu")
