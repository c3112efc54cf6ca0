"""What `gymnasium.make` accepts: the settings that all tasks share, and the questions that an engine asks of a task.

A task is a subclass of `Settings`, in the module of its environments: its own arguments, how the box is drawn that an
episode starts from, and how actions become prompts. Nothing here runs anything.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from sam_gym._utils.boxes import Floats
from sam_gym._utils.naming import unknown
from sam_gym.data import SegmentationData
from sam_gym.envs.attention import ATTENTIONS
from sam_gym.envs.episode import ActionMode, Episodes
from sam_gym.envs.keeping import LAST, RETURNS
from sam_gym.envs.observers import check_observer
from sam_gym.envs.rewards import OF_REPORTS, parse_reward
from sam_gym.envs.shown_prompts import ShownPrompts

RESET_OPTIONS = ("image", "object", "cue")


@dataclass(frozen=True)
class Parsed:
    """Arguments of the environments of any family."""

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> Self:
        """Settings from keyword arguments; an unknown one is named together with the nearest known one."""
        known = [f.name for f in fields(cls)]
        for name in given:
            if name not in known:
                raise TypeError(unknown("argument", name, known))
        return cls(**given)


@dataclass(frozen=True)
class Settings(Parsed, ABC):
    """Arguments of all environments; all values survive JSON.

    Attributes:
        dataset: Name in `sam_gym.data.DATASETS`.
        split: "train", "val" or "test".
        data: "auto" (real files, else the marked stand-in), "real" (else an error) or "synthetic".
        checkpoint: Name in `sam_gym.sam.CHECKPOINTS` or path of a SAM weights file.
        device: "auto", "cpu", "cuda" ...
        precision: "exact" (float32 decoder), "fast" (bfloat16), "auto" (fast where the hardware has bfloat16) or
            "official" (segment_anything's own decoder).
        attention: What the decoder looks at: "full", every cell of the image; or "foveated", the cells around the view
            one by one and the rest in blocks, which is many times quicker and gives nearly the same masks
            (`sam_gym.sam.fovea`).
        action_mode: How actions become prompts; the task says which modes there are.
        observation: "full", or "reference" for small rollout buffers (`sam_gym.envs.references`).
        action_mask: Whether observations hold `action_mask` too, for trainers that look for it there; discrete action
            modes only.
        grid: G, cells of the action grid and of the embedding per side.
        max_prompts: Prompts per episode, the cue box not counted.
        view_scale: Side of the view over the cue box's longer side.
        reward: A reward term ("iou", "dice", "hit", "clip"; where reports are written "f1", "grounded_f1") or {term:
            weight}.
        prompt_cost: Subtracted for each prompt (not for stop).
        min_area: Smallest object in px.
        max_area: Largest object in px.
        root: Folder of images and masks, for dataset "folder" (`sam_gym.data.folder`).
        shares: Its percentages of images in "train", "val" and "test".
        window: Of its NIfTI and DICOM files: centre and width of the values that are shown; None: the files' own.
        clip: The CLIP of the reward "clip" (`sam_gym.semantics.models`).
        returns: The mask that an episode ends with: "last", or "best_predicted", that of all its masks, the first one
            included, whose IoU is predicted to be the highest (`sam_gym.envs.keeping`).
        copies: Altered copies beside each image of the training split (`sam_gym.data.copies`).
    """

    dataset: str = "isbi2012"
    split: str = "train"
    data: str = "auto"
    checkpoint: str = "mobile_sam"
    device: str = "auto"
    precision: str = "exact"
    attention: str = "full"
    action_mode: str = ""
    observation: str = "full"
    action_mask: bool = False
    grid: int = 16
    max_prompts: int = 5
    view_scale: float = 1.7
    reward: str | Mapping[str, float] = "iou"
    prompt_cost: float = 0.0
    min_area: int = 200
    max_area: int = 60_000
    root: str | None = None
    shares: Sequence[float] = (60, 20, 20)
    window: Sequence[float] | None = None
    clip: str = "clip-micro"
    returns: str = LAST
    copies: int = 0

    limits: ClassVar[Mapping[str, tuple[float, float]]] = {
        "grid": (2, 32), "max_prompts": (1, 100), "view_scale": (1, 20), "copies": (0, 20),
    }  # fmt: skip
    """Smallest and largest value of numbers."""

    reset_options: ClassVar[tuple[str, ...]] = RESET_OPTIONS
    """What `reset(options=...)` may hold."""

    shown_prompts: ClassVar[ShownPrompts]
    """How the prompts are shown to agents."""

    feeds_mask: ClassVar[bool] = True
    """Whether SAM is given its own previous logits."""

    has_cue: ClassVar[bool] = True
    """Whether an episode starts from a box and its mask; else from the whole image and no mask."""

    unprompted: ClassVar[str] = "box only"
    """What tables call whoever stops at once."""

    whole_class: ClassVar[bool] = False
    """Whether the target is all of a class in the image, which agents are told in words; else one object."""

    describes: ClassVar[bool] = False
    """Whether a report is written about the image, of which the agent sees a window."""

    given_clicks: ClassVar[int] = 0
    """How many clicks an episode may be begun with, by the reset option "points"."""

    @property
    def labeler(self) -> str:
        """Who says whether a click is foreground: "policy", "untrained" or a file, see `sam_gym.envs.labelling`."""
        return "policy"

    @property
    def granularity(self) -> str | None:
        """Which of the three masks that SAM has for an ambiguous prompt is taken; None: its single mask."""
        return None

    @property
    def windows(self) -> tuple[int | None, int]:
        """Where images are described: side of windows in px, None for whole images; and objects in one at most."""
        return None, 0

    @property
    def first_clicks(self) -> str:
        """Where clicks come from that an episode begins with: "nothing", "truth" or "labeler"."""
        return "nothing"

    def __post_init__(self) -> None:
        reports = [term for term in parse_reward(self.reward) if term in OF_REPORTS]
        if reports and not self.describes:
            raise ValueError(f"reward {reports[0]!r} is that of reports, which only SamReport environments write")
        check_observer(self.observation)
        if self.attention not in ATTENTIONS:
            raise ValueError(unknown("attention", self.attention, ATTENTIONS))
        if self.returns not in RETURNS:
            raise ValueError(unknown("returns", self.returns, RETURNS))
        if self.attention == "foveated" and self.precision == "official":
            raise ValueError(
                "precision='official' is segment_anything's own decoder, which looks at whole images: leave attention "
                "at 'full', or choose precision 'exact', 'fast' or 'auto'"
            )
        for name, (low, high) in self.limits.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name}={getattr(self, name)} is outside {low:g}..{high:g}")
        for name in ("grid", "max_prompts", "copies"):
            if not isinstance(getattr(self, name), int):
                raise ValueError(f"{name}={getattr(self, name)} is not an integer")
        if not np.isfinite(self.prompt_cost):
            raise ValueError(f"prompt_cost={self.prompt_cost} is not finite")

    def choose(self, data: SegmentationData) -> SegmentationData:
        """The images of a split that are used: all of them."""
        return data

    def rules(self) -> dict[str, Any]:
        """What shapes an episode once SAM and the images are given, and so belongs to every result."""
        own = [f.name for f in fields(self) if f.name not in {shared.name for shared in fields(Settings)}]
        shared = ["action_mode", "grid", "max_prompts", "view_scale"]
        if self.returns != LAST:  # records of old say nothing of it
            shared.append("returns")
        return {name: getattr(self, name) for name in (*shared, *own)}

    def blank(self, n: int) -> Episodes:
        """N episodes that have not begun."""
        return Episodes.blank(n, self.max_prompts, self.grid, self.given_clicks)

    @abstractmethod
    def actions(self) -> ActionMode:
        """The action mode; ValueError if its name is unknown."""

    @abstractmethod
    def draw_cue(
        self, tight: Floats, image_size: tuple[int, int], rng: np.random.Generator, **options: Any
    ) -> NDArray[np.float32]:
        """The box (4,) that an episode starts from, and its view is laid around.

        Args:
            tight: (4,) the object's tight box.
            image_size: (H, W).
            rng: The sub-environment's own generator.
            **options: The task's own reset options, where given.
        """

    def first_mask(
        self, labels: NDArray[np.integer], object_id: int, cue: NDArray[np.float32]
    ) -> NDArray[np.bool_] | None:
        """The mask (H, W) that an episode begins with, its tight box being the cue; None: SAM makes it of the cue.

        Args:
            labels: (H, W) of the image, 0 = none, else an object's id.
            object_id: The object's value in them.
            cue: The box that `draw_cue` drew; equal arguments give equal masks.
        """
        return None
