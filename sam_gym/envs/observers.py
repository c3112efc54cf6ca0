"""Observers hold what agents see of N running episodes: they bring it up to date, and hand out copies of it.

`FullObserver` spells everything out; `ReferenceObserver` replaces what stays the same within an episode by a reference
that a policy resolves itself (`sam_gym.envs.references`), so that rollout buffers stay small. Neither has access to
ground truth. How single maps are made is in `sam_gym.envs.observations`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from sam_gym._utils.naming import unknown
from sam_gym.envs import observations, references
from sam_gym.envs.attention import Frame
from sam_gym.envs.episode import Episodes
from sam_gym.envs.observations import MAP_SIZE, MAPS, STATE
from sam_gym.envs.shown_prompts import ShownPrompts
from sam_gym.sam.interface import Backend, ImageEmbedding

Rows = NDArray[np.intp]
Text = NDArray[np.float32] | None


class Observer(ABC):
    """What all observers keep: the mask in the view, and the state.

    Args:
        episodes: The N episodes; they are read whenever something changes.
        backend: Where the embeddings are.
        grid: G, cells of the action grid per side.
        shown: How the prompts are shown.
        text: (D,) float32 embedding of the target text, for tasks that show it; else None.

    Attributes:
        space: Of one environment's observations.
    """

    space: spaces.Dict

    def __init__(self, episodes: Episodes, backend: Backend, grid: int, shown: ShownPrompts, text: Text = None) -> None:
        n = len(episodes)
        self._episodes, self._backend, self._grid, self._shown, self._text = episodes, backend, grid, shown, text
        self._masks = np.zeros((n, MAP_SIZE, MAP_SIZE), np.uint8)
        self._state = np.zeros((n, len(STATE) + len(shown.numbers)), np.float32)
        self._sampling = observations.Sampling.blank(n, backend.device)

    def begin(self, row: int, image: NDArray[np.uint8], embedding: ImageEmbedding, frame: Frame) -> None:
        """An episode on `image` begins in `row`; its first mask comes with `show`. Logits will cover `frame`."""
        view = self._episodes.view[row]
        self._sampling.put(row, observations.sampling_of(view, embedding, frame=frame))
        self._state[row, STATE.index("view_size")] = min(1.0, float(view[2]) / max(image.shape[:2]))

    def show(self, rows: Rows, logits: Sequence[Tensor], predicted_iou: NDArray, *, first: bool) -> None:
        """Take over new masks, `first` of their episodes or not: n low-resolution logits (4h, 4w) on the device."""
        maps = self.seen(rows, logits)
        change = np.abs(maps.astype(np.int16) - self._masks[rows]).mean(axis=(1, 2)) / 255
        self._masks[rows] = maps
        self._state[rows, STATE.index("predicted_iou")] = np.clip(predicted_iou, 0, 1)
        self._state[rows, STATE.index("mask_area")] = maps.mean(axis=(1, 2)) / 255
        self._state[rows, STATE.index("last_change")] = 0 if first else change
        self.prompt(rows)

    def prompt(self, rows: Rows) -> None:
        """Show the prompts as the episodes have them now."""
        self._state[rows, len(STATE) :] = self._shown.state(self._episodes, rows)

    def seen(self, rows: Rows, logits: Sequence[Tensor]) -> NDArray[np.uint8]:
        """(n, 64, 64): probabilities of n masks in the views of `rows`, of which each may stand there many times."""
        return observations.mask_maps(logits, self._sampling.at(torch.as_tensor(rows, device=logits[0].device)))

    def count(self, rows: Rows) -> None:
        """Note how many prompts are left."""
        self._state[rows, STATE.index("prompts_left")] = 1 - self._episodes.prompts[rows] / self._episodes.max_prompts

    def masks(self, rows: Rows) -> NDArray[np.uint8]:
        """(n, 64, 64) uint8: the masks' probabilities in their views, as they are observed."""
        return self._masks[rows]

    @abstractmethod
    def get(self, rows: Rows | slice) -> dict[str, NDArray]:
        """Fresh copies of the observations of `rows`, stacked."""

    def _state_and_text(self, rows: Rows | slice) -> dict[str, NDArray]:
        """`state`, and `text` where the task shows it."""
        state = self._state[rows].copy()
        text = {} if self._text is None else {"text": np.tile(self._text, (len(state), 1))}
        return {"state": state, **text}


class FullObserver(Observer):
    """`maps`, `embedding` and `state`: everything there is to see."""

    def __init__(self, episodes: Episodes, backend: Backend, grid: int, shown: ShownPrompts, text: Text = None) -> None:
        super().__init__(episodes, backend, grid, shown, text)
        n, channels = len(episodes), backend.embedding_channels
        counts = len(shown.channels), len(shown.numbers)
        self.space = observations.observation_space(channels, grid, *counts, 0 if text is None else len(text))
        self._maps = np.zeros((n, len(MAPS) + len(shown.channels), MAP_SIZE, MAP_SIZE), np.uint8)
        self._embeddings = np.zeros((n, channels, grid, grid), np.float32)

    def begin(self, row: int, image: NDArray[np.uint8], embedding: ImageEmbedding, frame: Frame) -> None:
        """See `Observer.begin`."""
        super().begin(row, image, embedding, frame)
        view, cue = self._episodes.view[row], self._episodes.cue[row]
        self._maps[row] = 0
        self._maps[row, :3], self._maps[row, 4] = observations.scene_maps(image, view, cue)
        self._embeddings[row] = observations.embedding_map(embedding, view, self._grid).cpu().numpy()

    def prompt(self, rows: Rows) -> None:
        """See `Observer.prompt`."""
        super().prompt(rows)
        for row, prompts in zip(rows, self._shown.prompts(self._episodes, rows), strict=True):
            self._maps[row, len(MAPS) :] = self._shown.maps(prompts, self._episodes.view[row], self._grid)

    def get(self, rows: Rows | slice) -> dict[str, NDArray]:
        """See `Observer.get`."""
        maps = self._maps[rows].copy()
        maps[:, MAPS.index("mask")] = self._masks[rows]
        return {
            "maps": maps,
            "embedding": self._embeddings[rows].copy(),
            **self._state_and_text(rows),
        }


class ReferenceObserver(Observer):
    """`mask`, the prompts, `state`, and a `reference` to image, view and cue for their pixels and embedding."""

    def __init__(self, episodes: Episodes, backend: Backend, grid: int, shown: ShownPrompts, text: Text = None) -> None:
        super().__init__(episodes, backend, grid, shown, text)
        clicks = episodes.all_labels.shape[1]
        self.space = references.observation_space(shown, clicks, 0 if text is None else len(text))
        self._references = np.zeros((len(episodes), len(references.REFERENCE)), np.float32)
        self._images: list[tuple[NDArray[np.uint8], str] | None] = [None] * len(episodes)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Unpickled in another process, which has to know the images too."""
        self.__dict__.update(state)
        for image in self._images:
            if image is not None:
                references.register(self._backend, *image)

    def begin(self, row: int, image: NDArray[np.uint8], embedding: ImageEmbedding, frame: Frame) -> None:
        """See `Observer.begin`."""
        super().begin(row, image, embedding, frame)
        self._images[row] = image, embedding.key
        number = references.register(self._backend, image, embedding.key)
        self._references[row] = (number, *self._episodes.view[row], *self._episodes.cue[row])

    def get(self, rows: Rows | slice) -> dict[str, NDArray]:
        """See `Observer.get`."""
        return {
            "mask": self._masks[rows, None].copy(),
            self._shown.name: self._shown.prompts(self._episodes, rows),
            "reference": self._references[rows].copy(),
            **self._state_and_text(rows),
        }


OBSERVERS: dict[str, type[FullObserver] | type[ReferenceObserver]] = {
    "full": FullObserver,
    "reference": ReferenceObserver,
}


def check_observer(name: str) -> None:
    """Raise ValueError unless `name` is a key of `OBSERVERS`."""
    if name not in OBSERVERS:
        raise ValueError(unknown("observation", name, OBSERVERS))
