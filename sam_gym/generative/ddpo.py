"""DDPO: improve a diffusion model by policy gradients in a Denoise environment (Black et al. 2023, arXiv 2305.13301).

Pictures are drawn through the environment; the advantage of each is its reward against recent ones of its class; every
step of the drawing is made likelier or less likely accordingly, with PPO's clipped importance ratio. As in RL4Med-DDPO
(Saremi et al. 2025, arXiv 2503.15784), log-densities are means over pixels, so the clip range is small. Time steps are
shuffled for each picture, and gradients add up over all of them before the optimizer moves. `agents/train_ddpo.py` is
the command.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sam_gym._utils.fetching import atomic_path
from sam_gym.envs.denoise import DenoiseVectorEnv
from sam_gym.generative.model import Denoiser
from sam_gym.generative.schedule import log_density
from sam_gym.generative.training import Average

RECENT, ENOUGH = 32, 16
"""Rewards of a class that are remembered, and how many there must be before they are compared with."""


@dataclass(frozen=True)
class DdpoSettings:
    """How to improve. `updates` may be raised later, and training goes on.

    Attributes:
        updates: Rounds of drawing and learning.
        samples: Pictures a round, classes in turn.
        minibatch: Pictures of which one move of the optimizer learns; samples / minibatch moves a pass.
        passes: How often a round's pictures are learned from.
        learning_rate: Of AdamW.
        clip: How far the ratio may be from 1.
        advantage_clip: How far an advantage may be from 0, in standard deviations.
        kl: Weight of the divergence from the model that training began with; 0 costs nothing.
        average: Share of the averaged weights that a move of the optimizer keeps.
        seed: Of everything.
    """

    updates: int = 60
    samples: int = 64
    minibatch: int = 32
    passes: int = 1
    learning_rate: float = 1e-4
    clip: float = 1e-3
    advantage_clip: float = 5.0
    kl: float = 0.0
    average: float = 0.9
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("updates", "samples", "minibatch", "passes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.samples % self.minibatch:
            raise ValueError(f"minibatch={self.minibatch} does not divide samples={self.samples}")


@dataclass(frozen=True, eq=False)
class Drawn:
    """A round's pictures, step by step.

    Attributes:
        x: (T + 1, N, 3, 32, 32) float32 samples, noise first.
        label: (N,) int64 classes asked for.
        log_density: (T, N) float32 of each step when it was drawn.
        rewards: (N,) float64.
        correct: (N,) bool: whether the reward's classifier sees the class asked for.
    """

    x: Tensor
    label: Tensor
    log_density: Tensor
    rewards: NDArray[np.float64]
    correct: NDArray[np.bool_]


class Advantages:
    """What a reward is worth against recent ones of its class.

    Args:
        classes: How many there are.
        limit: Advantages are clipped to -limit..limit.
    """

    def __init__(self, classes: int, limit: float) -> None:
        self.limit = limit
        self.recent: list[deque[float]] = [deque(maxlen=RECENT) for _ in range(classes)]

    def of(self, rewards: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
        """Take in the rewards (N,), and give their advantages (N,): in standard deviations above the class's mean.

        A class of which fewer than `ENOUGH` are remembered is compared with all of these rewards.
        """
        advantages = np.zeros(len(rewards))
        for k, recent in enumerate(self.recent):
            mine = labels == k
            recent.extend(rewards[mine].tolist())
            against = np.array(recent) if len(recent) >= ENOUGH else rewards
            advantages[mine] = (rewards[mine] - against.mean()) / (against.std() + 1e-6)
        return advantages.clip(-self.limit, self.limit)


class Ddpo:
    """One training, round by round; it can be stored and taken up again.

    Args:
        env: `DenoiseVectorEnv` with action_mode "sample" and as many pictures as `settings.samples`.
        settings: See `DdpoSettings`.
        state: File that `store` writes and from which a new trainer goes on, or None.

    Attributes:
        model: What is trained; it begins as the environment's model.
        average: Its averaged weights, which are what is kept.
        updates_done: Rounds so far.

    Raises:
        ValueError: An environment of another kind or size; or the stored state is of other settings.
    """

    def __init__(self, env: gymnasium.vector.VectorEnv, settings: DdpoSettings, state: Path | None = None) -> None:
        inner = env.unwrapped
        if not isinstance(inner, DenoiseVectorEnv) or inner.settings.action_mode != "sample":
            raise ValueError("DDPO needs a Denoise vector environment with action_mode='sample'")
        if inner.num_envs != settings.samples:
            raise ValueError(f"the environment draws {inner.num_envs} pictures at once, and samples={settings.samples}")
        if inner.autoreset_mode is not gymnasium.vector.AutoresetMode.DISABLED:
            raise ValueError("DDPO begins episodes itself: make the environment with autoreset_mode='Disabled'")
        self.env, self.settings, self.state = inner, settings, state
        self.schedule, self.device = inner.engine.schedule, inner.engine.device
        self._base: Denoiser = inner.engine.model
        self.model = copy.deepcopy(self._base).requires_grad_(True)
        self.average = Average(self.model, settings.average)
        self.advantages = Advantages(len(self.model.classes), settings.advantage_clip)
        self._optimizer = torch.optim.AdamW(self.model.parameters(), lr=settings.learning_rate, weight_decay=1e-4)
        self._identity = {k: v for k, v in asdict(settings).items() if k != "updates"}
        self._identity["env"] = {k: v for k, v in asdict(inner.settings).items() if k != "device"}
        self.updates_done = self._moves = 0
        if state is not None and state.is_file():
            self._resume(torch.load(state, map_location=self.device, weights_only=True))

    def run(self, after_update: Callable[[Ddpo, dict[str, float]], None]) -> None:
        """Do the rounds that are left; `after_update` gets what is worth logging of each."""
        while self.updates_done < self.settings.updates:
            rng = np.random.default_rng([self.settings.seed, self.updates_done])
            drawn = self.draw(rng)
            told = self.learn(drawn, rng)
            self.updates_done += 1
            after_update(self, told)

    # ------------------------------------------------------------------ drawing

    @torch.no_grad()
    def draw(self, rng: np.random.Generator) -> Drawn:
        """A round of pictures by the model as it is, through the environment."""
        classes, n, steps = len(self.model.classes), self.settings.samples, self.schedule.steps
        labels = rng.permutation(np.arange(n) % classes)
        observation, _ = self.env.reset(seed=int(rng.integers(2**31)), options={"class": labels.tolist()})
        generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
        label = torch.as_tensor(observation["class"], device=self.device)
        samples, densities = [self._tensor(observation["x"])], []
        for _ in range(steps):
            x, left = samples[-1], torch.as_tensor(observation["t"], device=self.device)
            mean, sigma = self.model.next_mean(self.schedule, x, left, label), self.schedule.sigma[left - 1]
            noise = torch.randn(x.shape, generator=generator).to(self.device)
            action = mean + sigma[:, None, None, None] * noise
            densities.append(log_density(action, mean, sigma))
            observation, rewards, _, _, infos = self.env.step(action.cpu().numpy())
            samples.append(self._tensor(observation["x"]))
        return Drawn(torch.stack(samples), label, torch.stack(densities), rewards, np.array(infos["correct"], np.bool_))

    def _tensor(self, array: NDArray) -> Tensor:
        return torch.as_tensor(array, device=self.device)

    # ----------------------------------------------------------------- learning

    def learn(self, drawn: Drawn, rng: np.random.Generator) -> dict[str, float]:
        """Learn from a round; gives what is worth logging."""
        settings, steps = self.settings, self.schedule.steps
        worth = self.advantages.of(drawn.rewards, drawn.label.cpu().numpy())
        advantages = torch.as_tensor(worth, dtype=torch.float32, device=self.device)
        ratios, divergences, norms = [], [], []
        for _ in range(settings.passes):
            for rows in np.split(rng.permutation(settings.samples), settings.samples // settings.minibatch):
                at = torch.as_tensor(rows, device=self.device)
                order = torch.as_tensor(np.stack([rng.permutation(steps) for _ in rows]), device=self.device)
                self._optimizer.zero_grad()
                for column in order.T:
                    loss, ratio, divergence = self._loss(drawn, at, column, advantages[at])
                    (loss / steps).backward()
                    ratios.append(ratio)
                    divergences.append(divergence)
                norms.append(float(nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)))
                self._optimizer.step()
                self._moves += 1
                self.average.update(self.model, self._moves)
        away = torch.stack(ratios) - 1
        return {
            "reward": float(drawn.rewards.mean()),
            "correct": float(drawn.correct.mean()),
            "clipped": float((away.abs() > settings.clip).float().mean()),
            "ratio_away_from_1": float(away.abs().mean()),
            "kl": float(torch.stack(divergences).mean()),
            "gradient_norm": float(np.mean(norms)),
        }

    def _loss(self, drawn: Drawn, at: Tensor, step: Tensor, advantages: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Loss of one time step (n,) of each of some pictures (n,), their ratios (n,), and the divergence."""
        ratio, mean, sigma = self.ratio(drawn, at, step)
        low, high = 1 - self.settings.clip, 1 + self.settings.clip
        loss = -torch.minimum(advantages * ratio, advantages * ratio.clamp(low, high)).mean()
        divergence = torch.zeros((), device=self.device)
        if self.settings.kl:
            with torch.no_grad():
                left = self.schedule.steps - step
                base = self._base.next_mean(self.schedule, drawn.x[step, at], left, drawn.label[at])
            divergence = (((mean - base) ** 2).flatten(1).mean(1) / (2 * sigma**2)).mean()
            loss = loss + self.settings.kl * divergence
        return loss, ratio.detach(), divergence.detach()

    def ratio(self, drawn: Drawn, at: Tensor, step: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """How much likelier than when they were drawn steps (n,) of pictures (n,) are now; with mean and sigma of them.

        Args:
            drawn: A round.
            at: (n,) int64 pictures in it.
            step: (n,) int64 of each, 0..T - 1, 0 being the first.
        """
        left = self.schedule.steps - step
        mean = self.model.next_mean(self.schedule, drawn.x[step, at], left, drawn.label[at])
        sigma = self.schedule.sigma[left - 1]
        now = log_density(drawn.x[step + 1, at], mean, sigma)
        return (now - drawn.log_density[step, at]).exp(), mean, sigma

    # ------------------------------------------------------------------ storing

    def store(self) -> None:
        """Write everything that going on needs to the state file."""
        if self.state is None:
            raise ValueError("this Ddpo was made without a file for its state")
        stored: dict[str, Any] = {
            "settings": self._identity, "updates": self.updates_done, "moves": self._moves,
            "model": self.model.state_dict(), "average": self.average.model.state_dict(),
            "optimizer": self._optimizer.state_dict(), "recent": [list(one) for one in self.advantages.recent],
        }  # fmt: skip
        with atomic_path(self.state) as path:
            torch.save(stored, path)

    def _resume(self, stored: dict[str, Any]) -> None:
        if stored["settings"] != self._identity:
            raise ValueError(
                f"{self.state} was stored with other settings: {stored['settings']}; remove it, or name another folder"
            )
        self.model.load_state_dict(stored["model"])
        self.average.model.load_state_dict(stored["average"])
        self._optimizer.load_state_dict(stored["optimizer"])
        self.updates_done, self._moves = int(stored["updates"]), int(stored["moves"])
        for recent, kept in zip(self.advantages.recent, stored["recent"], strict=True):
            recent.extend(kept)
