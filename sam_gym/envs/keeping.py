"""Which mask an episode returns: its last one, or the one that is predicted to be the best.

More prompts can make a mask worse. SAM predicts the IoU of each mask itself; a trained agent may have learned to do so
better (`sam_gym.sb3.judging`). Nothing here has access to ground truth.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sam_gym.envs.decoded import Decoded
from sam_gym.envs.observers import Rows

if TYPE_CHECKING:
    from sam_gym.envs.engine import PromptEngine

LAST, BEST_PREDICTED = RETURNS = ("last", "best_predicted")

Judge = Callable[[dict[str, NDArray]], NDArray[np.floating]]
"""Observations of n episodes -> predicted IoU (n,) of the masks in them."""


class BestMasks:
    """The best mask of each episode so far, the first one included, as far as one can know without the truth.

    Args:
        n: Episodes.

    Attributes:
        judge: What predicts IoU; None: SAM itself.
        predicted: (n,) the predicted IoU of each episode's best mask.
    """

    def __init__(self, n: int) -> None:
        self.judge: Judge | None = None
        self.predicted = np.zeros(n)
        self._masks: list[Decoded | None] = [None] * n

    def note(self, engine: PromptEngine, rows: Rows, decoded: Decoded, *, first: bool) -> None:
        """Remember those of new masks that are better than what their episodes had.

        Args:
            engine: Shows the masks already.
            rows: Whose they are.
            decoded: The masks.
            first: Whether they are the first of their episodes.
        """
        if not len(rows):
            return
        predicted = decoded.predicted_iou if self.judge is None else self.judge(engine.observations(rows))
        for i in np.flatnonzero(first | (predicted > self.predicted[rows])):
            self.predicted[rows[i]], self._masks[rows[i]] = predicted[i], decoded[i : i + 1]

    def of(self, row: int) -> Decoded:
        """The best mask of one episode."""
        best = self._masks[row]
        assert best is not None, "every episode begins with one"
        return best


def judge_by(engine: PromptEngine, prompter: object) -> None:
    """Where best masks are returned, a prompter that has a judge says which those are; else SAM itself does."""
    if engine.best is not None:
        engine.best.judge = getattr(prompter, "judge", None)
