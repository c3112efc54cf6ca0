"""SamPromptSemantic: prompt a frozen SAM until it segments all of a class. Settings, single and vector environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from sam_gym._utils.boxes import Floats
from sam_gym._utils.fetching import sha256_of
from sam_gym._utils.naming import unknown
from sam_gym.data import SegmentationData
from sam_gym.data.whole_class import NO_LIMIT, some_images
from sam_gym.envs.base import EngineEnv, EngineVectorEnv
from sam_gym.envs.episode import ActionMode, GridActions
from sam_gym.envs.labelling import LABELER, NOTHING, POLICY, TRUTH, UNTRAINED, LabelledCells
from sam_gym.envs.settings import Settings
from sam_gym.envs.shown_prompts import ShownClicks, ShownPrompts


@dataclass(frozen=True)
class SemanticSettings(Settings):
    """Arguments of SamPromptSemantic environments.

    Attributes:
        action_mode: "grid", the only one.
        labeler: "policy" (the agent says whether a click is foreground), "untrained" (a recalibration module that knows
            nothing yet, for those who train one) or the file of a trained one.
        stop: Whether there is an action that says so; only a labeler can do without.
        repeats: Whether a cell may be clicked again; likewise.
        first_clicks: What an episode begins with: "nothing", "labeler" (where the module is surest of foreground and
            of background) or "truth" (a random pixel of each; training split only).
        max_images: So many images of the split, drawn once for all; 0 for all.
    """

    dataset: str = "vnc-mitochondria"
    action_mode: str = "grid"
    max_prompts: int = 15
    view_scale: float = 1.0
    max_area: int = NO_LIMIT
    labeler: str = POLICY
    stop: bool = True
    repeats: bool = False
    first_clicks: str = NOTHING
    max_images: int = 0

    limits: ClassVar[Mapping[str, tuple[float, float]]] = {**Settings.limits, "max_images": (0, 10**6)}
    reset_options: ClassVar[tuple[str, ...]] = ("image", "points")
    shown_prompts: ClassVar[ShownPrompts] = ShownClicks()
    has_cue: ClassVar[bool] = False
    unprompted: ClassVar[str] = "no prompt"
    whole_class: ClassVar[bool] = True
    given_clicks: ClassVar[int] = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        known = (NOTHING, TRUTH, LABELER)
        if self.first_clicks not in known:
            raise ValueError(unknown("first_clicks", self.first_clicks, known))
        if self.first_clicks == TRUTH and self.split != "train":
            raise ValueError(
                f"first_clicks='truth' gives agents points of the truth, and the {self.split} split is there to "
                "measure them: use first_clicks='labeler'"
            )
        if self.labeler == POLICY and (self.first_clicks == LABELER or self.repeats or not self.stop):
            raise ValueError(
                "first_clicks='labeler', repeats=True and stop=False go with a module that labels the clicks: "
                "give labeler='untrained' or a file"
            )

    def rules(self) -> dict[str, Any]:
        """See `Settings.rules`; the CLIP is what the text is observed through, and a labeler is known by its hash."""
        by_hash = {"labeler": sha256_of(self.labeler)} if self.labeler not in (POLICY, UNTRAINED) else {}
        return {**super().rules(), **by_hash, "clip": self.clip}

    def choose(self, data: SegmentationData) -> SegmentationData:
        """See `Settings.choose`."""
        return some_images(data, self.max_images) if 0 < self.max_images < len(data.image_ids) else data

    def actions(self) -> ActionMode:
        """See `Settings.actions`."""
        if self.action_mode != "grid":
            raise ValueError(f"action_mode {self.action_mode!r} is unknown; there is 'grid'")
        if self.labeler != POLICY:
            return LabelledCells(self.grid, stops=self.stop, repeats=self.repeats)
        return GridActions(self.grid)

    def draw_cue(self, tight: Floats, image_size: tuple[int, int], rng: np.random.Generator, **options: Any) -> Floats:
        """The whole image; nothing is drawn, and nothing depends on the object."""
        return np.array([0, 0, image_size[1], image_size[0]], np.float32)


class SamPromptSemanticEnv(EngineEnv):
    """Prompt a frozen Segment Anything Model until it segments all of a class in an image.

    ## Description

    One episode is one image. The target is a class, all of it that is in the image, and the agent is told which by a
    text. There is no box to begin with: the agent sees the image, clicks foreground here and background there, sees
    the mask that SAM makes of its clicks, and goes on until it says stop or its prompts are used up. SAM is the world
    and is never trained; by default it is MobileSAM (Zhang et al., 2023).

    The *view* is the square centred on the image whose side is the image's longer one: all of the image is observed
    and acted in. SAM is given all clicks so far and its own previous low-resolution logits, and returns a single mask.

    | id                                 | text                           | images                                      |
    |------------------------------------|--------------------------------|---------------------------------------------|
    | SamPromptSemantic-VNCMitochondria-v0 | "mitochondrion"              | tiles of 512 x 512 px of sections of 1024 x 1024 |
    | SamPromptSemantic-WBC-v0           | "white blood cell"             | crops of blood smears, about 120 x 120 px   |
    | SamPromptSemantic-WBCNucleus-v0    | "nucleus of a white blood cell" | the same crops                             |
    | SamPromptSemantic-DSB-v1           | "nucleus"                      | whole images, 256 x 256 to 1040 x 1388 px   |
    | SamPromptSemantic-Synthetic-v0     | "mitochondrion"                | generated sections of 256 x 256 px          |

    Tiles and images without the class (with less than `min_area` px of it) are left out. There is no id for membranes:
    thin nets are out of reach of point prompts (with MobileSAM oracle clicks come to an IoU of .2 at most).

    ## Action Space

    `Discrete(2 * G * G + 1)`, G = 16. The view is divided into G x G cells, numbered row by row from its top left.

    | action             | meaning                                            |
    |--------------------|----------------------------------------------------|
    | `0 .. G*G-1`       | foreground click at the centre of that cell        |
    | `G*G .. 2*G*G-1`   | background click at the centre of cell `a - G*G`   |
    | `2*G*G`            | stop                                               |

    `action_masks()` forbids cells that were clicked before or whose centre lies outside the image. A forbidden click
    is still carried out (moved to the image's border if it lies outside).

    With a `labeler` it is `Discrete(G * G + 1)`: the agent says where to click, `0 .. G*G-1`, or stop, `G*G`, and AlignSAM's
    recalibration module (Huang et al., CVPR 2024; `sam_gym.semantics.recalibration`) says from the embedding, the mask
    before the click and, in its explicit branch, a similarity map of the text whether the place is foreground. `stop=False`
    takes the last action away; `repeats=True` lets `action_masks()` allow cells that were clicked before.

    ## Observation Space

    A `Dict` of four arrays; none of them depends on the ground truth.

    | key         | shape, dtype              | content                                                               |
    |-------------|---------------------------|-----------------------------------------------------------------------|
    | `maps`      | (7, 64, 64) uint8         | the view: red, green, blue, mask probability, the image's extent (255 inside, where other tasks show a box), positive clicks, negative clicks |
    | `embedding` | (C, G, G) float32         | SAM's image embedding in the view (C = 256), 0 outside the image      |
    | `state`     | (5,) float32 in [0, 1]    | prompts left, SAM's predicted IoU, mask area in the view, view side / image side, change of the mask by the last prompt |
    | `text`      | (D,) float32              | the text as the CLIP `clip` embeds it, of unit length                 |

    Before the first click SAM is not asked, and the mask channel, predicted IoU, mask area and change are 0.

    With `observation="reference"` what stays the same within an episode is left out, but for the text: `mask` (1, 64, 64)
    uint8, `clicks` (8 + 15, 3) float32 (x, y in image pixels and label, -1 for none; the first 8 are those that were given
    at reset), `state`, `text`, and `reference` (8,) float32 as in `SamPromptEnv`, with the image's corners for a cue.

    ## Rewards

    IoU after the step minus IoU before it, at the image's full resolution, minus `prompt_cost` for a prompt; an empty mask
    has an IoU of 0, so that the undiscounted return is the last IoU (less that of the mask of `points`). `reward`
    selects "iou", "dice", "hit" (+1 if the click's label agrees with the truth under it, else -1; with a labeler
    AlignSAM's own: +1 if the click stands in the foreground, else -1), "clip", or a weighted sum {"iou": 1, "clip": .5}.

    "clip" is the gain in region-text agreement and needs no truth: how well the text, rather than what could be taken
    for it, names the parts of the mask, and how badly what is around it. The formula is in `sam_gym.envs.agreement`. It works
    in `SamPromptEnv` and `SamBoxRefineEnv` too, with the text of their dataset.

    ## Starting State

    An image drawn uniformly from the split and no mask. `reset(options={"image": ...})` chooses the image, by its index in
    the split or its id. `reset(options={"points": [(x, y, label), ...]})` begins with up to 8 clicks: the first decode takes
    them at once, they are no prompts of the agent, count for nothing, and stay for the whole episode. x and y are in
    image pixels, with whole numbers for the centres of pixels; label is 1 for foreground, 0 for background. Where no such
    points are given, `first_clicks` says what there is: "nothing"; "labeler": the place that the module holds most surely for
    foreground and the one it holds most surely for background; "truth": a random pixel of each by the truth, as AlignSAM
    begins in training, and for the training split only.

    ## Episode End

    Terminates when the agent says stop or has given `max_prompts` (15) prompts; what is left is in the observation.
    It truncates only if `max_episode_steps` is passed to `gymnasium.make`.

    ## Information

    `iou`, `dice` (of the current mask), `prompts` (given so far), `image`, `object` (1), `text`, and `source`: the data set
    that the pixels really come from ("synthetic-mitochondria" where a stand-in replaces the real sections).

    ## Arguments

    ```python
    import gymnasium, sam_gym
    env = gymnasium.make("SamPromptSemantic-WBC-v0", reward="clip", render_mode="rgb_array")
    ```

    | argument       | default       | meaning                                                              |
    |----------------|---------------|----------------------------------------------------------------------|
    | `clip`         | "clip-micro"  | the CLIP of `text` and of the reward "clip", as `sam_gym.semantics.load_clip` takes it |
    | `action_mode`  | "grid"        | the only one                                                         |
    | `max_prompts`  | 15            | prompts per episode                                                  |
    | `view_scale`   | 1.0           | side of the view over the image's longer side                        |
    | `labeler`      | "policy"      | "untrained": a module that knows nothing yet; or the file of a trained one, see Action Space |
    | `stop`, `repeats` | True, False | with a labeler, see Action Space                                    |
    | `first_clicks` | "nothing"     | "labeler" or "truth", see Starting State                            |
    | `max_images`   | 0             | only so many images of the split, drawn once for all; 0: all         |
    | `min_area`, `max_area` | 200, none | images (tiles) with less or more px of the class are left out     |
    | `dataset`, `split`, `data`, `checkpoint`, `device`, `precision`, `attention`, `observation`, `action_mask`, `grid`, `reward`, `prompt_cost`, `returns`, `copies`, `render_mode` | | as for `SamPromptEnv` |

    The default `clip` is a small model that this project trained itself on microscopy, and no published CLIP.

    ## Vectorized environment

    `gymnasium.make_vec("SamPromptSemantic-WBC-v0", num_envs=16)` gives `SamPromptSemanticVectorEnv`: the same step function
    over 16 episodes with one SAM call per step. `autoreset_mode` is "NextStep" (default), "SameStep" or "Disabled", as a
    string.

    ## Version History

    * v0: initial version (sam_gym 0.1.0).
    * v1: of DSB only: 111 more images in the training split; validation and test are the same (sam_gym 0.1.0).
    """  # noqa: E501

    settings_class = SemanticSettings


class SamPromptSemanticVectorEnv(EngineVectorEnv):
    """N SamPromptSemantic episodes with one SAM call per step; see `SamPromptSemanticEnv` for what an episode is.

    Autoreset, seeding and options are those of `EngineVectorEnv`.
    """

    settings_class = SemanticSettings
