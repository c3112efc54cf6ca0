"""SamPrompt: prompt a frozen SAM until it segments one object. Settings, single and vector environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from sam_gym._utils.boxes import Floats, noisy_box
from sam_gym.envs.base import EngineEnv, EngineVectorEnv
from sam_gym.envs.episode import ActionMode, BoxActions, GridActions, PointActions
from sam_gym.envs.settings import Settings
from sam_gym.envs.shown_prompts import ShownClicks, ShownPrompts


@dataclass(frozen=True)
class PromptSettings(Settings):
    """Arguments of SamPrompt environments.

    Attributes:
        action_mode: "grid", "point" or "box".
        box_noise: e, relative error of each side of the cue box.
    """

    action_mode: str = "grid"
    box_noise: float = 0.2

    limits: ClassVar[Mapping[str, tuple[float, float]]] = {**Settings.limits, "box_noise": (0, 0.45)}
    shown_prompts: ClassVar[ShownPrompts] = ShownClicks()

    def actions(self) -> ActionMode:
        """See `Settings.actions`."""
        if self.action_mode == "grid":
            return GridActions(self.grid)
        modes: dict[str, type[PointActions] | type[BoxActions]] = {"point": PointActions, "box": BoxActions}
        if self.action_mode not in modes:
            raise ValueError(f"action_mode {self.action_mode!r} is unknown; choose 'grid', 'point' or 'box'")
        return modes[self.action_mode]()

    def draw_cue(self, tight: Floats, image_size: tuple[int, int], rng: np.random.Generator, **options: Any) -> Floats:
        """See `Settings.draw_cue`."""
        return noisy_box(tight, self.box_noise, image_size, rng)


class SamPromptEnv(EngineEnv):
    """Prompt a frozen Segment Anything Model until it segments one object.

    ## Description

    One episode is one object in one image. The agent is given a box that is somewhat wrong (the *cue*), sees the mask
    that SAM makes of it, and improves the mask by clicking: foreground here, background there, until it says stop or
    its prompts are used up. SAM is the world and is never trained; by default it is MobileSAM (Zhang et al., 2023)
    and the images are sections of the ISBI 2012 challenge (Cardona et al., 2010), whose objects are cells.

    Each side of the object's tight box is moved by U(-e, e) times the box's extent, e = 0.2, to make the cue. The
    *view* is the square centred on the cue, 1.7 times its longer side; everything is observed and done in the view.
    SAM is given the cue box, all clicks so far, and its own previous low-resolution logits, and returns a single mask.

    ## Action Space

    `Discrete(2 * G * G + 1)`, G = 16. The view is divided into G x G cells, numbered row by row from its top left.

    | action             | meaning                                            |
    |--------------------|----------------------------------------------------|
    | `0 .. G*G-1`       | foreground click at the centre of that cell        |
    | `G*G .. 2*G*G-1`   | background click at the centre of cell `a - G*G`   |
    | `2*G*G`            | stop                                               |

    `action_masks()` forbids cells that were clicked before or whose centre lies outside the image. A forbidden click
    is still carried out (moved to the image's border if it lies outside).

    With `action_mode="point"` the space is `Box(-1, 1, (4,))`: x, y in the view, label (>= 0 foreground), stop (> 0.5).
    With `action_mode="box"` it is `Box(-1, 1, (5,))`: x0, y0, x1, y1 in the view, stop (> 0.5); each box replaces the
    last one.

    ## Observation Space

    A `Dict` of three arrays; none of them depends on the ground truth beyond the cue box.

    | key         | shape, dtype              | content                                                               |
    |-------------|---------------------------|-----------------------------------------------------------------------|
    | `maps`      | (7, 64, 64) uint8         | the view: red, green, blue, mask probability, cue box, positive clicks, negative clicks |
    | `embedding` | (C, G, G) float32         | SAM's image embedding in the view (C = 256), 0 outside the image      |
    | `state`     | (5,) float32 in [0, 1]    | prompts left, SAM's predicted IoU, mask area in the view, view side / image side, change of the mask by the last prompt |

    With `observation="reference"` what stays the same within an episode is left out, so that a rollout buffer holds
    4 KB an observation instead of 285: `mask` (1, 64, 64) uint8, `clicks` (5, 3) float32 (x, y in image pixels and label,
    -1 for none yet), `state`, and `reference` (8,) float32: the image's number, the view (left, top, side) and the cue
    (x0, y0, x1, y1), in image pixels. `sam_gym.envs.references.resolve` makes the full observation of it, in any
    process that knows the images; `sam_gym.sb3.SpatialPolicy` does so by itself.

    ## Rewards

    IoU after the step minus IoU before it, at the image's full resolution, minus `prompt_cost` for a prompt. The
    undiscounted return is the IoU gained over the box alone. `reward` selects "iou", "dice", "hit" (+1 if the click's
    label agrees with the truth under it, else -1; AlignSAM, Huang et al., 2024), "clip" (gain in region-text agreement, which
    needs no truth: `sam_gym.envs.agreement`) or a weighted sum {"iou": 1, "hit": .1}.

    ## Starting State

    An object drawn uniformly from the split and a cue box drawn for it. `reset(options={"image": ..., "object": ...,
    "cue": (x0, y0, x1, y1)})` poses one case; what is not given is drawn. `image` is an index in the split or an
    image id, `object` an id in that image's labels.

    ## Episode End

    Terminates when the agent says stop or has given `max_prompts` (5) prompts; what is left is in the observation.
    It truncates only if `max_episode_steps` is passed to `gymnasium.make`.

    ## Information

    `iou`, `dice` (of the current mask), `prompts` (given so far), `image`, `object`, and `source`: the data set that
    the pixels really come from ("synthetic-em" where a stand-in replaces the real sections).

    ## Arguments

    ```python
    import gymnasium, sam_gym
    env = gymnasium.make("SamPrompt-ISBI-v0", split="val", max_prompts=3, render_mode="rgb_array")
    ```

    | argument       | default       | meaning                                                              |
    |----------------|---------------|----------------------------------------------------------------------|
    | `dataset`      | "isbi2012"    | name in `sam_gym.data.DATASETS`                                      |
    | `split`        | "train"       | "train", "val" or "test"                                             |
    | `data`         | "auto"        | "real": an error if the files cannot be had; "synthetic": the stand-in; "auto": real, else the stand-in with a warning |
    | `checkpoint`   | "mobile_sam"  | name or path of SAM weights                                          |
    | `device`       | "auto"        | where SAM runs                                                       |
    | `precision`    | "exact"       | SAM's decoder: "exact" float32, "fast" bfloat16, "auto", "official"  |
    | `attention`    | "full"        | "foveated": it looks closely at the view only, quicker and nearly the same |
    | `action_mode`  | "grid"        | "grid", "point" or "box"                                             |
    | `observation`  | "full"        | "reference": a few KB that the policy resolves, see Observation Space |
    | `action_mask`  | False         | True: observations hold `action_mask` (actions,) int8 too, 1 where `action_masks()` is True |
    | `grid`         | 16            | G                                                                    |
    | `max_prompts`  | 5             | prompts per episode, the cue not counted                             |
    | `box_noise`    | 0.2           | e of the cue box                                                     |
    | `view_scale`   | 1.7           | side of the view over the cue's longer side                          |
    | `reward`       | "iou"         | see Rewards                                                          |
    | `prompt_cost`  | 0.0           | see Rewards                                                          |
    | `clip`         | "clip-micro"  | the CLIP of the reward "clip", as `sam_gym.semantics.load_clip` takes it |
    | `min_area`, `max_area` | 200, 60000 | objects outside these areas (in px) are left out; DSB's from 50     |
    | `root`         | None          | folder of your own images and masks, for `SamPrompt-Folder-v0` only  |
    | `shares`       | (60, 20, 20)  | its percentages of images in "train", "val", "test"                  |
    | `window`       | None          | [centre, width] of the values shown of NIfTI and DICOM; None: the files' own |
    | `returns`      | "last"        | "best_predicted": the episode ends with the mask, the first one included, whose IoU is predicted to be the highest |
    | `copies`       | 0             | altered copies beside each training image, for variety              |
    | `render_mode`  | None          | "rgb_array": image, mask, outline of the truth, clicks, IoU, step    |

    ## Vectorized environment

    `gymnasium.make_vec("SamPrompt-ISBI-v0", num_envs=16)` gives `SamPromptVectorEnv`: the same step function over 16
    episodes with one SAM call per step. `autoreset_mode` is "NextStep" (default), "SameStep" or "Disabled", as a string.

    ## Version History

    * v0: initial version (sam_gym 0.1.0).
    * v1: of DSB only: 111 more images in the training split; validation and test are the same (sam_gym 0.1.0).
    """  # noqa: E501

    settings_class = PromptSettings


class SamPromptVectorEnv(EngineVectorEnv):
    """N SamPrompt episodes with one SAM call per step; see `SamPromptEnv` for what an episode is.

    Autoreset, seeding and options are those of `EngineVectorEnv`.
    """

    settings_class = PromptSettings
