"""SamBoxRefine: correct a box of the wrong size, with a frozen SAM to look at. Settings, actions, environments."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from sam_gym._utils.boxes import SIZE_ERRORS, Floats, clip_box, missized_box
from sam_gym.envs.base import EngineEnv, EngineVectorEnv
from sam_gym.envs.episode import ActionMode, Episodes, checked_actions, checked_choices
from sam_gym.envs.settings import RESET_OPTIONS, Settings
from sam_gym.envs.shown_prompts import ShownBox, ShownPrompts

OUTWARD = np.array([-1, -1, 1, 1], np.float32)
"""Direction in which x0, y0, x1, y1 grow the box."""


class SideMoves:
    """Box(-1, 1, (4,)): moves left, top, right and bottom side, outward where positive; nearly no move says stop."""

    reach = 0.4
    """Move of an action of 1, as a share of the box's extent in that direction."""

    still = 0.05
    """Actions all within this of 0 say stop."""

    stop = np.zeros(4, np.float32)

    def __init__(self) -> None:
        self.space: spaces.Space = spaces.Box(-1.0, 1.0, (4,), np.float32)

    def apply(self, episodes: Episodes, rows: NDArray[np.intp], actions: NDArray) -> None:
        """Write the prompts that `actions` (one per row) mean into `episodes`."""
        for row, action in zip(rows, checked_actions(actions, 4), strict=True):
            if (np.abs(action) <= self.still).all():
                episodes.stopped[row] = True
            else:
                box = episodes.box[row]
                episodes.replace_box(row, box + OUTWARD * action * self.reach * _extents(box))

    def toward(self, boxes: Floats, targets: Floats) -> Floats:
        """The actions (n, 4) that come nearest to turning `boxes` (n, 4) into `targets` (n, 4)."""
        return np.clip((targets - boxes) * OUTWARD / (self.reach * _extents(boxes)), -1, 1).astype(np.float32)


class SideSteps:
    """Discrete(10): a side outward (0 left, 1 top, 2 right, 3 bottom), a side inward (4..7), 8 re-box, 9 stop.

    Re-box replaces the box by the tight box of SAM's mask; where the mask is empty, by the box before this one.
    """

    step = 0.1
    """Move of a side, as a share of the box's extent in that direction."""

    rebox, stop = 8, 9

    def __init__(self) -> None:
        self.space: spaces.Space = spaces.Discrete(10)

    def apply(self, episodes: Episodes, rows: NDArray[np.intp], actions: NDArray) -> None:
        """Write the prompts that `actions` (one per row) mean into `episodes`."""
        meaning = "0..3 left, top, right, bottom outward, 4..7 inward, 8 re-box to the mask, 9 stop"
        for row, action in zip(rows, checked_choices(actions, self.stop, meaning), strict=True):
            if action == self.stop:
                episodes.stopped[row] = True
            else:
                episodes.replace_box(row, self.results(episodes, row)[action])

    def results(self, episodes: Episodes, row: int) -> Floats:
        """(9, 4) the box that each action but stop would leave, clipped to the image."""
        box, mask_box = episodes.box[row], episodes.mask_box[row]
        moves = np.diag(OUTWARD * self.step * _extents(box))
        fitted = episodes.last_box[row] if np.isnan(mask_box).any() else mask_box
        height, width = episodes.image_size[row]
        return np.stack([clip_box(one, (height, width)) for one in (*(box + moves), *(box - moves), fitted)])

    def masks(self, episodes: Episodes) -> NDArray[np.bool_]:
        """(N, 10) bool: actions that change the box, and stop."""
        allowed = np.ones((len(episodes), 10), np.bool_)
        for row in range(len(episodes)):
            allowed[row, :9] = (self.results(episodes, row) != episodes.box[row]).any(axis=1)
        return allowed


def _extents(boxes: Floats) -> Floats:
    """Width, height, width, height of boxes (..., 4)."""
    extent = boxes[..., 2:] - boxes[..., :2]
    return np.concatenate([extent, extent], axis=-1)


@dataclass(frozen=True)
class BoxRefineSettings(Settings):
    """Arguments of SamBoxRefine environments.

    Attributes:
        action_mode: "continuous" or "discrete".
        box_error: Relative error of the first box's size; None draws it from U(0, `max_box_error`).
        max_box_error: See `box_error`.
        size_error: Convention, "isotropic" or "sides" (`sam_gym._utils.boxes.missized_box`).
    """

    action_mode: str = "continuous"
    view_scale: float = 2.4
    box_error: float | None = None
    max_box_error: float = 0.4
    size_error: str = "isotropic"

    limits: ClassVar[Mapping[str, tuple[float, float]]] = {**Settings.limits, "max_box_error": (0, 0.9)}
    reset_options: ClassVar[tuple[str, ...]] = (*RESET_OPTIONS, "error")
    shown_prompts: ClassVar[ShownPrompts] = ShownBox()
    feeds_mask: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size_error not in SIZE_ERRORS:
            raise ValueError(f"size_error {self.size_error!r} is unknown; choose from {', '.join(SIZE_ERRORS)}")
        if self.box_error is not None:
            _check_error("box_error", self.box_error)

    def actions(self) -> ActionMode:
        """See `Settings.actions`."""
        modes: dict[str, type[SideMoves] | type[SideSteps]] = {"continuous": SideMoves, "discrete": SideSteps}
        if self.action_mode not in modes:
            raise ValueError(f"action_mode {self.action_mode!r} is unknown; choose 'continuous' or 'discrete'")
        return modes[self.action_mode]()

    def draw_cue(self, tight: Floats, image_size: tuple[int, int], rng: np.random.Generator, **options: Any) -> Floats:
        """See `Settings.draw_cue`; the option "error" replaces `box_error`."""
        error = options.get("error", self.box_error)
        if error is None:
            error = rng.uniform(0, self.max_box_error)
        else:
            _check_error("reset option 'error'", error)
        return missized_box(tight, float(error), self.size_error, image_size, rng)


def _check_error(name: str, error: Any) -> None:
    if not isinstance(error, numbers.Real) or not 0 <= float(error) <= 0.9:
        raise ValueError(f"{name} is a relative error of the box's size in 0..0.9, got {error!r}")


class SamBoxRefineEnv(EngineEnv):
    """Correct a box of the wrong size until a frozen Segment Anything Model segments one object with it.

    ## Description

    One episode is one object in one image. Boxes from detectors or from people have the wrong size, and SAM's masks
    fall with them. The agent is given such a box (the *cue*), sees the mask that SAM makes of it, and moves the box's sides
    until it says stop or its prompts are used up. SAM is the world and is never trained; by default it is
    MobileSAM (Zhang et al., 2023) and the images are sections of the ISBI 2012 challenge (Cardona et al., 2010).

    The first box has a size that is wrong by e, drawn from U(0, 0.4) or given: every side is e / 2 of the box's extent off.
    With `size_error="isotropic"` all four are too far out, or all too far in: width and height are 1 + e or 1 - e
    times what they should be, about the right centre. With `size_error="sides"` each side is too far out or too far in by
    itself. SAM is given the box alone, never its own previous mask, so that a box has one mask however it was reached.

    The *view* is the square centred on the cue, 2.4 times its longer side; all is observed there. Boxes may leave it.

    ## Action Space

    `Box(-1, 1, (4,))`: moves of the left, top, right and bottom side, outward where positive, in units of 0.4 times the
    box's present extent in that direction. Four moves within 0.05 of zero (2 % of the extent) say stop.

    With `action_mode="discrete"` the space is `Discrete(10)`, and `action_masks()` forbids what changes nothing.

    | action | meaning                                                                                     |
    |--------|---------------------------------------------------------------------------------------------|
    | 0 .. 3 | left, top, right, bottom side outward by 0.1 of the box's extent                            |
    | 4 .. 7 | left, top, right, bottom side inward by 0.1 of the box's extent                             |
    | 8      | re-box: the tight box of SAM's mask; where the mask is empty, the box before this one       |
    | 9      | stop                                                                                        |

    A box is clipped to the image and at least one pixel wide and high.

    ## Observation Space

    A `Dict` of three arrays; none of them depends on the ground truth beyond the cue box.

    | key         | shape, dtype              | content                                                               |
    |-------------|---------------------------|-----------------------------------------------------------------------|
    | `maps`      | (6, 64, 64) uint8         | the view: red, green, blue, mask probability, cue box, present box    |
    | `embedding` | (C, G, G) float32         | SAM's image embedding in the view (C = 256, G = 16), 0 outside the image |
    | `state`     | (13,) float32 in [0, 1]   | prompts left, SAM's predicted IoU, mask area in the view, view side / image side, change of the mask by the last prompt; x0, y0, x1, y1 of the present box, then of the mask's tight box (0 if empty), as shares of the view |

    With `observation="reference"` what stays the same within an episode is left out: `mask` (1, 64, 64) uint8, `box` (4,)
    float32 in image pixels, `state`, and `reference` (8,) as in `SamPromptEnv`.

    ## Rewards

    IoU after the step minus IoU before it, at the image's full resolution, minus `prompt_cost` for a prompt. `reward`
    selects "iou", "dice", "clip" (as in `SamPromptEnv`) or a weighted sum {"iou": 1, "dice": 1}; "hit" is 0 here, since a
    box is no click.

    ## Starting State

    An object drawn uniformly from the split and a first box drawn for it. `reset(options={"image": ..., "object": ...,
    "error": 0.3})` poses one case with a drawn direction of its error; "cue": (x0, y0, x1, y1) gives the box itself. What
    is not given is drawn. `image` is an index in the split or an image id, `object` an id in that image's labels.

    ## Episode End

    Terminates when the agent says stop or has given `max_prompts` (5) boxes. It truncates only if `max_episode_steps`
    is passed to `gymnasium.make`.

    ## Information

    `iou`, `dice` (of the current mask), `prompts` (given so far), `image`, `object`, and `source`: the data set that
    the pixels really come from ("synthetic-em" where a stand-in replaces the real sections).

    ## Arguments

    ```python
    import gymnasium, sam_gym
    env = gymnasium.make("SamBoxRefine-ISBI-v0", box_error=0.4, render_mode="rgb_array")
    ```

    | argument       | default       | meaning                                                              |
    |----------------|---------------|----------------------------------------------------------------------|
    | `box_error`    | None          | e; None draws it                                                     |
    | `max_box_error`| 0.4           | largest e that is drawn                                              |
    | `size_error`   | "isotropic"   | "sides": each side by itself, see Description                        |
    | `action_mode`  | "continuous"  | "continuous" or "discrete"                                           |
    | `max_prompts`  | 5             | boxes per episode, the cue not counted                               |
    | `view_scale`   | 2.4           | side of the view over the cue's longer side                          |
    | `dataset`, `split`, `data`, `checkpoint`, `device`, `precision`, `attention`, `observation`, `action_mask`, `grid`, `reward`, `prompt_cost`, `clip`, `min_area`, `max_area`, `root`, `shares`, `window`, `returns`, `copies`, `render_mode` | | as for `SamPromptEnv` |

    `checkpoint` also takes a decoder that was tuned for such boxes (`sam_gym.sam.tuning`).

    ## Vectorized environment

    `gymnasium.make_vec("SamBoxRefine-ISBI-v0", num_envs=16)` gives `SamBoxRefineVectorEnv`: the same step function over 16
    episodes with one SAM call per step. `autoreset_mode` is "NextStep" (default), "SameStep" or "Disabled", as a string.

    ## Version History

    * v0: initial version (sam_gym 0.1.0).
    * v1: of DSB only: 111 more images in the training split; validation and test are the same (sam_gym 0.1.0).
    """  # noqa: E501

    settings_class = BoxRefineSettings


class SamBoxRefineVectorEnv(EngineVectorEnv):
    """N SamBoxRefine episodes with one SAM call per step; see `SamBoxRefineEnv` for what an episode is.

    Autoreset, seeding and options are those of `EngineVectorEnv`.
    """

    settings_class = BoxRefineSettings
