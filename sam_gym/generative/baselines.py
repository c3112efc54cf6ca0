"""What DDPO is compared with: the best of N samples by the reward's classifier, and reward-weighted regression.

The base model and classifier-free guidance are `sam_gym.generative.model.sample` as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from sam_gym.generative.classifier import Classifier
from sam_gym.generative.ddpo import Advantages
from sam_gym.generative.model import Denoiser, sample
from sam_gym.generative.schedule import TRAINED_STEPS, Schedule
from sam_gym.generative.training import Average, velocity_errors


@torch.no_grad()
def best_of(
    n: int, model: Denoiser, classifier: Classifier, schedule: Schedule, labels: Tensor, generator: torch.Generator
) -> Tensor:
    """Draw N samples for each label, and keep the one that the classifier finds likeliest to be of its class.

    It costs N times what one sample costs.

    Args:
        n: N, at least 1.
        model: The network.
        classifier: The reward's.
        schedule: The steps.
        labels: (M,) int64 classes.
        generator: Of all noise.

    Returns:
        (M, 3, 32, 32).

    Raises:
        ValueError: N is below 1.
    """
    if n < 1:
        raise ValueError(f"n={n} must be at least 1")
    best, worth = torch.empty(0), torch.full((len(labels),), -torch.inf, device=labels.device)
    for _ in range(n):
        drawn = sample(model, schedule, labels, generator)
        said = classifier(drawn)[torch.arange(len(labels), device=labels.device), labels]
        better = said > worth
        best = torch.where(better[:, None, None, None], drawn, best) if len(best) else drawn
        worth = torch.maximum(said, worth)
    return best


@dataclass(frozen=True)
class WeightedSettings:
    """Reward-weighted regression, after Black et al. 2023 (RWR).

    Attributes:
        rounds: Rounds of drawing and regression.
        samples: Pictures a round, classes in turn.
        steps: Steps of AdamW a round.
        batch: Pictures a step.
        learning_rate: Of AdamW.
        temperature: A picture's weight is exp(advantage / temperature).
        average: Share of the averaged weights that a step keeps.
        seed: Of everything.
    """

    rounds: int = 10
    samples: int = 256
    steps: int = 40
    batch: int = 32
    learning_rate: float = 1e-4
    temperature: float = 1.0
    average: float = 0.95
    seed: int = 0


def reward_weighted(
    base: Denoiser,
    classifier: Classifier,
    schedule: Schedule,
    settings: WeightedSettings,
    after_round: Callable[[float], None] = lambda reward: None,
) -> Denoiser:
    """Train a copy of a model on its own samples, those of high reward the most.

    Args:
        base: The model to begin with; it stays as it is.
        classifier: The reward's.
        schedule: The steps.
        settings: See `WeightedSettings`.
        after_round: Gets the mean reward of each round.

    Returns:
        The averaged weights, frozen.
    """
    model = copy.deepcopy(base).requires_grad_(True)
    average, moves = Average(model, settings.average), 0
    advantages = Advantages(len(model.classes), limit=5.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=1e-4)
    device = next(model.parameters()).device
    labels = torch.arange(settings.samples, device=device) % len(model.classes)
    for number in range(settings.rounds):
        rng = np.random.default_rng([settings.seed, number])
        drawn = sample(model, schedule, labels, torch.Generator().manual_seed(int(rng.integers(2**63))))
        with torch.no_grad():
            rewards = classifier(drawn)[torch.arange(len(labels), device=device), labels].double().cpu().numpy()
        weights = np.exp(advantages.of(rewards, labels.cpu().numpy()) / settings.temperature)
        weighted = torch.as_tensor(weights / weights.mean(), dtype=torch.float32, device=device)
        for _ in range(settings.steps):
            rows = torch.as_tensor(rng.integers(settings.samples, size=settings.batch), device=device)
            timesteps = torch.as_tensor(rng.integers(TRAINED_STEPS, size=settings.batch), device=device)
            noise = torch.as_tensor(rng.standard_normal((settings.batch, *drawn.shape[1:]), np.float32), device=device)
            errors = velocity_errors(model, drawn[rows].clamp(-1, 1), noise, timesteps, labels[rows])
            optimizer.zero_grad()
            (weighted[rows] * errors).mean().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            moves += 1
            average.update(model, moves)
        after_round(float(rewards.mean()))
    return average.model  # type: ignore[return-value]
