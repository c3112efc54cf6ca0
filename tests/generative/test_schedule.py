"""The steps of denoising are diffusers' DDIM, row by row; the density is torch's normal distribution."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler
from torch.distributions import Normal

from sam_gym.generative.schedule import SIGMA_FLOOR, Schedule, alphas, log_density


def ddim(steps: int) -> DDIMScheduler:
    scheduler = DDIMScheduler(
        beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", timestep_spacing="trailing", clip_sample=True
    )
    scheduler.set_timesteps(steps)
    return scheduler


@pytest.mark.parametrize("steps", [20, 50, 1, 7])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_step_is_that_of_diffusers(steps: int, eta: float) -> None:
    scheduler, schedule = ddim(steps), Schedule(steps, eta, sigma_floor=1e-3)
    torch.testing.assert_close(alphas().float(), scheduler.alphas_cumprod, atol=1e-5, rtol=1e-4)
    assert schedule.timesteps.tolist() == scheduler.timesteps.flip(0).tolist()
    generator = torch.Generator().manual_seed(0)
    x, velocity, noise = torch.randn(3, steps, 3, 4, 4, generator=generator)
    left = torch.randperm(steps, generator=generator) + 1  # every row at another step
    mean, sigma = schedule.mean(x, velocity, left), schedule.sigma[left - 1]
    for row in range(steps):
        step = scheduler.step(
            velocity[row], int(schedule.timesteps[left[row] - 1]), x[row], eta=eta,
            use_clipped_model_output=True, variance_noise=noise[row],
        )  # fmt: skip
        ours = mean[row] + (sigma[row] if sigma[row] > 1e-3 else 0.0) * noise[row]  # the floor is ours alone
        torch.testing.assert_close(step.prev_sample, ours, atol=1e-4, rtol=1e-4)


def test_the_last_step_has_a_density_too() -> None:
    schedule = Schedule()
    assert schedule.sigma[0] == pytest.approx(SIGMA_FLOOR)
    assert (schedule.sigma >= SIGMA_FLOOR).all()
    assert (schedule.sigma.diff() >= 0).all()


def test_density_is_that_of_torch() -> None:
    sample, mean = torch.randn(2, 5, 3, 8, 8, dtype=torch.float64)
    sigma = torch.rand(5, dtype=torch.float64) + 0.05
    theirs = Normal(mean, sigma[:, None, None, None]).log_prob(sample).mean((1, 2, 3))
    torch.testing.assert_close(log_density(sample, mean, sigma), theirs)
