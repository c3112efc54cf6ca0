"""Agents at work: an image and boxes in, masks out, with nobody knowing the truth.

The episodes are those of the environments, to the same step function; only their rewards are NaN. Files are
the business of `sam_gym.annotate.segment_folder`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sam_gym._utils.boxes import tight_box
from sam_gym.data import UnlabelledData
from sam_gym.envs.base import EngineVectorEnv
from sam_gym.envs.keeping import BEST_PREDICTED, LAST, judge_by
from sam_gym.envs.observations import STATE
from sam_gym.envs.prompt import SamPromptVectorEnv
from sam_gym.prompters import Prompter, box_only
from sam_gym.sam.backend import get_backend
from sam_gym.sam.checkpoints import checkpoint_id
from sam_gym.sam.interface import Backend

if TYPE_CHECKING:
    from sam_gym.sb3.saved import SavedAgent

BATCH = 16
"""Boxes that are worked on together."""


@dataclass(frozen=True)
class Segment:
    """The mask of one box.

    Attributes:
        left: First column of `mask` in the image.
        top: First row of it.
        mask: (h, w) bool, the mask cut to its bounding rectangle; (0, 0) if it is empty.
        predicted_iou: The estimate of the agent's judge where it has one, else SAM's own; cut to [0, 1].
        prompts: Prompts given, the box not counted.
    """

    left: int
    top: int
    mask: NDArray[np.bool_]
    predicted_iou: float
    prompts: int

    @property
    def area(self) -> int:
        """Pixels in the mask."""
        return int(self.mask.sum())

    def paint(self, labels: NDArray, value: int) -> None:
        """Write `value` over the mask's pixels in `labels` (H, W)."""
        height, width = self.mask.shape
        labels[self.top : self.top + height, self.left : self.left + width][self.mask] = value


class Segmenter:
    """Makes masks of boxes with a frozen SAM, and an agent where there is one.

    An agent that has learned to judge masks returns the one that it thinks best, SAM's mask of the box included; any
    other returns its last one.

    Args:
        agent: A trained agent; None takes SAM's mask of the box as it is.
        checkpoint: SAM weights: a name or a file.
        device: As for environments.
        precision: As for environments.

    Attributes:
        settings: Of its environments.
        prompter: What acts in them.
        backend: The frozen SAM.

    Raises:
        ValueError: The agent was trained for no task that begins with a box, or does not fit this SAM.
        CheckpointError: The checkpoint cannot be had or read.
    """

    def __init__(
        self, agent: SavedAgent | None = None, checkpoint: str = "mobile_sam", device: str = "auto",
        precision: str = "auto",
    ) -> None:  # fmt: skip
        self._agent = agent
        self._env_class: type[EngineVectorEnv] = SamPromptVectorEnv
        self.settings: dict[str, Any] = {"checkpoint": checkpoint, "device": device, "precision": precision}
        if agent is not None:
            self._env_class = agent.env_class
            self.settings |= agent.settings
        self.backend: Backend = get_backend(checkpoint, device, precision)
        nothing = self.environment(1, np.zeros((1, 1, 3), np.uint8), np.zeros((0, 4)))
        self.prompter: Prompter = box_only if agent is None else agent.prompter(nothing)
        if getattr(self.prompter, "judge", None) is not None:
            self.settings["returns"] = BEST_PREDICTED

    def provenance(self) -> dict[str, Any]:
        """What masks depend on besides image and box, JSON-able."""
        settings = self._env_class.settings_class.parse(self.settings)
        return {
            "agent": None if self._agent is None else self._agent.identity,
            "checkpoint": checkpoint_id(self.settings["checkpoint"]),
            "precision": self.backend.precision,
            **{name: getattr(settings, name) for name in ("action_mode", "grid", "max_prompts", "view_scale")},
            **({} if settings.returns == LAST else {"returns": settings.returns}),
        }

    def __call__(self, image: NDArray[np.uint8], boxes: Sequence[Sequence[float]]) -> list[Segment]:
        """One segment a box.

        Args:
            image: (H, W, 3) uint8.
            boxes: x0, y0, x1, y1 each, in pixels of the image; what leaves it is cut off.

        Raises:
            ValueError: A box lies outside the image, or is none.
        """
        env = self.environment(min(BATCH, len(boxes)), image, boxes)
        judge_by(env.engine, self.prompter)
        segments: list[Segment] = []
        for start in range(0, len(boxes), BATCH):
            segments += _run(self.prompter, env, start, boxes[start : start + BATCH])
        return segments

    def environment(self, n: int, image: NDArray[np.uint8], boxes: ArrayLike, **settings: Any) -> EngineVectorEnv:
        """N episodes on an image, with objects in `boxes` (K, 4); `settings` replace those that masks are made with."""
        data = UnlabelledData("images", ["image"], [image], [boxes])
        return self._env_class(n, autoreset_mode="Disabled", images=data, **{**self.settings, **settings})


def _run(prompter: Prompter, env: EngineVectorEnv, start: int, boxes: Sequence[Sequence[float]]) -> list[Segment]:
    """Episodes of `boxes` in the first rows, each up to its end; whatever the other rows hold is left alone."""
    observations = env.begin_rows({i: {"image": 0, "object": start + i + 1, "cue": box} for i, box in enumerate(boxes)})
    running = np.arange(len(boxes))
    while len(running):
        observations, _ = env.step_rows(running, prompter(observations, env)[running])
        running = running[~env.episodes.terminated[running]]
    best = env.engine.best
    estimates = observations["state"][:, STATE.index("predicted_iou")] if best is None else best.predicted
    return [
        segment_of(env.mask(row), float(estimates[row]), int(env.episodes.prompts[row])) for row in range(len(boxes))
    ]


def segment_of(mask: NDArray[np.bool_], estimate: float, prompts: int) -> Segment:
    """A mask (H, W) cut to its rectangle."""
    rectangle = tight_box(mask)
    x0, y0, x1, y1 = (0, 0, 0, 0) if rectangle is None else (int(v) for v in rectangle)
    return Segment(x0, y0, mask[y0:y1, x0:x1].copy(), estimate, prompts)


def label_image(size: tuple[int, int], labels: Sequence[int], segments: Sequence[Segment]) -> NDArray[np.uint16]:
    """(H, W) uint16: 0, or the label of the segment there; where several overlap, of the smallest.

    Args:
        size: (H, W) of the image.
        labels: One for each segment, 1..65535.
        segments: The segments.
    """
    picture = np.zeros(size, np.uint16)
    for i in sorted(range(len(segments)), key=lambda i: -segments[i].area):
        segments[i].paint(picture, labels[i])
    return picture
