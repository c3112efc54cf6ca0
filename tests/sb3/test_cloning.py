"""Cloning: targets and returns by hand, symmetries that act alike on everything, and rounds that survive a Ctrl-C."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from sb3_contrib import MaskablePPO

from sam_gym.envs.foresight import Foresight
from sam_gym.sb3 import Cloner, CloneSettings, SamVecEnv, SpatialPolicy
from sam_gym.sb3 import cloning as cloning_module
from sam_gym.sb3.cloning import Samples, discounted
from sam_gym.sb3.teachers import ClickTeacher, click_target

G = 16
N = 4
SETTINGS = CloneSettings(total_timesteps=64, round_steps=4, gradient_steps=3, batch_size=8)  # four rounds


def cloner(small: dict[str, Any], folder: Path, settings: CloneSettings = SETTINGS, seed: int = 0) -> Cloner:
    env = gymnasium.make_vec(num_envs=N, autoreset_mode="SameStep", **small)
    model = MaskablePPO(SpatialPolicy, SamVecEnv(env), n_steps=4, batch_size=8, seed=seed, device="cpu")
    return Cloner(model.policy, env, settings, folder, seed=seed, gamma=0.99, reward_scale=10.0)


# ------------------------------------------------------------------------------------------------ targets, returns


def test_target_takes_the_deeper_sign_only() -> None:
    scores = np.array([0, 4, 2, 0, 3, 3, 0, 0], np.float32)  # a 2 x 2 grid: foreground, background
    target = click_target(scores, np.ones(9, np.bool_), sharpness=1.0)
    np.testing.assert_allclose(target, [0, 4 / 6, 2 / 6, 0, 0, 0, 0, 0, 0], rtol=1e-6)
    target = click_target(scores[[4, 5, 6, 7, 0, 1, 2, 3]], np.ones(9, np.bool_), sharpness=1.0)
    np.testing.assert_allclose(target, [0, 0, 0, 0, 0, 4 / 6, 2 / 6, 0, 0], rtol=1e-6)


def test_target_sharpness() -> None:
    target = click_target(np.array([1, 2, 0, 0, 0, 0, 0, 0], np.float32), np.ones(9, np.bool_), sharpness=3.0)
    np.testing.assert_allclose(target[:2], [1 / 9, 8 / 9], rtol=1e-6)


def test_target_stops_where_nothing_is_wrong() -> None:
    target = click_target(np.zeros(8, np.float32), np.ones(9, np.bool_), sharpness=3.0)
    assert target.tolist() == [0] * 8 + [1]


def test_target_gives_forbidden_cells_nothing() -> None:
    scores = np.array([0, 9, 2, 0, 3, 0, 0, 0], np.float32)
    allowed = np.ones(9, np.bool_)
    allowed[[1, 5]] = False  # the deepest cell is used up: the background error is now the deeper one
    assert click_target(scores, allowed, sharpness=3.0).tolist() == [0, 0, 0, 0, 1, 0, 0, 0, 0]
    allowed[[0, 2, 4, 6]] = False
    assert click_target(scores, allowed, sharpness=3.0).tolist() == [0] * 8 + [1]


def test_search_teaches_what_clicks_gain(small: dict[str, Any], tmp_path: Path) -> None:
    settings = CloneSettings(total_timesteps=16, round_steps=2, gradient_steps=1, candidates=12, temperature=0.05)
    cloning = cloner(small, tmp_path, settings)
    env = cloning.env
    observations, _ = env.reset(seed=4)
    targets, allowed = cloning.teacher.label(observations, env, np.random.default_rng(0))
    np.testing.assert_allclose(targets.sum(axis=1), 1, rtol=1e-5)
    assert ((targets > 0).sum(axis=1) == 13).all()  # stop among them
    assert not (targets > 0)[~allowed].any()
    best = targets[:, :-1].argmax(axis=1)
    before = env.engine.quality.iou.copy()
    gains = 0.05 * np.log(targets[np.arange(N), best] / targets[:, -1])
    foreseen = Foresight(env.engine).iou(np.arange(N), best)
    np.testing.assert_allclose(foreseen - before, gains, atol=1e-3)
    cloning.run(lambda cloner, losses: None)
    assert cloning.rounds == cloning.total_rounds


def test_targets_are_distributions_and_scores_are_left_alone() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        scores = (rng.random(32) * 30 * (rng.random(32) < 0.3)).astype(np.float32)
        allowed = np.append(rng.random(32) < 0.7, True)
        before = scores.copy()
        target = click_target(scores, allowed, sharpness=3.0)
        assert target.sum() == pytest.approx(1, abs=1e-5)
        assert (target >= 0).all()
        assert not target[~allowed].any()
        assert not (target[:16].any() and target[16:32].any())
        np.testing.assert_array_equal(scores, before)


def test_returns_by_hand() -> None:
    rewards = np.array([[1.0, 0.0], [2.0, 1.0], [4.0, 8.0]])
    ended = np.array([[False, False], [True, False], [False, False]])
    returns, complete = discounted(rewards, ended, gamma=0.5)
    np.testing.assert_allclose(returns, [[1 + 0.5 * 2, 0 + 0.5 * (1 + 0.5 * 8)], [2, 1 + 0.5 * 8], [4, 8]])
    np.testing.assert_array_equal(complete, [[True, False], [True, False], [False, False]])
    assert (returns.dtype, complete.dtype) == (np.float32, np.bool_)


def test_returns_do_not_cross_an_end() -> None:
    returns, complete = discounted(np.array([[1.0], [1.0], [1.0]]), np.array([[True], [True], [True]]), gamma=0.9)
    np.testing.assert_array_equal(returns, np.ones((3, 1)))
    assert complete.all()


# ------------------------------------------------------------------------------------------------------ symmetries


def marked(row: int, column: int, sign: int) -> dict[str, torch.Tensor]:
    """One sample with a mark at one cell, in every array that is laid out in the view."""
    maps, embedding = torch.zeros(1, 7, 64, 64, dtype=torch.uint8), torch.zeros(1, 3, G, G)
    maps[0, 2, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 255
    embedding[0, 1, row, column] = 1
    target, allowed = torch.zeros(1, 2 * G * G + 1), torch.ones(1, 2 * G * G + 1, dtype=torch.bool)
    action = sign * G * G + row * G + column
    target[0, action], target[0, -1], allowed[0, action] = 0.75, 0.25, False
    state, returns = torch.arange(5.0)[None], torch.tensor([3.0])
    return {
        "maps": maps,
        "embedding": embedding,
        "target": target,
        "allowed": allowed,
        "state": state,
        "returns": returns,
    }


@pytest.mark.parametrize("sign", [0, 1])
def test_symmetries_act_alike_on_everything(sign: int) -> None:
    seen = set()
    for which in range(8):
        turned = ClickTeacher(3.0).turn(marked(2, 5, sign), which)
        place = torch.nonzero(turned["target"][0, :-1].unflatten(0, (2, G, G)))
        assert place[:, 0].tolist() == [sign]
        row, column = place[0, 1:].tolist()
        seen.add((row, column))
        expected = marked(row, column, sign)
        assert turned.keys() == expected.keys()
        for name, array in expected.items():
            assert turned[name].equal(array), (which, name)
            assert turned[name].dtype == array.dtype
    assert seen == {(r, c) for a in (2, 13) for b in (5, 10) for r, c in ((a, b), (b, a))}


def test_the_first_symmetry_is_none() -> None:
    sample = marked(2, 5, 0)
    assert all(ClickTeacher(3.0).turn(sample, 0)[name].equal(array) for name, array in sample.items())


# ---------------------------------------------------------------------------------------------------------- rounds


def test_cloning_nears_the_oracle(small: dict[str, Any], tmp_path: Path) -> None:
    """As measured while fitting, and as PPO will use the policy."""
    settings = CloneSettings(total_timesteps=64, round_steps=4, gradient_steps=12, batch_size=12, learning_rate=2e-3)
    clone = cloner(small, tmp_path / "rounds", settings)
    losses: list[float] = []
    clone.run(lambda _, measured: losses.append(measured["kl_to_oracle"]))
    assert losses[-1] < losses[0] - 0.2
    samples = clone._data[0]
    untrained = cloner(small, tmp_path / "untrained", settings)
    assert divergence(clone.policy, samples) < divergence(untrained.policy, samples) - 0.5


def divergence(policy: SpatialPolicy, samples: Samples) -> float:
    """Mean KL divergence of the policy's choice from the oracle's."""
    observations = {
        "maps": torch.as_tensor(samples.maps),
        "embedding": torch.as_tensor(samples.embedding[samples.episode]).float(),
        "state": torch.as_tensor(samples.state),
    }
    target = torch.as_tensor(samples.target).float()
    with torch.no_grad():
        chosen = policy.get_distribution(observations, action_masks=samples.allowed).distribution.logits
    return float((target * (target.clamp(min=1e-8).log() - chosen)).sum(dim=1).mean())


def test_the_policy_is_fitted_to_what_it_will_see(small: dict[str, Any], tmp_path: Path) -> None:
    """Once maps were scaled to 0..1 twice while fitting, and once while acting: the clone was worthless."""
    clone = cloner(small, tmp_path)
    observations, _ = clone.env.reset(seed=0)
    largest: list[float] = []
    clone.policy.features_extractor.register_forward_pre_hook(
        lambda _, given: largest.append(float(given[0]["maps"].max()))
    )
    clone.policy.predict(observations, action_masks=clone.env.action_masks())
    clone._data.append(clone._collect(np.random.default_rng(0)))
    clone._fit(np.random.default_rng(0))
    assert len(largest) > SETTINGS.gradient_steps
    assert set(largest) == {1.0}


def test_a_policy_that_reads_is_fitted_with_the_text(small: dict[str, Any], tiny_clip: str, tmp_path: Path) -> None:
    clone = cloner({**small, "id": "SamPromptSemantic-Synthetic-v0", "clip": tiny_clip}, tmp_path)
    read: list[torch.Tensor] = []
    clone.policy.features_extractor.register_forward_pre_hook(lambda _, given: read.append(given[0]["text"]))
    before = clone.policy.features_extractor.read.weight.clone()
    clone._data.append(clone._collect(np.random.default_rng(0)))
    clone._fit(np.random.default_rng(0))
    text = torch.as_tensor(clone.env.engine.text_embedding)
    assert len(read) == SETTINGS.gradient_steps
    assert all(given.equal(text.expand(SETTINGS.batch_size, -1)) for given in read)
    assert not clone.policy.features_extractor.read.weight.equal(before)


def test_labels_are_the_oracles(small: dict[str, Any], tmp_path: Path) -> None:
    """While the oracle acts, each next state has had the likeliest click of the label before it."""
    samples = cloner(small, tmp_path)._collect(np.random.default_rng(0))
    assert samples.maps.shape == (16, 7, 64, 64)
    taken = samples.target.reshape(4, N, -1).argmax(axis=2)
    allowed = samples.allowed.reshape(4, N, -1)
    episode = samples.episode.reshape(4, N)
    for step in range(3):
        for row in range(N):
            if episode[step, row] == episode[step + 1, row] and taken[step, row] < 2 * G * G:
                assert allowed[step, row, taken[step, row]]
                assert not allowed[step + 1, row, taken[step, row]]
    np.testing.assert_allclose(samples.target.astype(np.float32).sum(axis=1), 1, atol=5e-3)
    assert len(samples.embedding) == samples.episode.max() + 1


def test_an_interrupted_clone_goes_on(small: dict[str, Any], tmp_path: Path) -> None:
    def stop_after_two(clone: Cloner, _: dict[str, float]) -> None:
        if clone.rounds == 2:
            raise KeyboardInterrupt

    first = cloner(small, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        first.run(stop_after_two)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round_0001.npz", "round_0002.npz", "state.pt"]
    stored = {path.name: path.read_bytes() for path in tmp_path.glob("*.npz")}

    second = cloner(small, tmp_path, seed=0)
    assert (second.rounds, second.timesteps, second.total_rounds) == (2, 32, 4)
    for name, weights in first.policy.state_dict().items():
        assert second.policy.state_dict()[name].equal(weights)
    for ours, theirs in zip(second._data, first._data, strict=True):
        for name, array in vars(theirs).items():
            np.testing.assert_array_equal(getattr(ours, name), array)

    rounds: list[int] = []
    second.run(lambda clone, _: rounds.append(clone.rounds))
    assert rounds == [3, 4]
    assert second.timesteps == SETTINGS.total_timesteps
    assert {name: (tmp_path / name).read_bytes() for name in stored} == stored
    assert len(second._data) == 4
    assert not np.array_equal(second._data[2].maps, second._data[0].maps)  # it does not begin from the first episodes

    done = cloner(small, tmp_path)
    done.run(lambda *_: pytest.fail("nothing is left to do"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"observation": "reference"}, "have no maps and no embedding: make the environment with observation='full'"),
        ({"autoreset_mode": "NextStep"}, "autoreset_mode='SameStep', not 'NextStep'"),
        ({"action_mode": "point"}, r"nobody to clone for action_mode='point': the oracles teach clicks on the grid"),
    ],
)  # fmt: skip
def test_what_cannot_be_cloned_is_said_at_once(
    small: dict[str, Any], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    policy = cloner(small, tmp_path / "good").policy
    env: Any = gymnasium.make_vec(**{**small, "num_envs": N, "autoreset_mode": "SameStep", **changes})
    with pytest.raises(ValueError, match=message):
        Cloner(policy, env, SETTINGS, tmp_path / "bad", seed=0, gamma=0.99, reward_scale=10.0)
    with pytest.raises(ValueError, match="unwrapped vector environment of sam_gym"):
        Cloner(policy, SamVecEnv(cloner(small, tmp_path / "good").env), SETTINGS, tmp_path / "bad", seed=0, gamma=1,
               reward_scale=1)  # type: ignore[arg-type]  # fmt: skip
    assert not (tmp_path / "bad").exists()


def test_a_round_is_stored_whole_or_not_at_all(
    small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone = cloner(small, tmp_path)

    def half(file: Any, **arrays: Any) -> None:
        file.write(b"half of it")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(cloning_module.np, "savez", half)
        with pytest.raises(KeyboardInterrupt):
            clone.run(lambda *_: None)
    assert not list(tmp_path.iterdir())
    again = cloner(small, tmp_path)
    assert again.rounds == 0
    again.run(lambda *_: None)
    assert again.rounds == 4
