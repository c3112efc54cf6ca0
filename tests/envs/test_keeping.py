"""What an episode returns: its last mask, or the one that is predicted to be the best."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

from sam_gym.envs import SamPromptVectorEnv
from sam_gym.evaluation import evaluate
from sam_gym.prompters import RandomPrompter

N = 3


def make(returns: str, **more: object) -> SamPromptVectorEnv:
    return gymnasium.make_vec(
        "SamPrompt-Synthetic-v0", num_envs=N, split="val", checkpoint="tiny_random", device="cpu",
        autoreset_mode="Disabled", max_prompts=3, returns=returns, **more,
    )  # type: ignore[return-value]  # fmt: skip


@pytest.mark.parametrize("attention", ["full", "foveated"])
@pytest.mark.parametrize("stops", [False, True])
def test_the_mask_with_the_highest_prediction_is_returned(attention: str, stops: bool) -> None:
    env, rng = make("best_predicted", attention=attention), np.random.default_rng(0)
    assert env.engine.best is not None
    predictions = iter(np.array([[0.3, 0.9, 0.1], [0.8, 0.2, 0.1], [0.5, 0.3, 0.2], [0.6, 0.1, 0.3]]))
    env.engine.best.judge = lambda observations: next(predictions)
    env.reset(seed=1)
    masks, ious, rewards = [], [], []
    for step in range(3):
        masks.append([env.mask(row) for row in range(N)])
        ious.append(env.engine.quality.iou.copy())
        actions = np.array([rng.choice(np.flatnonzero(allowed[:-1])) for allowed in env.action_masks()])
        if step == 2 and stops:
            actions[:] = env.actions.stop
        rewards.append(env.step(actions)[1])
    # row 0: the mask after one click; row 1: the first; row 2: the last one, or that after two clicks
    for row, best in ((0, 1), (1, 0)):
        np.testing.assert_array_equal(env.mask(row), masks[best][row])
        assert env.engine.quality.iou[row] == ious[best][row]
    if stops:
        np.testing.assert_array_equal(env.mask(2), masks[2][2])
    np.testing.assert_allclose(np.sum(rewards, axis=0), env.engine.quality.iou - ious[0], atol=1e-6)


def test_sam_itself_is_asked_where_nobody_else_judges() -> None:
    env = make("best_predicted")
    observations, _ = env.reset(seed=2)
    seen = [observations["state"][:, 1]]
    for action in (40, 300, 120):
        observations = env.step(np.full(N, action))[0]
        seen.append(observations["state"][:, 1])
    np.testing.assert_allclose(seen[-1], np.max(seen, axis=0), atol=1e-6)


def test_what_is_returned_is_a_rule_of_records_and_only_known_names_are_taken() -> None:
    record = evaluate(RandomPrompter(0), make("best_predicted"), max_objects=4, progress=False)
    assert record.provenance["returns"] == "best_predicted"
    assert "returns" not in evaluate(RandomPrompter(0), make("last"), max_objects=4, progress=False).provenance
    with pytest.raises(ValueError, match="unknown returns 'best'"):
        make("best")
