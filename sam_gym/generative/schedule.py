"""The arithmetic of denoising in T steps: how noisy a sample is, where a step leads, how likely it was.

DDIM (Song et al. 2021, arXiv 2010.02502, equations 12 and 16) on the cosine schedule of Nichol and Dhariwal (2021,
arXiv 2102.09672). It is what diffusers' `DDIMScheduler` computes, but each row may stand at another step, which vector
environments need. No network is in here.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

TRAINED_STEPS = 1000
"""Steps of noise that the network is trained on."""

STEPS = 20
"""Steps in which an image is drawn."""

SIGMA_FLOOR = 0.05
"""Smallest standard deviation of a step. The last one would have none, and so no density; the smaller it is, the
wilder importance ratios become (1e-6 breaks training). Pixels are in [-1, 1]."""


class Schedule:
    """T steps from noise to an image.

    A row with `left` steps to go, T at the start and 0 at the end, stands at the trained step `timesteps[left - 1]`.

    Args:
        steps: T; at most 1,000.
        eta: 0 adds no noise but the floor's, 1 as much as DDPM.
        sigma_floor: Smallest standard deviation of a step.

    Attributes:
        timesteps: (T,) int64, the trained step of rows with 1, 2, ..., T steps to go.
        sigma: (T,) float32, standard deviation of their next step.
    """

    def __init__(self, steps: int = STEPS, eta: float = 1.0, sigma_floor: float = SIGMA_FLOOR) -> None:
        self.steps = steps
        spaced = torch.arange(1, steps + 1, dtype=torch.float64) * (TRAINED_STEPS / steps)
        self.timesteps = spaced.round().long() - 1
        kept = alphas()
        alpha = kept[self.timesteps]  # share of the image's variance before a step
        # As diffusers has it: the next step is so many trained steps on, whatever rounding made of the steps.
        following = self.timesteps - TRAINED_STEPS // steps
        after = torch.where(following >= 0, kept[following.clamp(min=0)], torch.ones(()).double())
        variance = (1 - after) / (1 - alpha) * (1 - alpha / after)
        sigma = eta * variance.clamp(min=0).sqrt()
        self._alpha, self._after = alpha.float(), after.float()
        self._towards_noise = (1 - after - sigma**2).clamp(min=0).sqrt().float()
        self.sigma = sigma.clamp(min=sigma_floor).float()

    def to(self, device: torch.device) -> Schedule:
        """Itself, moved."""
        for name in ("timesteps", "sigma", "_alpha", "_after", "_towards_noise"):
            setattr(self, name, getattr(self, name).to(device))
        return self

    def mean(self, x: Tensor, velocity: Tensor, left: Tensor) -> Tensor:
        """Mean of the next sample, of which `sigma[left - 1]` is the standard deviation.

        Args:
            x: (N, 3, H, W) samples.
            velocity: (N, 3, H, W) what the network says of them: v = sqrt(alpha) noise - sqrt(1 - alpha) image.
            left: (N,) int64 steps to go, 1..T.

        Returns:
            (N, 3, H, W).
        """
        alpha, after, towards = (_wide(one[left - 1]) for one in (self._alpha, self._after, self._towards_noise))
        image = (alpha.sqrt() * x - (1 - alpha).sqrt() * velocity).clamp(-1, 1)
        noise = (x - alpha.sqrt() * image) / (1 - alpha).sqrt()
        return after.sqrt() * image + towards * noise


@lru_cache(maxsize=1)
def alphas() -> Tensor:
    """(1000,) float64, not to be changed: the image's share of the variance after each trained step of noise."""

    def bar(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - bar((i + 1) / TRAINED_STEPS) / bar(i / TRAINED_STEPS), 0.999) for i in range(TRAINED_STEPS)]
    return torch.cumprod(1 - torch.tensor(betas, dtype=torch.float64), 0)


def log_density(sample: Tensor, mean: Tensor, sigma: Tensor) -> Tensor:
    """Log-density of samples under N(mean, sigma^2), as the mean over their numbers.

    The mean, not the sum, so that one clip range of importance ratios suits images of any size (ddpo-pytorch).

    Args:
        sample: (N, 3, H, W).
        mean: (N, 3, H, W).
        sigma: (N,).

    Returns:
        (N,).
    """
    wide = _wide(sigma)
    each = -((sample - mean) ** 2) / (2 * wide**2) - wide.log() - 0.5 * math.log(2 * math.pi)
    return each.flatten(1).mean(1)


def _wide(values: Tensor) -> Tensor:
    return values[:, None, None, None]
