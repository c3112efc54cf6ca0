"""The loop by which the supervised parts of an agent are fitted: its sketcher and its judge."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

Update = Callable[[int, str], object]
"""Told how many steps more have been done, and what is going on."""


class FitSettings(Protocol):
    """What `fit` reads of a part's settings."""

    @property
    def gradient_steps(self) -> int:
        """Adam steps."""

    @property
    def learning_rate(self) -> float:
        """Of Adam, falling linearly to zero."""

    @property
    def weight_decay(self) -> float:
        """Of Adam."""


def fit(
    parameters: Iterable[Tensor],
    settings: FitSettings,
    batch: Callable[[], tuple[Tensor, float]],
    update: Update,
    doing: str,
) -> float:
    """Fit some weights.

    Args:
        parameters: The weights.
        settings: How long and how fast.
        batch: Draws a batch: its loss, and a number that says how good the weights are.
        update: See `Update`.
        doing: What is going on, for `update`.

    Returns:
        Mean of the number over the last tenth of the steps.
    """
    weights = list(parameters)
    optimizer = torch.optim.AdamW(weights, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, settings.gradient_steps)
    history = []
    for _ in range(settings.gradient_steps):
        loss, measure = batch()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        history.append(measure)
        update(1, doing)
    return float(np.mean(history[-max(1, settings.gradient_steps // 10) :]))
