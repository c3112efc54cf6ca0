"""SamPrefer: what is offered, what a choice is worth, and that what was chosen can be learned from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from sam_gym.envs import SamPreferEnv, SamPreferVectorEnv, references
from sam_gym.envs.observations import MAPS
from sam_gym.evaluation import evaluate
from sam_gym.prompters import RandomPrompter, oracle_choice, oracle_clicks, own_estimate
from sam_gym.sam.choices import read_choices
from sam_gym.sam.judges import ChoiceJudge
from sam_gym.sam.preference import PreferenceSettings, PreferenceTuner
from sam_gym.sb3 import ChoicePolicy, Cloner, CloneSettings

ID = "SamPrefer-Synthetic-v0"
TINY = {"checkpoint": "tiny_random", "device": "cpu", "split": "val"}


def make(n: int = 1, **settings: Any) -> SamPreferVectorEnv:
    return gymnasium.make_vec(ID, num_envs=n, autoreset_mode="Disabled", **{**TINY, **settings})  # type: ignore[return-value]


@pytest.mark.parametrize("attention", ["full", "foveated"])
def test_one_candidate_is_the_mask_itself_and_what_is_picked_becomes_it(attention: str) -> None:
    env = make(12, attention=attention)
    engine, (observations, _) = env.engine, env.reset(seed=0)
    orders = set()
    for step in range(3):
        offered, present = engine.episodes.offered.copy(), observations["maps"][:, MAPS.index("mask")]
        own = (offered == present[:, None]).all(axis=(2, 3))
        assert own.any(axis=1).all()
        orders |= set(own.argmax(axis=1).tolist())
        np.testing.assert_array_equal(observations["maps"][:, -4:], offered)
        np.testing.assert_allclose(observations["state"][:, -4:], engine.episodes.offered_iou.clip(0, 1))
        ious = np.stack([engine.offers(row).iou for row in range(12)])
        masks = [engine.offered_mask(row, row % 4) for row in range(12)]
        observations, rewards, terminated, _, infos = env.step(np.arange(12) % 4)
        picked = ious[np.arange(12), np.arange(12) % 4]
        np.testing.assert_allclose(infos["iou"], picked)
        np.testing.assert_allclose(rewards, picked - ious.mean(axis=1))
        np.testing.assert_array_equal(
            observations["maps"][:, MAPS.index("mask")], offered[np.arange(12), np.arange(12) % 4]
        )
        assert all((env.mask(row) == masks[row]).all() for row in range(12))
        assert terminated.all() == (step == 2)
    assert orders == {0, 1, 2, 3}


def test_references_stand_for_the_same() -> None:
    full, short = make(4), make(4, observation="reference")
    seen, small = full.reset(seed=2)[0], short.reset(seed=2)[0]
    tensors = {name: torch.as_tensor(array) for name, array in small.items()}
    for name in ("mask", "candidates"):
        tensors[name] = tensors[name].float() / 255  # as SB3 does
    resolved = references.resolve(tensors, 16)
    for name, array in seen.items():
        expected = array / np.float32(255) if name == "maps" else array
        np.testing.assert_allclose(resolved[name].numpy(), expected, atol=1e-6)


def test_grades_may_be_wrong_and_are_the_same_for_everybody() -> None:
    rewards = {}
    for wrong in (0.0, 1.0):
        for again in range(2):
            env = make(16, rating="grades", wrong=wrong, error="any")
            env.reset(seed=1)
            rewards[wrong, again] = env.step(np.zeros(16, np.int64))[1]
            assert set((rewards[wrong, again] * 4) % 1) == {0}  # a whole grade less a mean of four
            assert len(set(rewards[wrong, again])) > (wrong > 0)  # the tiny SAM's masks may all have the lowest grade
        np.testing.assert_array_equal(rewards[wrong, 0], rewards[wrong, 1])
    assert (rewards[0.0, 0] != rewards[1.0, 0]).any()


def test_choices_are_written_and_learned_from(tmp_path: Path) -> None:
    """The file alone is enough: a decoder makes the same candidates again, and what was chosen weighs the most."""
    file = tmp_path / "choices.csv"
    env = make(6, choices=str(file))
    env.reset(seed=0)
    offered, picks = [], []
    for _ in range(3):
        picks.append(oracle_choice({}, env))
        offered.append([[env.engine.offered_mask(row, k) for k in range(4)] for row in range(6)])
        env.step(picks[-1])
    comparisons = read_choices(file)
    assert [one.choice for one in comparisons] == np.concatenate(picks).tolist()
    chosen = PreferenceSettings(steps=5, batch_size=6, anchor=0.0)
    tuner = PreferenceTuner("tiny_random", env.data, chosen, env.backend, ChoiceJudge(file))
    for (row, one), masks in zip(tuner._compared, np.concatenate(offered), strict=True):
        embedding = tuner._embeddings(env.data, np.array([row]))[0]
        _, small, weights = tuner._rated(row, embedding, np.array(one.box, np.float32), one)
        assert one.choice is not None
        assert weights[one.choice] == weights.max() == 1
        assert weights.sum() == pytest.approx(0)
        kept = {small[i].numpy().tobytes() for i in range(4)}
        assert len(kept) == len({mask.tobytes() for mask in masks})
    losses: list[float] = []
    tuner.run(lambda _, loss: losses.append(loss))
    assert len(losses) == 5
    other = gymnasium.make_vec("SamPrefer-ISBI-v0", checkpoint="tiny_random", device="cpu", split="val").unwrapped
    with pytest.raises(ValueError, match="no image"):
        PreferenceTuner("tiny_random", other.data, chosen, env.backend, ChoiceJudge(file))


def test_prompters_pick_and_say_where_they_cannot() -> None:
    env = make(8)
    final = {
        name: evaluate(prompter, env, max_objects=24).iou
        for name, prompter in (("random", RandomPrompter(0)), ("own", own_estimate), ("oracle", oracle_choice))
    }
    assert (np.diff(final["oracle"], axis=1) >= -1e-9).all()  # the mask itself is among the candidates
    assert final["oracle"][:, -1].mean() > max(final["random"][:, -1].mean(), final["own"][:, -1].mean())
    with pytest.raises(ValueError, match="clicks on the grid"):
        oracle_clicks({}, env)
    with pytest.raises(ValueError, match="needs SamPrefer"):
        own_estimate({}, gymnasium.make_vec("SamPrompt-Synthetic-v0", **TINY).unwrapped)


def policy_of(env: Any) -> ChoicePolicy:
    torch.manual_seed(0)
    more = {"features_extractor_kwargs": {"embedding_channels": 32}}  # those of the tiny SAM
    return ChoicePolicy(env.single_observation_space, env.single_action_space, lambda _: 1e-3, **more)


def test_the_policy_looks_at_each_candidate_alike() -> None:
    """Candidates in another order have the same marks in that order; references are the same."""
    env, order = make(3), [2, 0, 3, 1]
    policy, seen = policy_of(env), env.reset(seed=4)[0]
    tensors = {name: torch.as_tensor(array) for name, array in seen.items()}
    other = {**tensors, "maps": tensors["maps"].clone(), "state": tensors["state"].clone()}
    other["maps"][:, 5:], other["state"][:, 5:] = tensors["maps"][:, 5:][:, order], tensors["state"][:, 5:][:, order]
    marks, values = policy.outputs_and_values(tensors)
    moved, same = policy.outputs_and_values(other)
    torch.testing.assert_close(moved, marks[:, order])
    torch.testing.assert_close(same, values)
    short = make(3, observation="reference")
    twin = policy_of(short)
    twin.load_state_dict(policy.state_dict())
    small = {name: torch.as_tensor(array) for name, array in short.reset(seed=4)[0].items()}
    torch.testing.assert_close(twin.outputs_and_values(small)[0], marks, rtol=1e-4, atol=1e-5)


def test_it_learns_from_the_truth_which_is_best(tmp_path: Path) -> None:
    env: Any = gymnasium.make_vec(ID, num_envs=8, autoreset_mode="SameStep", **TINY).unwrapped
    settings = CloneSettings(total_timesteps=160, round_steps=5, gradient_steps=20, batch_size=16, oracle_until=1.0,
                             own_actions=0.0, temperature=0.02, learning_rate=3e-3)  # fmt: skip
    losses: list[float] = []
    cloner = Cloner(policy_of(env), env, settings, tmp_path, seed=0, gamma=1.0, reward_scale=10.0)
    cloner.run(lambda _, found: losses.append(found["kl_to_oracle"]))
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rating": "grade"}, "did you mean 'grades'"),
        ({"wrong": 0.2}, "only grades are wrong"),
        ({"error": "neighbor"}, "neighbour"),
        ({"action_mode": "grid"}, "there is 'choice' only"),
    ],
)
def test_bad_settings_are_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamPreferEnv(dataset="synthetic-em", **{**TINY, **wrong})
