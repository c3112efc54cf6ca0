"""Training of the recalibration module beside PPO: its batches, that it learns, and goes on as if never interrupted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from sb3_contrib import MaskablePPO
from torch import Tensor

from sam_gym.envs.base import EngineVectorEnv
from sam_gym.prompters import labelled_scores
from sam_gym.sb3 import Cloner, CloneSettings, SamVecEnv, SpatialPolicy
from sam_gym.sb3.recalibrating import RecalibratingSettings, RecalibrationCallback, Recalibrator
from sam_gym.sb3.teachers import ClickTeacher, teacher_of

Make = Callable[..., EngineVectorEnv]


@pytest.fixture
def make(tiny_clip: str) -> Make:
    def made(n: int = 4, **changes: Any) -> EngineVectorEnv:
        settings = {"split": "train", "checkpoint": "tiny_random", "device": "cpu", "clip": tiny_clip, "grid": 4}
        return gymnasium.make_vec(  # type: ignore[return-value]
            "SamPromptSemantic-Synthetic-v0", num_envs=n, vectorization_mode="vector_entry_point",
            autoreset_mode="SameStep",
            **{**settings, "labeler": "untrained", "max_prompts": 3, "max_images": 4, **changes},
        )  # fmt: skip

    return made


def weights(recalibrator: Recalibrator) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in recalibrator.module.parameters()]


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_learns_and_the_environment_labels_with_what_it_learned(make: Make) -> None:
    env = make(2)
    recalibrator = Recalibrator(env, RecalibratingSettings(updates=3, learning_rate=5e-3, turns=False), seed=0)
    env.reset(seed=0)
    losses = [recalibrator.update() for _ in range(6)]
    assert recalibrator.updates == 18
    assert losses[-1] < 0.75 * losses[0]
    assert env.engine.labeler is not None
    assert env.engine.labeler.module is recalibrator.module


def test_warm_up_clicks_at_random_and_can_be_interrupted(make: Make) -> None:
    env = make(2)
    recalibrator = Recalibrator(env, RecalibratingSettings(warm_up=3), seed=0)

    def interrupt(trained: Recalibrator, loss: float) -> None:
        assert loss > 0
        if trained.warmed_up == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recalibrator.warm_up(interrupt)
    recalibrator.warm_up(interrupt)
    assert (recalibrator.warmed_up, recalibrator.updates) == (3, 3)
    assert env.engine.episodes.prompts.tolist() == [2, 2]  # of the episodes that began after the interruption


@pytest.mark.parametrize("branch", ["implicit", "explicit"])
def test_a_batch_is_the_running_episodes(make: Make, branch: str) -> None:
    env = make(first_clicks="truth")
    recalibrator = Recalibrator(env, RecalibratingSettings(branch=branch), seed=0)
    env.reset(seed=0)
    embeddings, masks, maps, truths, inside = recalibrator._batch()
    assert len(embeddings) == 8  # all have only begun: as they are, and as they were before there was a mask
    assert (masks[4:] == 1).all()
    assert not (masks[:4] == 1).all()
    assert torch.equal(truths[:4], truths[4:])
    assert (maps is not None) == (branch == "explicit")
    env.step(np.array([0, 5, 10, 15]))
    embeddings, _, _, truths, inside = recalibrator._batch()
    assert len(embeddings) == len(truths) == len(inside) == 4
    for row in range(4):
        assert float(truths[row].mean()) == pytest.approx(env.engine.truth(row).mean(), abs=1e-5)  # images are square


def test_seed_decides(make: Make) -> None:
    runs = []
    for seed in (0, 0, 1):
        recalibrator = Recalibrator(make(), RecalibratingSettings(warm_up=2), seed)
        recalibrator.warm_up(lambda *_: None)
        runs.append(weights(recalibrator))
    assert equal(runs[0], runs[1])
    assert not equal(runs[0], runs[2])


def test_resumed_it_goes_on_as_if_never_interrupted(make: Make, tmp_path: Path) -> None:
    env, other = make(), make()
    whole = Recalibrator(env, RecalibratingSettings(updates=2), seed=0)
    env.reset(seed=3)
    whole.update()
    whole.store(tmp_path / "state.pt")
    again = Recalibrator(other, RecalibratingSettings(updates=2), seed=0)
    again.resume(tmp_path / "state.pt")
    other.reset(seed=3)
    assert equal(weights(whole), weights(again))
    assert whole.update() == again.update()
    assert equal(weights(whole), weights(again))
    assert again.updates == 4


def test_only_where_there_is_a_module_and_training_data(make: Make) -> None:
    with pytest.raises(ValueError, match="labeler='untrained'"):
        Recalibrator(make(labeler="policy"), RecalibratingSettings(), 0)
    with pytest.raises(ValueError, match="not from the val split"):
        Recalibrator(make(split="val"), RecalibratingSettings(), 0)


@pytest.mark.parametrize(
    ("changes", "masked"),
    [({"stop": False, "repeats": True, "first_clicks": "truth", "reward": "hit"}, True), ({}, False)],
)
@pytest.mark.parametrize("observation", ["full", "reference"])
def test_beside_ppo(make: Make, changes: dict[str, Any], masked: bool, observation: str) -> None:
    env = make(observation=observation, **changes)
    recalibrator = Recalibrator(env, RecalibratingSettings(updates=1), seed=0)
    channels = {"embedding_channels": env.engine.backend.embedding_channels} if observation == "reference" else {}
    model = MaskablePPO(
        SpatialPolicy, SamVecEnv(env), n_steps=4, batch_size=8, n_epochs=1, gae_lambda=1.0, seed=0, device="cpu",
        policy_kwargs={"features_extractor_kwargs": {"masked": masked, **channels}},
    )  # fmt: skip
    before = weights(recalibrator)
    policy_before = [parameter.detach().clone() for parameter in model.policy.parameters()]
    model.learn(16, callback=RecalibrationCallback(recalibrator))
    assert recalibrator.updates == 4  # one a step of all environments
    assert not equal(before, weights(recalibrator))
    assert not equal(policy_before, list(model.policy.parameters()))


def test_the_masked_state_is_the_embedding_times_the_mask(make: Make) -> None:
    env = make(first_clicks="truth")
    model = MaskablePPO(
        SpatialPolicy, SamVecEnv(env), n_steps=4, batch_size=8, seed=0, device="cpu",
        policy_kwargs={"features_extractor_kwargs": {"masked": True}},
    )  # fmt: skip
    seen = {name: torch.as_tensor(array) for name, array in env.reset(seed=0)[0].items()}
    before = model.policy.outputs_and_values(seen)[0]
    others = {"state": 1 - seen["state"], "text": -seen["text"]}
    maps = seen["maps"].clone()
    maps[:, [0, 1, 2, 4, 5, 6]] = 9
    assert torch.equal(model.policy.outputs_and_values({**seen, **others, "maps": maps})[0], before)
    maps[:, 3] = 0
    empty = [model.policy.outputs_and_values({**seen, "maps": maps, "embedding": e})[0] for e in (
        seen["embedding"], -seen["embedding"]
    )]  # fmt: skip
    assert torch.equal(*empty)
    assert not torch.equal(empty[0], before)


def test_the_teacher_knows_the_modules_labels(make: Make) -> None:
    env = make()
    observations, _ = env.reset(seed=0)
    targets, allowed = teacher_of(env, 3).label(observations, env, np.random.default_rng())
    scores = labelled_scores(env)
    np.testing.assert_allclose(targets.sum(axis=1), 1, rtol=1e-5)
    assert (targets[:, :16][scores == 0] == 0).all()
    assert np.array_equal(targets[:, 16] == 1, scores.max(axis=1) == 0)
    assert allowed.shape == (4, 17)
    with pytest.raises(ValueError, match="nobody to clone"):
        teacher_of(make(stop=False), 3)


@pytest.mark.parametrize("which", range(8))
def test_targets_of_labelled_cells_turn_with_what_is_seen(which: int) -> None:
    seen = torch.zeros(1, 3, 4, 4)
    seen[0, :, 1, 2] = 1
    target = torch.cat([seen[:, 0].flatten(1), torch.tensor([[0.25]])], dim=1)
    arrays = {"maps": seen, "embedding": seen, "state": torch.zeros(1, 5), "allowed": target > 0, "target": target}
    turned = ClickTeacher(3).turn(arrays, which)
    assert torch.equal(turned["target"][0, :16], turned["embedding"][0, 0].flatten())
    assert float(turned["target"][0, 16]) == 0.25


def test_the_oracle_of_labelled_cells_can_be_cloned(make: Make, tmp_path: Path) -> None:
    env = make(2)
    model = MaskablePPO(SpatialPolicy, SamVecEnv(env), n_steps=4, batch_size=8, seed=0, device="cpu")
    settings = CloneSettings(total_timesteps=8, round_steps=2, gradient_steps=2, batch_size=8, own_actions=1)
    cloner = Cloner(model.policy, env, settings, tmp_path, seed=0, gamma=0.99, reward_scale=10)
    before = [parameter.detach().clone() for parameter in model.policy.parameters()]
    cloner.run(lambda *_: None)
    assert cloner.rounds == 2
    assert not equal(before, list(model.policy.parameters()))
