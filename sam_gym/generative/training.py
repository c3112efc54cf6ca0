"""Training the network that denoises, on pictures of cells by class; `train_base` is the command.

AdamW and averaged weights; one picture's class in ten is hidden from the network. A step is a batch of pictures with
noise of a random strength, and the network's error in the velocity. Everything follows from the seed, interrupted or
not.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sam_gym._utils.fetching import atomic_path
from sam_gym.generative.classifier import turned
from sam_gym.generative.model import Denoiser, to_samples
from sam_gym.generative.schedule import TRAINED_STEPS, alphas
from sam_gym.generative.sources import Pictures

HIDDEN_CLASS = 0.1
"""How often the class is left out, so that the network also learns what pictures of any class look like."""


@dataclass(frozen=True)
class BaseSettings:
    """How to train. `steps` may be raised later, and training goes on.

    Attributes:
        steps: Steps of AdamW.
        batch: Pictures a step.
        learning_rate: After a rise over the first 200 steps.
        average: Longest memory of the averaged weights, as a share kept each step.
        seed: Of everything.
    """

    steps: int = 10_000
    batch: int = 32
    learning_rate: float = 6e-4
    average: float = 0.9985
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")


class Average:
    """Exponential moving average of a model's weights; young ones forget faster.

    Args:
        model: Whose weights.
        keep: Share of the average that a step keeps, at most.

    Attributes:
        model: A frozen copy with the averaged weights.
    """

    def __init__(self, model: nn.Module, keep: float) -> None:
        self.keep = keep
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, steps: int) -> None:
        """Take in the weights as they are after `steps` steps."""
        keep = min(self.keep, (1 + steps) / (10 + steps))
        for mine, new in zip(self.model.parameters(), model.parameters(), strict=True):
            mine.lerp_(new, 1 - keep)


class BaseTrainer:
    """One training, step by step; it can be stored and taken up again.

    Args:
        pictures: To learn from.
        settings: See `BaseSettings`.
        state: File that `store` writes and from which a new trainer goes on, or None.

    Attributes:
        model: What is trained.
        average: Its averaged weights, which are what is kept.
        steps_done: Steps so far.

    Raises:
        PicturesError: Too few pictures of a class.
        ValueError: The stored state is of other settings or other pictures.
    """

    def __init__(self, pictures: Pictures, settings: BaseSettings, state: Path | None = None) -> None:
        pictures.check()
        self.settings, self.state = settings, state
        self._identity = {k: v for k, v in asdict(settings).items() if k != "steps"}
        self._identity |= {"pictures": pictures.name, "counts": pictures.counts}
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(settings.seed)
            self.model = Denoiser(pictures.classes, pictures.name)
        self.average = Average(self.model, settings.average)
        self._optimizer = torch.optim.AdamW(self.model.parameters(), lr=settings.learning_rate, weight_decay=0.01)
        self._images, self._labels = to_samples(pictures.images), torch.as_tensor(pictures.labels)
        self.steps_done = 0
        if state is not None and state.is_file():
            self._resume(torch.load(state, weights_only=True))

    def run(self, after_step: Callable[[BaseTrainer, float], None]) -> None:
        """Do the steps that are left; `after_step` gets the loss of each."""
        while self.steps_done < self.settings.steps:
            after_step(self, self._step())

    def store(self) -> None:
        """Write everything that going on needs to the state file."""
        if self.state is None:
            raise ValueError("this BaseTrainer was made without a file for its state")
        stored = {"settings": self._identity, "steps": self.steps_done, "model": self.model.state_dict(),
                  "average": self.average.model.state_dict(), "optimizer": self._optimizer.state_dict()}  # fmt: skip
        with atomic_path(self.state) as path:
            torch.save(stored, path)

    def _resume(self, stored: dict) -> None:
        if stored["settings"] != self._identity:
            raise ValueError(
                f"{self.state} was stored with other settings or pictures: {stored['settings']}; remove it, or name "
                "another folder to write"
            )
        self.model.load_state_dict(stored["model"])
        self.average.model.load_state_dict(stored["average"])
        self._optimizer.load_state_dict(stored["optimizer"])
        self.steps_done = int(stored["steps"])

    def _step(self) -> float:
        settings = self.settings
        rng = np.random.default_rng([settings.seed, self.steps_done])
        for group in self._optimizer.param_groups:
            group["lr"] = settings.learning_rate * min(1.0, (self.steps_done + 1) / 200)
        rows = torch.as_tensor(rng.integers(len(self._labels), size=settings.batch))
        images = turned(self._images[rows], rng)
        hidden = torch.as_tensor(rng.random(settings.batch) < HIDDEN_CLASS)
        labels = torch.where(hidden, self.model.no_class, self._labels[rows])
        timesteps = torch.as_tensor(rng.integers(TRAINED_STEPS, size=settings.batch))
        noise = torch.as_tensor(rng.standard_normal(images.shape, np.float32))
        loss = velocity_errors(self.model, images, noise, timesteps, labels).mean()
        self._optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step()
        self.steps_done += 1
        self.average.update(self.model, self.steps_done)
        return float(loss.detach())


def velocity_errors(model: Denoiser, images: Tensor, noise: Tensor, timesteps: Tensor, labels: Tensor) -> Tensor:
    """(N,) mean squared error in the velocity of pictures (N, 3, 32, 32) with noise, at trained steps (N,)."""
    alpha = alphas().float().to(images.device)[timesteps][:, None, None, None]
    noisy = alpha.sqrt() * images + (1 - alpha).sqrt() * noise
    velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * images
    return ((model(noisy, timesteps, labels) - velocity) ** 2).flatten(1).mean(1)
