"""Learning to move boxes: the teacher's labels, what symmetries do to them, BoxPolicy, and PPO with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from torch import Tensor

from sam_gym.envs.box_refine import SideMoves
from sam_gym.envs.observations import STATE
from sam_gym.envs.shown_prompts import BOX
from sam_gym.evaluation import evaluate
from sam_gym.prompters import oracle_box
from sam_gym.sb3 import BoxPolicy, Cloner, CloneSettings, ModelPrompter, SamVecEnv, load_model
from sam_gym.sb3.extractors import moves_to_mask
from sam_gym.sb3.teachers import BoxTeacher, teacher_of

SIDE = 64
FIRST = len(STATE)


@pytest.fixture
def boxes(small: dict[str, Any]) -> dict[str, Any]:
    return {**small, "id": "SamBoxRefine-Synthetic-v0"}


def vector(boxes: dict[str, Any], n: int = 4, **changes: Any) -> Any:
    return gymnasium.make_vec(num_envs=n, **{**boxes, "autoreset_mode": "SameStep", **changes})


def model_of(boxes: dict[str, Any], **changes: Any) -> PPO:
    env = SamVecEnv(vector(boxes, **changes))
    return PPO(BoxPolicy, env, n_steps=4, batch_size=8, n_epochs=1, seed=0, device="cpu")


def random_observations(n: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "maps": torch.randint(0, 256, (n, 6, 64, 64), generator=generator, dtype=torch.uint8),
        "embedding": torch.randn(n, 32, 16, 16, generator=generator),
        "state": torch.rand(n, 13, generator=generator),
    }


# --------------------------------------------------------------------------------------------------- the teacher


@pytest.mark.parametrize("which", range(8))
def test_symmetries_keep_map_state_and_target_together(which: int) -> None:
    x0, y0, x1, y1 = 10, 20, 40, 30
    maps, state = torch.zeros(1, 6, SIDE, SIDE), torch.zeros(1, FIRST + 8)
    maps[0, 5, y0:y1, x0:x1] = 1
    maps[0, 3, y0 - 5 : y1, x0 : x1 + 9] = 1  # the mask: further out at the top by 5 and at the right by 9
    state[0, FIRST : FIRST + 4] = torch.tensor([x0, y0, x1, y1]) / SIDE
    state[0, FIRST + 4 :] = torch.tensor([x0, y0 - 5, x1 + 9, y1]) / SIDE
    outward = torch.tensor([[0.0, 5.0, 9.0, 0.0]])  # left, top, right, bottom: from the box to the mask
    turned = BoxTeacher().turn({"maps": maps, "embedding": maps, "state": state, "target": outward}, which)
    for channel, start in ((5, FIRST), (3, FIRST + 4)):
        rows, columns = np.nonzero(turned["maps"][0, channel].numpy())
        seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert (turned["state"][0, start : start + 4] * SIDE).round().int().tolist() == seen
    box, mask = turned["state"][0, FIRST : FIRST + 4], turned["state"][0, FIRST + 4 :]
    torch.testing.assert_close((mask - box) * torch.tensor([-1, -1, 1, 1]) * SIDE, turned["target"][0])


@pytest.mark.parametrize("which", range(8))
def test_symmetries_leave_the_zeros_of_an_empty_mask(which: int) -> None:
    state = torch.rand(1, FIRST + 8)
    state[0, FIRST + 4 :] = 0
    image = torch.zeros(1, 6, 4, 4)
    turned = BoxTeacher().turn({"maps": image, "embedding": image, "state": state, "target": torch.zeros(1, 4)}, which)
    assert (turned["state"][0, FIRST + 4 :] == 0).all()


def test_labels_are_the_oracles_moves(boxes: dict[str, Any]) -> None:
    env = vector(boxes, box_error=0.3)
    observations, _ = env.reset(seed=0)
    targets, allowed = teacher_of(env, 3.0).label(observations, env, np.random.default_rng())
    np.testing.assert_array_equal(targets, oracle_box(observations, env))
    assert np.abs(targets).max() > 0.2
    assert allowed.shape == (4, 1)
    assert allowed.all()


def test_nobody_teaches_discrete_moves(boxes: dict[str, Any]) -> None:
    env = vector(boxes, action_mode="discrete")
    with pytest.raises(ValueError, match="nobody to clone for action_mode='discrete'"):
        teacher_of(env, 3.0)


def test_cloning_learns_to_move(boxes: dict[str, Any], tmp_path: Path) -> None:
    """Of a few states it learns by heart how the box is to be moved, far better than by not moving it."""
    env = vector(boxes, 4, box_error=0.4)
    model = model_of(boxes)
    settings = CloneSettings(total_timesteps=16, round_steps=4, gradient_steps=150, batch_size=16, learning_rate=2e-3)
    cloner = Cloner(model.policy, env, settings, tmp_path, seed=0, gamma=0.99, reward_scale=10.0)
    cloner.run(lambda *_: None)
    (samples,) = cloner._data
    observations = {
        "maps": samples.maps,
        "state": samples.state,
        "embedding": samples.embedding[samples.episode].astype(np.float32),
    }
    moves, _ = model.policy.predict(observations, deterministic=True)
    assert np.abs(moves - samples.target).mean() < 0.6 * np.abs(samples.target).mean()


# ---------------------------------------------------------------------------------------------------- the policy


@pytest.mark.parametrize("training", [True, False])
def test_samples_do_not_mix(boxes: dict[str, Any], training: bool) -> None:
    policy = model_of(boxes).policy
    with torch.no_grad():
        policy.action_net.weight.mul_(50)
    policy.set_training_mode(training)
    eight, more = random_observations(8), random_observations(24, seed=1)
    many = {name: torch.cat([eight[name], more[name]]) for name in eight}
    actions = torch.zeros(8, 4)
    with torch.no_grad():
        alone = [*policy.outputs_and_values(eight), *policy.evaluate_actions(eight, actions)[:2]]
        among = [*policy.outputs_and_values(many), *policy.evaluate_actions(many, actions.repeat(4, 1))[:2]]
    assert alone[0].std() > 0.01
    for small_batch, large_batch in zip(alone, among, strict=True):
        torch.testing.assert_close(large_batch[:8], small_batch, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1])
def test_what_moves_along_an_axis_is_seen(boxes: dict[str, Any], axis: int) -> None:
    """Means over the whole view would not tell where a thing is; the profiles do, along both axes."""
    policy = model_of(boxes).policy
    here, there = random_observations(1), random_observations(1)
    here["maps"].zero_()
    there["maps"].zero_()
    place = [slice(24, 40), slice(24, 40)]
    here["maps"][0, :, place[0], place[1]] = 255
    place[axis] = slice(32, 48)
    there["maps"][0, :, place[0], place[1]] = 255
    with torch.no_grad():
        a, b = (policy.extract_features(seen) for seen in (here, there))
    assert (a - b).abs().max() > 1e-3 * a.abs().max()


def test_entries_of_the_state_are_found_by_name(boxes: dict[str, Any]) -> None:
    env = vector(boxes, box_error=0.4)
    state = env.reset(seed=1)[0]["state"]
    shown = env.settings.shown_prompts
    x0, y0, x1, y1 = state[:, shown.entries(*BOX)].T
    x, y, side = env.episodes.view.T
    np.testing.assert_allclose(
        np.stack([x0 * side + x, y0 * side + y, x1 * side + x, y1 * side + y], axis=1), env.episodes.box, atol=1e-3
    )
    assert shown.entries("view_size", "mask_y1") == [3, 12]
    with pytest.raises(ValueError, match="entry of the state.*'mask_y2'.*did you mean 'mask_y"):
        shown.entries("mask_y2")


def test_the_way_to_the_mask_is_told_in_actions() -> None:
    rng = np.random.default_rng(0)
    corners = np.sort(rng.uniform(0, 1, (5, 2, 2, 2)), axis=2).astype(np.float32)  # box or mask, low or high, x or y
    corners[:, :, 1] += 0.1
    boxes, masks = corners.reshape(5, 2, 4).transpose(1, 0, 2)
    state = torch.as_tensor(np.concatenate([rng.uniform(size=(5, FIRST)), boxes, masks], axis=1))
    moves = moves_to_mask(state.float())
    np.testing.assert_allclose(moves.clamp(-1, 1), SideMoves().toward(boxes, masks), atol=1e-5)
    state[:, -4:] = 0  # an empty mask
    assert (moves_to_mask(state) == 0).all()


def test_references_are_seen_as_what_they_refer_to(boxes: dict[str, Any]) -> None:
    full, reference = (vector(boxes, 3, observation=name) for name in ("full", "reference"))
    policies = [
        BoxPolicy(env.single_observation_space, env.single_action_space, lambda _: 1e-3, features_extractor_kwargs=how)
        for env, how in ((full, {}), (reference, {"embedding_channels": 32}))
    ]
    policies[1].load_state_dict(policies[0].state_dict())
    for policy in policies:
        policy.stop_below.zero_()  # what is untrained moves little
    moves = [
        policy.predict(env.reset(seed=5)[0], deterministic=True)[0]
        for policy, env in zip(policies, (full, reference), strict=True)
    ]
    np.testing.assert_allclose(moves[0], moves[1], atol=1e-5)
    assert np.abs(moves[0]).max() > 0


def test_small_moves_are_not_made_except_to_explore(boxes: dict[str, Any]) -> None:
    policy = model_of(boxes).policy
    observations = {name: value.numpy() for name, value in random_observations(3).items()}
    rows = torch.tensor([[0.2, -0.25, 0.0, 0.1], [0.1, -0.3, 0.0, 0.0], [0.0, 0.0, 0.0, 0.9]])
    policy.action_net.forward = lambda features: rows  # type: ignore[method-assign]
    moves, _ = policy.predict(observations, deterministic=True)
    np.testing.assert_array_equal(moves, [[0, 0, 0, 0], rows[1].numpy(), rows[2].numpy()])
    moves, _ = policy.predict(observations, deterministic=False)
    assert (moves[0] != 0).all()


def test_another_action_space_is_refused(boxes: dict[str, Any]) -> None:
    env = vector(boxes, 1, action_mode="discrete")
    with pytest.raises(ValueError, match=r"Box\(-1, 1, \(4,\)\) is needed, got Discrete\(10\)"):
        BoxPolicy(env.single_observation_space, env.single_action_space, lambda _: 1e-3)


def test_ppo_learns_is_saved_and_prompts(boxes: dict[str, Any], tmp_path: Path) -> None:
    model = model_of(boxes)
    before = [p.clone() for p in model.policy.parameters()]
    model.learn(32)
    assert any(not torch.equal(a, b) for a, b in zip(before, model.policy.parameters(), strict=True))
    model.save(tmp_path / "model.zip")
    env = vector(boxes, 2, autoreset_mode="Disabled")
    assert isinstance(env.single_action_space, spaces.Box)
    loaded = ModelPrompter(load_model(tmp_path / "model.zip", env.single_action_space, device="cpu"))
    assert loaded.identity == ModelPrompter(model).identity
    record = evaluate(loaded, env, name="agent", max_objects=4, progress=False)
    assert record.provenance["policy"] == loaded.identity
    assert record.provenance["size_error"] == "isotropic"
