"""Cloning the oracle: supervised warm start of a policy, before PPO.

The oracle (`sam_gym.sb3.teachers`) labels every state of the training split that is visited. First it acts itself;
later part of the actions are the policy's own, so that the policy also learns to mend what it did (DAgger; Ross et al.
2011). The value head is fitted to the returns seen. Nothing of this runs after training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from torch import Tensor

from sam_gym._utils.fetching import atomic_path
from sam_gym.envs.base import EngineVectorEnv
from sam_gym.sb3.choosing import ChoicePolicy
from sam_gym.sb3.policy import BoxPolicy, SpatialPolicy
from sam_gym.sb3.teachers import teacher_of

OBSERVED = ("maps", "embedding", "state")
"""Observations that are kept of each state."""


@dataclass(frozen=True)
class CloneSettings:
    """How to clone.

    Attributes:
        total_timesteps: Environment steps to label.
        round_steps: Vector steps between two fits.
        gradient_steps: Adam steps in each fit, on all states so far.
        batch_size: States in an Adam step.
        learning_rate: Of Adam, falling linearly to a tenth.
        oracle_until: Share of the rounds in which the oracle alone acts.
        own_actions: Share of the actions that are the policy's own afterwards.
        sharpness: Power of the error depth in the target distribution of clicks.
        value_coef: Weight of the value loss.
        candidates: Clicks that search tries in each state, to teach what each is worth; 0: the oracle teaches.
        temperature: IoU by which a click must gain more than another to be e times as likely; of search,
            and of choices.
    """

    total_timesteps: int = 2560
    round_steps: int = 10
    gradient_steps: int = 60
    batch_size: int = 64
    learning_rate: float = 2e-3
    oracle_until: float = 0.3
    own_actions: float = 0.5
    sharpness: float = 3.0
    value_coef: float = 0.1
    candidates: int = 0
    temperature: float = 0.02


@dataclass
class Samples:
    """Labelled states, struct of arrays; `episode` points into the embeddings, which an episode's states share."""

    maps: NDArray[np.uint8]
    state: NDArray[np.float32]
    allowed: NDArray[np.bool_]
    target: NDArray[np.float16]
    returns: NDArray[np.float32]
    complete: NDArray[np.bool_]
    episode: NDArray[np.int64]
    embedding: NDArray[np.float16]


class Cloner:
    """Fits a policy to the oracle, round by round; each round can be stored and taken up again.

    Args:
        policy: What is fitted; its optimizer is not used, PPO begins with a fresh one.
        env: Training environment, a vector with autoreset_mode="SameStep" and observation="full", of actions that
            have a teacher.
        settings: See `CloneSettings`.
        folder: Where rounds are stored, so that an interrupted run goes on where it was.
        seed: Of choices between oracle and policy, and of batches.
        gamma: Discount of the returns that the value head learns.
        reward_scale: As the later PPO has it.
        demonstrations: States that people labelled (`sam_gym.sb3.demonstrations`), beside those of the oracle.

    Raises:
        ValueError: The environment is not as it has to be.

    Attributes:
        rounds: Rounds done so far.
        total_rounds: Rounds in all.
    """

    def __init__(
        self,
        policy: SpatialPolicy | BoxPolicy | ChoicePolicy,
        env: EngineVectorEnv,
        settings: CloneSettings,
        folder: Path,
        *,
        seed: int,
        gamma: float,
        reward_scale: float,
        demonstrations: Samples | None = None,
    ) -> None:
        check_env(env)
        self.policy, self.env, self.settings, self.folder = policy, env, settings, folder
        self.gamma, self.reward_scale = gamma, reward_scale
        self.seed = seed
        self.teacher = teacher_of(env, settings.sharpness, policy, settings.candidates, settings.temperature)
        self.optimizer = torch.optim.Adam(policy.parameters(), lr=settings.learning_rate)
        self.total_rounds = max(1, round(settings.total_timesteps / (settings.round_steps * env.num_envs)))
        self.rounds = 0
        text = env.text_embedding  # one for all episodes
        self._text = None if text is None else self._tensor(text)
        self._data: list[Samples] = [] if demonstrations is None else [demonstrations]
        self._observations: dict[str, NDArray] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self._resume()

    @property
    def timesteps(self) -> int:
        """Labelled environment steps so far."""
        return self.rounds * self.settings.round_steps * self.env.num_envs

    def run(self, after_round: Callable[[Cloner, dict[str, float]], None]) -> None:
        """Do the rounds that are left; `after_round` is called after each with what it measured.

        A round is stored before the callback, so whatever interrupts the callback or the next round loses one round at
        most.
        """
        while self.rounds < self.total_rounds:
            # Seeded by the round, so that a resumed run does not meet the first rounds' episodes again
            rng = np.random.default_rng([self.seed, self.rounds])
            samples = self._collect(rng)
            self._data.append(samples)
            losses = self._fit(rng)
            self.rounds += 1
            self._store(samples)
            after_round(self, losses)

    # ------------------------------------------------------------------ rounds

    def _collect(self, rng: np.random.Generator) -> Samples:
        env, settings = self.env, self.settings
        n = env.num_envs
        observations = self._observations
        if observations is None:
            observations, _ = env.reset(seed=int(rng.integers(2**31)))
        own_share = settings.own_actions if self.rounds >= settings.oracle_until * self.total_rounds else 0.0
        rows: list[tuple[NDArray, ...]] = []
        rewards, ended = [], []
        embeddings: list[NDArray] = [*observations["embedding"].astype(np.float16)]
        episode = np.arange(n)
        for _ in range(settings.round_steps):
            targets, allowed = self.teacher.label(observations, env, rng)
            actions = self.teacher.act(targets)
            own = rng.random(n) < own_share
            if own.any():
                actions = actions.copy()
                actions[own] = self.teacher.own(self.policy, observations, allowed)[own]
            rows.append((observations["maps"], observations["state"], allowed, targets, episode.copy()))
            observations, reward, terminated, truncated, _ = env.step(actions)
            done = terminated | truncated
            rewards.append(self.reward_scale * reward)
            ended.append(done)
            for i in np.flatnonzero(done):
                episode[i] = len(embeddings)
                embeddings.append(observations["embedding"][i].astype(np.float16))
        self._observations = observations
        returns, complete = discounted(np.stack(rewards), np.stack(ended), self.gamma)
        maps, state, allowed, target, episodes = (np.concatenate(column) for column in zip(*rows, strict=True))
        return Samples(
            maps, state, allowed, target.astype(np.float16), returns.ravel(), complete.ravel(), episodes,
            np.stack(embeddings),
        )  # fmt: skip

    def _fit(self, rng: np.random.Generator) -> dict[str, float]:
        settings = self.settings
        self.policy.set_training_mode(True)
        rate = settings.learning_rate * (1 - 0.9 * self.rounds / self.total_rounds)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        history = []
        fast = self.env.backend.precision == "fast"  # then the convolutions may be bfloat16 as well
        for batch in self._batches(rng):
            with torch.autocast(self.policy.device.type, torch.bfloat16, enabled=fast):
                output, values = self.policy.outputs_and_values(batch["observations"])
            output, values = output.float(), values.float()
            action_loss, distance = self.teacher.loss(output, batch["target"], batch["allowed"])
            value_loss = (batch["complete"] * F.mse_loss(values, batch["returns"], reduction="none")).mean()
            self.optimizer.zero_grad()
            (action_loss + settings.value_coef * value_loss).backward()
            torch.nn.utils.clip_grad_norm_(self.policy.parameters(), 1.0)
            self.optimizer.step()
            history.append((float(distance), float(value_loss.detach())))
        distance, value = np.mean(history, axis=0)
        return {self.teacher.measure: float(distance), "value_loss": float(value), "learning_rate": rate}

    def _batches(self, rng: np.random.Generator) -> Iterator[dict]:
        arrays = {name: self._tensor(array) for name, array in vars(joined(self._data)).items()}
        episode, embedding = arrays.pop("episode"), arrays.pop("embedding")
        for _ in range(self.settings.gradient_steps):
            picked = self._tensor(rng.integers(len(episode), size=self.settings.batch_size))
            batch = {name: array[picked] for name, array in arrays.items()}
            flipped = self.teacher.turn({**batch, "embedding": embedding[episode[picked]]}, int(rng.integers(8)))
            observations = {name: flipped[name] for name in OBSERVED}
            if self._text is not None:
                observations["text"] = self._text.expand(len(picked), -1)
            yield {
                "observations": observations,
                "allowed": flipped["allowed"],
                "target": flipped["target"].float(),
                "returns": flipped["returns"],
                "complete": flipped["complete"].float(),
            }

    def _tensor(self, array: NDArray) -> Tensor:
        return torch.as_tensor(array, device=self.policy.device)

    # ------------------------------------------------------------------ storage

    def _store(self, samples: Samples) -> None:
        with atomic_path(self.folder / f"round_{self.rounds:04d}.npz") as path, open(path, "wb") as file:
            np.savez(file, **vars(samples))
        with atomic_path(self.folder / "state.pt") as path:
            torch.save(
                {"rounds": self.rounds, "policy": self.policy.state_dict(), "optimizer": self.optimizer.state_dict()},
                path,
            )

    def _resume(self) -> None:
        if not (self.folder / "state.pt").is_file():
            return
        stored = torch.load(self.folder / "state.pt", map_location=self.policy.device, weights_only=True)
        self.policy.load_state_dict(stored["policy"])
        self.optimizer.load_state_dict(stored["optimizer"])
        self.rounds = int(stored["rounds"])
        for number in range(1, self.rounds + 1):
            with np.load(self.folder / f"round_{number:04d}.npz") as arrays:
                self._data.append(Samples(**arrays))


def check_env(env: EngineVectorEnv) -> None:
    """Raise ValueError, in one sentence, unless a policy can be cloned in this environment as far as it can be seen."""
    if not isinstance(env, EngineVectorEnv):
        raise ValueError(f"cloning needs an unwrapped vector environment of sam_gym (gymnasium.make_vec), got {env!r}")
    if env.autoreset_mode is not AutoresetMode.SAME_STEP:
        raise ValueError(
            f"cloning needs an environment with autoreset_mode='SameStep', not {env.autoreset_mode.value!r}"
        )
    seen = getattr(env.single_observation_space, "spaces", {})
    if missing := [name for name in OBSERVED if name not in seen]:
        raise ValueError(
            f"cloning needs observations with {', '.join(OBSERVED)}, and these have no {' and no '.join(missing)}: "
            f"make the environment with observation='full', not {env.settings.observation!r}"
        )


def joined(parts: list[Samples]) -> Samples:
    """Several as one: a batch is then one look-up in each array."""
    starts = np.cumsum([0, *(len(part.embedding) for part in parts)])
    columns = {name: [getattr(part, name) for part in parts] for name in vars(parts[0])}
    columns["episode"] = [part.episode + start for part, start in zip(parts, starts, strict=False)]
    return Samples(**{name: np.concatenate(column) for name, column in columns.items()})


def discounted(
    rewards: NDArray, ended: NDArray[np.bool_], gamma: float
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Discounted returns (steps, n), and whether the episode ended within the round, so that the return is whole."""
    returns, complete = np.zeros(rewards.shape, np.float32), np.zeros(rewards.shape, np.bool_)
    running, whole = np.zeros(rewards.shape[1]), np.zeros(rewards.shape[1], np.bool_)
    for step in reversed(range(len(rewards))):
        running = rewards[step] + gamma * np.where(ended[step], 0, running)
        whole = whole | ended[step]
        returns[step], complete[step] = running, whole
    return returns, complete
