"""SamPrefer: several masks of one object are shown, and an agent picks one. Settings, engine, environments.

What is picked can be written to a file that `sam_gym.sam.preference` learns from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from typing_extensions import Self

from sam_gym._utils.boxes import Floats, noisy_box
from sam_gym._utils.naming import unknown
from sam_gym.data import SegmentationData
from sam_gym.envs.base import EngineEnv, EngineVectorEnv
from sam_gym.envs.decoded import Decoded
from sam_gym.envs.engine import NO_ROWS, PromptEngine
from sam_gym.envs.episode import Episodes, checked_choices
from sam_gym.envs.observations import MAP_SIZE
from sam_gym.envs.observers import Rows
from sam_gym.envs.rendering import render_choice
from sam_gym.envs.rewards import Quality
from sam_gym.envs.settings import Settings
from sam_gym.envs.shown_prompts import CANDIDATES, ShownCandidates, ShownPrompts
from sam_gym.sam.choices import Comparison, append_choice
from sam_gym.sam.judges import ERRORS, NEIGHBOUR, graded
from sam_gym.sam.prompts import PromptBatch

OFFERS_VERSION = 1
"""Changes whenever the rule by which candidates are drawn changes."""

TRUTH, GRADES = RATINGS = ("truth", "grades")
"""What a choice is worth: IoU itself; or a judge's grades, which may be wrong."""


@dataclass
class OfferedEpisodes(Episodes):
    """Episodes in which K candidates are shown.

    Attributes:
        offered: (N, K, 64, 64) uint8 probabilities of the candidates in the view.
        offered_boxes: (N, K, 4) float32 boxes of which SAM made them.
        offered_iou: (N, K) float32 SAM's own estimates of them.
        picked: (N,) int32 which one was picked the last time.
    """

    offered: NDArray[np.uint8]
    offered_boxes: Floats
    offered_iou: Floats
    picked: NDArray[np.int32]

    @classmethod
    def blank(cls, n: int, max_prompts: int, grid: int, given: int = 0) -> Self:
        """See `Episodes.blank`."""
        shape = (n, CANDIDATES)
        return cls(
            **vars(Episodes.blank(n, max_prompts, grid, given)),
            offered=np.zeros((*shape, MAP_SIZE, MAP_SIZE), np.uint8),
            offered_boxes=np.zeros((*shape, 4), np.float32),
            offered_iou=np.zeros(shape, np.float32),
            picked=np.zeros(n, np.int32),
        )


class Choices:
    """Discrete(K): the candidate of that number becomes the mask. There is no stop: the mask itself is among them."""

    stop = None

    def __init__(self) -> None:
        self.space: spaces.Space = spaces.Discrete(CANDIDATES)

    def apply(self, episodes: Episodes, rows: Rows, actions: NDArray) -> None:
        """Write the prompts that `actions` (one per row) mean into `episodes`."""
        assert isinstance(episodes, OfferedEpisodes), "the task makes no others"
        meaning = "the candidate that is best"
        for row, action in zip(rows, checked_choices(actions, CANDIDATES - 1, meaning), strict=True):
            episodes.picked[row] = action
            episodes.replace_box(row, episodes.offered_boxes[row, action])

    def masks(self, episodes: Episodes) -> NDArray[np.bool_]:
        """(N, K) bool: each may be picked."""
        return np.ones((len(episodes), CANDIDATES), np.bool_)


@dataclass(frozen=True)
class PreferSettings(Settings):
    """Arguments of SamPrefer environments.

    Attributes:
        box_noise: e, relative error of each side of the cue box, and of the boxes of candidates.
        rating: "truth" or "grades".
        wrong: Share of grades that are wrong.
        error: What a wrong grade is (`sam_gym.sam.judges.ERRORS`).
        choices: CSV file that every choice is written to, or None (`sam_gym.sam.choices`).
    """

    action_mode: str = "choice"
    max_prompts: int = 3
    box_noise: float = 0.2
    rating: str = TRUTH
    wrong: float = 0.0
    error: str = NEIGHBOUR
    choices: str | None = None

    limits: ClassVar[Mapping[str, tuple[float, float]]] = {**Settings.limits, "box_noise": (0, 0.45), "wrong": (0, 1)}
    shown_prompts: ClassVar[ShownPrompts] = ShownCandidates()
    feeds_mask: ClassVar[bool] = False  # so that a box is all that somebody needs to know of a candidate

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (("rating", RATINGS), ("error", ERRORS)):
            if getattr(self, name) not in known:
                raise ValueError(unknown(name, getattr(self, name), known))
        if self.wrong and self.rating != GRADES:
            raise ValueError(f"wrong={self.wrong}: only grades are wrong; choose rating='grades', or leave it out")

    def actions(self) -> Choices:
        """See `Settings.actions`."""
        if self.action_mode != "choice":
            raise ValueError(f"action_mode {self.action_mode!r} is unknown; there is 'choice' only")
        return Choices()

    def blank(self, n: int) -> OfferedEpisodes:
        """See `Settings.blank`."""
        return OfferedEpisodes.blank(n, self.max_prompts, self.grid)

    def draw_cue(self, tight: Floats, image_size: tuple[int, int], rng: np.random.Generator, **options: Any) -> Floats:
        """See `Settings.draw_cue`."""
        return noisy_box(tight, self.box_noise, image_size, rng)


class PreferEngine(PromptEngine):
    """`PromptEngine` whose running episodes have candidates: those of the next choice are decoded behind each step."""

    episodes: OfferedEpisodes
    settings: PreferSettings

    def __init__(self, settings: PreferSettings, num_envs: int, images: SegmentationData | None = None) -> None:
        super().__init__(settings, num_envs, images)
        self._present: list[Decoded] = [Decoded.nothing([])] * num_envs
        self._offers: list[Decoded] = [Decoded.nothing([])] * num_envs

    def offers(self, row: int) -> Decoded:
        """The candidates of one episode, as they are shown; their IoU is for oracles and pictures only."""
        return self._offers[row]

    def offered_mask(self, row: int, candidate: int) -> NDArray[np.bool_]:
        """(H, W) bool, a candidate at full size."""
        return self.attention.mask(self._seen[row], self._offers[row].logits[candidate]).cpu().numpy()

    def picture(self, row: int) -> NDArray[np.uint8]:
        """See `PromptEngine.picture`."""
        return render_choice(self, row)

    def _decode(self, prompted: Rows, begun: Any) -> Decoded:
        """What was picked is known already; only new episodes have something to decode."""
        picked = [self._offers[row].at([int(self.episodes.picked[row])]) for row in prompted]
        return Decoded.joined([*picked, super()._decode(NO_ROWS, begun)])

    def _finish_step(self, acted: Rows, prompted: Rows, decoded: Decoded) -> NDArray[np.float64]:
        rewards = super()._finish_step(acted, prompted, decoded)
        if self.settings.rating == GRADES and len(acted):
            grades = np.stack([self._graded(int(row)) for row in acted])
            picked = np.take_along_axis(grades, self.episodes.picked[acted][:, None], axis=1)[:, 0]
            rewards = picked - grades.mean(axis=1) - self.settings.prompt_cost
        if self.settings.choices is not None:
            for row in acted:
                append_choice(Path(self.settings.choices), self.comparison(int(row)))
        self._offer(acted[~self.episodes.terminated[acted]])
        return rewards

    def comparison(self, row: int) -> Comparison:
        """The last choice of an episode."""
        episodes = self.episodes
        image, object_id = self.data.image_ids[episodes.image[row]], int(episodes.object_id[row])
        shown, picked = episodes.offered_boxes[row], int(episodes.picked[row])
        return Comparison.of(image, object_id, episodes.last_box[row], shown, picked)

    def _before(self, acted: Rows) -> tuple[Quality, NDArray[np.float64]]:
        """A choice is measured against all that could be chosen."""
        offers = [self._offers[row] for row in acted]
        iou, dice, agreement = (
            np.array([getattr(one, name).mean() for one in offers]) for name in ("iou", "dice", "agreement")
        )
        return Quality(iou, dice), agreement

    def _install(self, begun: Any, decoded: Decoded) -> None:
        super()._install(begun, decoded)
        self._offer(begun.rows)

    def _update_masks(self, rows: Rows, decoded: Decoded, *, first: bool) -> None:
        super()._update_masks(rows, decoded, first=first)
        for i, row in enumerate(rows):
            self._present[row] = decoded[i : i + 1]

    def _offer(self, rows: Rows) -> None:
        """Candidates of the next choice: the present mask, and those of boxes around it, in drawn order."""
        if not len(rows):
            return
        episodes, beside = self.episodes, CANDIDATES - 1
        generators = [self._generator(int(row)) for row in rows]
        boxes = np.stack([self._beside(int(row), rng) for row, rng in zip(rows, generators, strict=True)])
        each = np.repeat(rows, beside)
        batch = PromptBatch.from_lists(boxes=[*boxes.reshape(-1, 4)])
        truths = [self.truth_tensor(int(row)) for row in each] if self.data.labelled else None
        seen = [self._seen[row] for row in each]
        made = Decoded.of(self.attention.decode(seen, batch, [None] * len(each), truths, boxes=True))
        if self._agreement:
            scenes = [scene for row in each if (scene := self._scenes[row]) is not None]
            made.agreement = self._agreement.of(scenes, made.logits)
        for i, (row, rng) in enumerate(zip(rows, generators, strict=True)):
            order = rng.permutation(CANDIDATES)
            mine = made[i * beside : (i + 1) * beside]
            offers = self._offers[row] = Decoded.joined([self._present[row], mine]).at(order.tolist())
            episodes.offered_boxes[row] = np.concatenate([episodes.box[row][None], boxes[i]])[order]
            episodes.offered_iou[row] = offers.predicted_iou
        logits = [one for row in rows for one in self._offers[row].logits]
        maps = self._observer.seen(np.repeat(rows, CANDIDATES), logits)
        episodes.offered[rows] = maps.reshape(len(rows), CANDIDATES, *maps.shape[1:])
        self._observer.prompt(rows)

    def _beside(self, row: int, rng: np.random.Generator) -> Floats:
        """(K - 1, 4) boxes around the tight box of the present mask; around its own where it is empty."""
        tight, own = self.episodes.mask_box[row], self.episodes.box[row]
        height, width = self.episodes.image_size[row]
        around = own if np.isnan(tight).any() else tight
        return np.stack([
            noisy_box(around, self.settings.box_noise, (int(height), int(width)), rng) for _ in range(CANDIDATES - 1)
        ])  # fmt: skip

    def _generator(self, row: int) -> np.random.Generator:
        """Equal for equal objects, cues and numbers of choices so far."""
        episodes = self.episodes
        cue = episodes.cue[row].view(np.uint32).tolist()
        return np.random.default_rng([OFFERS_VERSION, int(episodes.object_id[row]), *cue, int(episodes.prompts[row])])

    def _graded(self, row: int) -> NDArray[np.float64]:
        """(K,) the judge's grades of what could be chosen."""
        return graded(self._offers[row].iou, self.settings.wrong, self.settings.error, self._generator(row))


class SamPreferEnv(EngineEnv):
    """Pick the best of several masks that a frozen Segment Anything Model made of one object.

    ## Description

    One episode is one object in one image. The agent is shown four candidate masks and picks the one that it thinks
    best; SAM makes new candidates around that one, and the agent picks again, three times in all. It is how people are
    asked who can tell a good mask from a bad one but have no time to draw. The choices can be written to a file, from
    which `sam_gym.sam.preference` tunes SAM's decoder (Konwer et al., 2025).

    The first mask is SAM's of a box that is somewhat wrong (the *cue*, as in SamPrompt). The candidates are the present
    mask and SAM's masks of three boxes around it: the tight box of the present mask, each side moved by U(-e, e) times
    its extent, e = 0.2. Their order is drawn. SAM is given boxes only, never its own mask, so that a box is all that
    one needs to make a candidate again.

    ## Action Space

    `Discrete(4)`: the number of the candidate. There is no stop; one of the candidates is the mask as it is.

    ## Observation Space

    A `Dict` of three arrays; none of them depends on the ground truth beyond the cue box.

    | key         | shape, dtype              | content                                                               |
    |-------------|---------------------------|-----------------------------------------------------------------------|
    | `maps`      | (9, 64, 64) uint8         | the view: red, green, blue, present mask, cue box, probabilities of the four candidates |
    | `embedding` | (C, G, G) float32         | SAM's image embedding in the view, as in `SamPromptEnv`               |
    | `state`     | (9,) float32 in [0, 1]    | what `SamPromptEnv` has, and SAM's predicted IoU of the four candidates |

    With `observation="reference"` the candidates are `candidates` (4, 64, 64) uint8; the rest is as in `SamPromptEnv`.

    ## Rewards

    IoU of the candidate that was picked less the mean of all four; a random choice gets 0 on average. `reward` may be "dice"
    or "clip" as well, or a weighted sum. With `rating="grades"` it is a judge's grade (1 to 4) of the choice less the
    mean grade, and a share `wrong` of the grades is wrong.

    ## Starting State

    As in `SamPromptEnv`; equal options give equal candidates.

    ## Episode End

    Terminates after `max_prompts` (3) choices. It truncates only if `max_episode_steps` is passed to `gymnasium.make`.

    ## Information

    As in `SamPromptEnv`; `iou` and `dice` are those of the mask that was picked.

    ## Arguments

    | argument       | default       | meaning                                                              |
    |----------------|---------------|----------------------------------------------------------------------|
    | `max_prompts`  | 3             | choices in an episode                                                |
    | `box_noise`    | 0.2           | e of the cue box, and of the boxes around it                         |
    | `rating`       | "truth"       | "grades": a judge's grades instead of IoU                            |
    | `wrong`        | 0.0           | share of the grades that are wrong                                   |
    | `error`        | "neighbour"   | what a wrong grade is: the one beside the right one, or "any" other  |
    | `choices`      | None          | CSV file that every choice is written to (`sam_gym.sam.choices`)     |
    | `dataset`, `split`, `data`, `checkpoint`, `device`, `precision`, `attention`, `observation`, `action_mask`, `grid`, `view_scale`, `reward`, `prompt_cost`, `clip`, `min_area`, `max_area`, `root`, `shares`, `window`, `returns`, `copies`, `render_mode` | | as for `SamPromptEnv` |

    ## Vectorized environment

    `gymnasium.make_vec("SamPrefer-ISBI-v0", num_envs=16)` gives `SamPreferVectorEnv`, as for `SamPromptEnv`.

    ## Version History

    * v0: initial version (sam_gym 0.1.0).
    """  # noqa: E501

    settings_class = PreferSettings
    engine_class = PreferEngine


class SamPreferVectorEnv(EngineVectorEnv):
    """N SamPrefer episodes together; see `SamPreferEnv` for what an episode is.

    Autoreset, seeding and options are those of `EngineVectorEnv`.
    """

    settings_class = PreferSettings
    engine_class = PreferEngine
