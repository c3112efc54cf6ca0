"""`attention="foveated"`: the same episodes, nearly the same masks, one decode call a step."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

KWARGS = {"checkpoint": "tiny_random", "device": "cpu", "split": "val"}
TASKS = ("SamPrompt-Synthetic-v0", "SamBoxRefine-Synthetic-v0", "SamPromptSemantic-Synthetic-v0")


def vector(env_id: str, n: int = 3, **more):
    return gymnasium.make_vec(
        env_id, num_envs=n, vectorization_mode="vector_entry_point", autoreset_mode="SameStep", **KWARGS, **more
    )


@pytest.mark.parametrize("env_id", TASKS)
@pytest.mark.parametrize("observation", ["full", "reference"])
def test_episodes_run_with_one_decode_a_step_and_numbers_are_those_of_the_masks(env_id, observation):
    env = vector(env_id, attention="foveated", observation=observation)
    env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(7):
        before = env.backend.decoder_calls
        seen, rewards, *_ = env.step(env.action_space.sample())
        assert env.backend.decoder_calls - before == 1
        assert seen in env.observation_space
        assert np.isfinite(rewards).all()
        for row in range(env.num_envs):
            mask, truth = env.mask(row), env.truth(row)
            iou = (mask & truth).sum() / max(1, (mask | truth).sum())
            assert mask.shape == truth.shape
            assert env.info(row)["iou"] == pytest.approx(iou)


def test_a_vector_is_nearly_its_single_environments():
    many = vector("SamPrompt-Synthetic-v0", attention="foveated")
    singles = [gymnasium.make("SamPrompt-Synthetic-v0", attention="foveated", **KWARGS) for _ in range(3)]
    seen, _ = many.reset(seed=3)
    each = [env.reset(seed=3 + i)[0] for i, env in enumerate(singles)]
    for actions in ([136, 400, 20], [100, 60, 300]):
        for name, values in seen.items():
            alone = np.stack([one[name] for one in each])
            assert np.abs(values.astype(float) - alone).max() <= (1 if name == "maps" else 0.01)
        seen, rewards, *_ = many.step(np.array(actions))
        steps = [env.step(action) for env, action in zip(singles, actions, strict=True)]
        each = [step[0] for step in steps]
        np.testing.assert_allclose(rewards, [step[1] for step in steps], atol=0.01)


def test_the_default_is_full_and_what_cannot_be_is_told():
    assert vector("SamPrompt-Synthetic-v0", 1).settings.attention == "full"
    with pytest.raises(ValueError, match=r"unknown attention 'fovated'.*foveated"):
        vector("SamPrompt-Synthetic-v0", 1, attention="fovated")
    with pytest.raises(ValueError, match=r"precision='official' .* looks at whole images: leave attention at 'full'"):
        vector("SamPrompt-Synthetic-v0", 1, attention="foveated", precision="official")
