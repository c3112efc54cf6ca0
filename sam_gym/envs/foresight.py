"""What actions would lead to, without taking them: for oracles and teachers, since it is measured with the truth.

Candidates are many, so that they are decoded with the fovea (`sam_gym.sam.fovea`) unless told otherwise, whatever the
environment itself looks at. Nothing of an episode is changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sam_gym.envs.attention import Attention, FoveatedAttention
from sam_gym.envs.decoded import Decoded
from sam_gym.envs.observers import Rows
from sam_gym.sam.fovea import Window
from sam_gym.sam.prompts import PromptBatch

if TYPE_CHECKING:
    from sam_gym.envs.engine import PromptEngine

TOGETHER = 512
"""Candidates of a decode call at most, which bounds the memory."""


class Foresight:
    """Foresees IoU in the episodes of an engine.

    Args:
        engine: Of labelled images and without a module that labels clicks.

    Raises:
        ValueError: The engine is another one; says why.
    """

    def __init__(self, engine: PromptEngine) -> None:
        if not engine.data.labelled:
            raise ValueError(f"{engine.data.name} has no truths: nobody can say what an action would be worth")
        if engine.labeler is not None:
            raise ValueError("a module labels the clicks, one episode at a time: make the environment without it")
        self._engine = engine
        windows = engine.backend.has_windows
        self._quick: Attention = FoveatedAttention(engine.backend) if windows else engine.attention
        self._windows: dict[int, tuple[bytes, Window]] = {}

    def iou(self, rows: Rows, actions: NDArray, *, quick: bool = True) -> NDArray[np.float64]:
        """IoU with the truth of the mask that each action would lead to; that of the present mask for stop.

        Args:
            rows: (n,) whose episode is meant; a row may stand there many times.
            actions: n actions.
            quick: With the fovea; else with what the environment decodes with.
        """
        engine = self._engine
        trial = engine.episodes.at(rows)
        engine.actions.apply(trial, np.arange(len(rows)), np.asarray(actions))
        found = engine.quality.iou[rows]
        attention = self._quick if quick else engine.attention
        prompted = np.flatnonzero(~trial.stopped)
        before = {int(row): self._before(int(row), attention) for row in np.unique(rows[prompted])}
        for start in range(0, len(prompted), TOGETHER):
            some = prompted[start : start + TOGETHER]
            seen, previous = zip(*(before[int(row)] for row in rows[some]), strict=True)
            prompts = PromptBatch(
                trial.all_points[some], trial.all_labels[some], trial.box[some], None, np.zeros(len(some), np.bool_)
            )
            truths = [engine.truth_tensor(int(row)) for row in rows[some]]
            found[some] = Decoded.of(attention.decode(seen, prompts, previous, truths, boxes=False)).iou
        return found

    def _before(self, row: int, attention: Attention) -> tuple[object, Tensor | None]:
        """What an attention knows of an episode, and the logits that it would feed back."""
        engine = self._engine
        seen, logits = engine.present(row)
        fed = logits if engine.settings.feeds_mask and engine.episodes.decoded[row] else None
        if type(attention) is type(engine.attention):
            return seen, fed
        window = self._window(row, seen)
        return window, None if fed is None else window.cut(fed)

    def _window(self, row: int, embedding: object) -> Window:
        """That of a row's episode, kept while the episode lasts."""
        episodes = self._engine.episodes
        key = episodes.image[row].tobytes() + episodes.view[row].tobytes()
        if row not in self._windows or self._windows[row][0] != key:
            self._windows[row] = key, self._quick.look(embedding, episodes.view[row])  # type: ignore[arg-type]
        return self._windows[row][1]
