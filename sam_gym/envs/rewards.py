"""How good a mask is, and what a step is worth. Ground truth enters here and in oracles, nowhere else.

How region-text agreement is measured, whose gain "clip" is, `sam_gym.envs.agreement` says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sam_gym._utils.naming import unknown
from sam_gym.envs.episode import Episodes


@dataclass
class Quality:
    """Agreement of N masks with their objects: `iou` and `dice`, each (N,) float64.

    Where reports are written, also their F1, and the F1 that counts only what points at the right pixels.
    """

    iou: NDArray[np.float64]
    dice: NDArray[np.float64]
    f1: NDArray[np.float64] | None = None
    grounded_f1: NDArray[np.float64] | None = None

    def at(self, rows: NDArray[np.intp]) -> Quality:
        """That of some rows, as a copy."""
        f1, grounded = (None if one is None else one[rows] for one in (self.f1, self.grounded_f1))
        return Quality(self.iou[rows], self.dice[rows], f1, grounded)


@dataclass
class Outcome:
    """One step of n rows, as a reward sees it.

    Attributes:
        before: Quality of the masks before the step.
        after: Quality of the masks after it.
        hit: (n,) float64, +1 where the click's label agrees with the truth under it, -1 where not, 0 without a click.
        agreement: (n,) float64, gain in region-text agreement; 0 where no term asks for it. Of no truth.
    """

    before: Quality
    after: Quality
    hit: NDArray[np.float64]
    agreement: NDArray[np.float64]


REWARDS: dict[str, Callable[[Outcome], NDArray[np.float64]]] = {
    "iou": lambda outcome: outcome.after.iou - outcome.before.iou,
    "dice": lambda outcome: outcome.after.dice - outcome.before.dice,
    "hit": lambda outcome: outcome.hit,
    "clip": lambda outcome: outcome.agreement,
    "f1": lambda outcome: _gain(outcome.before.f1, outcome.after.f1),
    "grounded_f1": lambda outcome: _gain(outcome.before.grounded_f1, outcome.after.grounded_f1),
}
"""Reward terms by name. "hit" is AlignSAM's +1 / -1 (Huang et al., CVPR 2024), for clicks that carry their label."""

OF_REPORTS = ("f1", "grounded_f1")
"""Terms that there are only where reports are written."""


def _gain(before: NDArray[np.float64] | None, after: NDArray[np.float64] | None) -> NDArray[np.float64]:
    assert before is not None, "settings refuse the terms of reports where none are written"
    assert after is not None
    return after - before


def hit_reward(episodes: Episodes, row: int, truth: Tensor | None, *, by_module: bool) -> float:
    """+1 or -1: does the newest click's label agree with the truth under it? 0 if the prompt was a box.

    Where a module labels, the label is not the agent's doing: then it is AlignSAM's own reward, +1 if the click stands
    in the foreground, else -1.

    Args:
        episodes: The running episodes.
        row: Whose click.
        truth: (H, W) bool, the object; NaN is the reward without one.
        by_module: Whether a module labelled the click.
    """
    if truth is None:
        return np.nan
    slot = episodes.prompts[row] - 1
    label = episodes.labels[row, slot]
    if label < 0:
        return 0.0
    x, y = np.round(episodes.points[row, slot]).astype(int)
    return 1.0 if bool(truth[y, x]) == (bool(label) or by_module) else -1.0


def parse_reward(reward: str | Mapping[str, float]) -> dict[str, float]:
    """A reward setting as {term: weight}.

    Raises:
        ValueError: A term is unknown, or there is none.

    Example:
        >>> parse_reward("iou"), parse_reward({"iou": 1.0, "hit": 0.1})
        ({'iou': 1.0}, {'iou': 1.0, 'hit': 0.1})
    """
    weights = {reward: 1.0} if isinstance(reward, str) else {str(k): float(v) for k, v in reward.items()}
    for name in weights:
        if name not in REWARDS:
            raise ValueError(unknown("reward term", name, REWARDS))
    if not weights:
        raise ValueError(f"reward is empty; name at least one of {', '.join(REWARDS)}")
    return weights


def weighted(weights: Mapping[str, float], outcome: Outcome) -> NDArray[np.float64]:
    """(n,) float64: the weighted sum of the reward terms."""
    return sum((w * REWARDS[name](outcome) for name, w in weights.items()), np.zeros_like(outcome.hit))
