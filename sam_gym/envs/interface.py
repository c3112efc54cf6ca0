"""What prompters, oracles, benchmarks and annotation may ask of an environment, single or vector.

Nobody outside `sam_gym.envs` needs to know how episodes are run. Nothing here changes an episode.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sam_gym.data import SegmentationData
from sam_gym.envs.episode import ActionMode, Episodes
from sam_gym.envs.labelling import Labeler
from sam_gym.envs.rewards import Quality
from sam_gym.sam.interface import Backend

if TYPE_CHECKING:
    from sam_gym.envs.engine import PromptEngine


class EpisodeInterface:
    """The running episodes of an environment, to read; rows are its sub-environments, 0 for a single one."""

    engine: PromptEngine

    @property
    def data(self) -> SegmentationData:
        """The images of the split, and the objects in them."""
        return self.engine.data

    @property
    def backend(self) -> Backend:
        """The frozen SAM."""
        return self.engine.backend

    @property
    def actions(self) -> ActionMode:
        """How actions become prompts; `actions.stop` is the action that says stop, or None."""
        return self.engine.actions

    @property
    def episodes(self) -> Episodes:
        """The episodes as arrays with N rows: image, object, cue, view, prompts so far. Read, never write."""
        return self.engine.episodes

    @property
    def quality(self) -> Quality:
        """IoU and Dice of the current masks, (N,) float64 each, by the ground truth: for records, never for agents."""
        return self.engine.quality

    @property
    def labeler(self) -> Labeler | None:
        """The recalibration module beside the episodes, where one labels the clicks."""
        return self.engine.labeler

    @property
    def text_embedding(self) -> NDArray[np.float32] | None:
        """(D,) what CLIP says of the target's text, for tasks that show it to agents."""
        return self.engine.text_embedding

    def observations(self) -> dict[str, NDArray]:
        """Fresh copies of what all rows observe now, stacked."""
        return self.engine.observations()

    def info(self, row: int = 0) -> dict[str, Any]:
        """Quality and identity of one episode, as `reset` and `step` tell them."""
        return self.engine.info(row)

    def mask(self, row: int = 0) -> NDArray[np.bool_]:
        """(H, W) bool, SAM's current mask at the image's full size."""
        return self.engine.mask(row)

    def truth(self, row: int = 0) -> NDArray[np.bool_]:
        """(H, W) bool, the object itself. For oracles and pictures; never for agents.

        Raises:
            ValueError: The images have no truths.
        """
        return self.engine.truth(row)
