"""DDPO: ratios, advantages, that it learns, that it goes on where it stopped; and plain PPO on the same environment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import VectorEnv

from sam_gym.generative.ddpo import Advantages, Ddpo, DdpoSettings

ID = "Denoise-Smears-v0"
Make = Callable[..., VectorEnv]


@pytest.fixture
def make(denoise: dict[str, Any]) -> Make:
    def made(n: int = 8, mode: str = "Disabled", **changes: Any) -> VectorEnv:
        return gymnasium.make_vec(ID, num_envs=n, autoreset_mode=mode, **{**denoise, **changes})

    return made


def test_the_ratio_is_1_before_the_first_update(make: Make) -> None:
    trainer = Ddpo(make(), DdpoSettings(samples=8, minibatch=8))
    drawn = trainer.draw(np.random.default_rng(0))
    everyone = torch.arange(8)
    for step in range(3):
        with torch.no_grad():
            ratio, _, _ = trainer.ratio(drawn, everyone, torch.full((8,), step))
        assert (ratio == 1).all()  # the same batch, the same numbers
    mixed = torch.tensor([2, 0, 1])  # another batch, in which the steps are mixed, rounds otherwise
    ratio, _, _ = trainer.ratio(drawn, torch.tensor([7, 1, 4]), mixed)
    torch.testing.assert_close(ratio, torch.ones(3), atol=1e-5, rtol=0)


def test_the_environment_holds_what_the_agent_drew(make: Make) -> None:
    env = make()
    trainer = Ddpo(env, DdpoSettings(samples=8, minibatch=8))
    drawn = trainer.draw(np.random.default_rng(0))
    torch.testing.assert_close(env.unwrapped.engine.samples(), drawn.x[-1], atol=0, rtol=0)
    assert np.bincount(drawn.label).tolist() == [4, 4]
    said = env.unwrapped.engine.classifier(drawn.x[-1])
    np.testing.assert_allclose(drawn.rewards, said[torch.arange(8), drawn.label].numpy(), rtol=1e-6)


def test_advantages() -> None:
    advantages = Advantages(2, limit=1.5)
    labels = np.array([0, 0, 1, 1])
    first = advantages.of(np.array([0.0, 2.0, 10.0, 12.0]), labels)
    np.testing.assert_allclose(first, (np.array([0, 2, 10, 12]) - 6) / np.sqrt(26), rtol=1e-5)  # too few of a class
    for _ in range(8):
        last = advantages.of(np.array([0.0, 2.0, 10.0, 12.0]), labels)
    np.testing.assert_allclose(last, [-1, 1, -1, 1], rtol=1e-5)  # each against its own class
    assert advantages.of(np.array([0.0, 99.0, 10.0, 10.0]), labels)[1] == 1.5


class ByBrightness(torch.nn.Module):
    """A classifier to which a picture is the likelier "bright" the brighter it is, on and on."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        brightness = 60 * x.mean((1, 2, 3))
        return torch.log_softmax(torch.stack([-brightness, brightness], 1), 1)


def test_it_learns(make: Make) -> None:
    """What is asked for is drawn more often after some rounds; before them not more often than by chance."""
    env = make(32, steps=3)
    env.unwrapped.engine.classifier = ByBrightness()
    trainer = Ddpo(env, DdpoSettings(updates=14, samples=32, minibatch=16, learning_rate=1e-3, clip=1e-2))
    told: list[dict[str, float]] = []
    trainer.run(lambda _, said: told.append(said))
    rewards = [one["reward"] for one in told]
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.3, rewards
    assert all(0 <= one["clipped"] <= 1 and one["kl"] == 0 for one in told)


def test_divergence_from_the_base_is_0_at_first(make: Make) -> None:
    trainer = Ddpo(make(), DdpoSettings(updates=2, samples=8, minibatch=8, kl=1.0, learning_rate=1e-3))
    told: list[dict[str, float]] = []
    trainer.run(lambda _, said: told.append(said))
    assert told[0]["kl"] == pytest.approx(0, abs=1e-9)
    assert told[1]["kl"] > 1e-6


def test_going_on_is_as_never_having_stopped(make: Make, tmp_path: Path) -> None:
    settings, state = DdpoSettings(updates=3, samples=8, minibatch=4), tmp_path / "state.pt"
    whole = Ddpo(make(), settings)
    whole.run(lambda *_: None)
    first = Ddpo(make(), DdpoSettings(updates=2, samples=8, minibatch=4), state)
    first.run(lambda *_: None)
    first.store()
    second = Ddpo(make(), settings, state)
    second.run(lambda *_: None)
    for one, other in ((whole.model, second.model), (whole.average.model, second.average.model)):
        for a, b in zip(one.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=0, rtol=0)
    with pytest.raises(ValueError, match="other settings"):
        Ddpo(make(), DdpoSettings(samples=8, minibatch=4, seed=1), state)


def test_environments_that_it_cannot_use(make: Make) -> None:
    for env, complaint in (
        (make(4), "draws 4 pictures"),
        (make(8, "SameStep"), "Disabled"),
        (make(8, action_mode="noise"), "action_mode='sample'"),
    ):
        with pytest.raises(ValueError, match=complaint):
            Ddpo(env, DdpoSettings(samples=8, minibatch=8))
    with pytest.raises(ValueError, match="does not divide"):
        DdpoSettings(samples=8, minibatch=3)


def test_command(
    cached_models: Path, tmp_path: Path, script: Callable[..., str | None], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    sizes = ("--samples", 4, "--minibatch", 4, "--threads", 1, "--out", out)
    for updates in (1, 2):
        assert script("train_ddpo.py", "--updates", updates, *sizes) is None
    assert "after 2 rounds" in capsys.readouterr().out
    assert sorted(path.name for path in (out / "sheets").iterdir()) == ["0000.png", "0001.png", "0002.png"]
    env = gymnasium.make(ID, action_mode="noise", model=str(out / "agent.safetensors"))
    assert env.unwrapped.engine.model.classes == ("dark", "bright")
    assert "did you mean" in str(script("train_ddpo.py", "--reward", "correkt", *sizes))


@pytest.mark.filterwarnings(
    "ignore::UserWarning:stable_baselines3"
)  # SB3 says that float arrays of three axes are no images, which they are not
def test_plain_ppo_runs_in_noise(denoise: dict[str, Any]) -> None:
    """Stable-Baselines3's PPO with an ordinary policy: it moves, and its first actions are near the plain model's."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env

    env = make_vec_env(ID, n_envs=2, env_kwargs={**denoise, "action_mode": "noise"})
    agent = PPO("MultiInputPolicy", env, n_steps=6, batch_size=6, n_epochs=1, seed=0, device="cpu")
    before = [parameter.clone() for parameter in agent.policy.parameters()]
    agent.learn(24)
    assert agent.num_timesteps == 24
    assert any(not torch.equal(a, b) for a, b in zip(before, agent.policy.parameters(), strict=True))
    assert all(torch.isfinite(parameter).all() for parameter in agent.policy.parameters())
    actions, _ = agent.predict(env.reset())
    assert actions.shape == (2, 3, 32, 32)
    assert 0.8 < actions.std() < 1.25
