"""SamReport: click objects, and of what SAM outlines there a report is written. Settings, engine, environments.

The facts, the language and the scores are those of `sam_gym.reports`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import Self

from sam_gym._utils.boxes import Floats
from sam_gym._utils.naming import unknown
from sam_gym.data import SegmentationData
from sam_gym.data.segmentation import number_regions
from sam_gym.data.windows import WindowData
from sam_gym.envs.base import EngineEnv, EngineVectorEnv
from sam_gym.envs.decoded import GRANULARITIES, Decoded
from sam_gym.envs.engine import PromptEngine
from sam_gym.envs.episode import Cells, Episodes, checked_choices
from sam_gym.envs.keeping import LAST
from sam_gym.envs.observations import MAP_SIZE, point_maps
from sam_gym.envs.observers import Rows
from sam_gym.envs.rendering import render_report
from sam_gym.envs.rewards import Quality
from sam_gym.envs.settings import Settings
from sam_gym.envs.shown_prompts import ShownPrompts, ShownRegions
from sam_gym.reports import Region, Score, Statement, describe, judge, regions_of, write

FOUND, CLICKED = (ShownRegions.channels.index(name) for name in ("found", "clicked"))

OWN = 0.5
"""Share of a mask that no earlier region has, from which on it makes one."""

NOUN_OF_TEXT = {"cell interior": "cell"}
"""What reports call objects, where that is not the dataset's text."""


@dataclass
class ReportEpisodes(Episodes):
    """Episodes in which regions are gathered.

    Attributes:
        shown: (N, 2, 64, 64) uint8 what is observed of the regions: their probabilities, and the clicks.
        regions: (N,) int32 regions found so far.
    """

    shown: NDArray[np.uint8]
    regions: NDArray[np.int32]

    @classmethod
    def blank(cls, n: int, max_prompts: int, grid: int, given: int = 0) -> Self:
        """See `Episodes.blank`."""
        return cls(
            **vars(Episodes.blank(n, max_prompts, grid, given)),
            shown=np.zeros((n, len(ShownRegions.channels), MAP_SIZE, MAP_SIZE), np.uint8),
            regions=np.zeros(n, np.int32),
        )

    @property
    def sent_points(self) -> Floats:
        """(N, 1, 2): the newest click, and no other."""
        return self.points[np.arange(len(self)), self._newest][:, None]

    @property
    def sent_labels(self) -> NDArray[np.int8]:
        """(N, 1)."""
        return self.labels[np.arange(len(self)), self._newest][:, None]

    @property
    def _newest(self) -> NDArray[np.int32]:
        return np.maximum(self.prompts - 1, 0)


class RegionClicks(Cells):
    """Discrete(G * G + 1): a click at the centre of a cell, where SAM segments; the last action says "report"."""

    def __init__(self, grid: int) -> None:
        super().__init__(grid)
        self.stop = self.cells
        self.space: spaces.Space = spaces.Discrete(self.cells + 1)

    def apply(self, episodes: Episodes, rows: Rows, actions: NDArray) -> None:
        """Write the prompts that `actions` (one per row) mean into `episodes`."""
        meaning = f"0..{self.cells - 1} cells, {self.stop} report"
        for row, action in zip(rows, checked_choices(actions, self.stop, meaning), strict=True):
            if action == self.stop:
                episodes.stopped[row] = True
            else:
                self.click(episodes, row, int(action), 1)

    def masks(self, episodes: Episodes) -> NDArray[np.bool_]:
        """(N, G*G + 1) bool: cells that are unused and whose centre lies in the image, and report."""
        free = self.inside(episodes) & ~episodes.used
        return np.concatenate([free, np.ones((len(episodes), 1), np.bool_)], axis=1)


@dataclass(frozen=True)
class ReportSettings(Settings):
    """Arguments of SamReport environments.

    Attributes:
        action_mode: "regions", the only one.
        granularity: Which of SAM's three masks of a click is taken: "smallest", "middle" or "largest".
        window_side: Side in px of the windows that images are cut into; 0: whole images.
        most: Windows with more objects are left out.
        max_prompts: Clicks, and so regions at most.
        min_area: Smallest object, and smallest region, in px.
    """

    action_mode: str = "regions"
    max_prompts: int = 8
    view_scale: float = 1.0
    reward: str | Mapping[str, float] = "f1"
    prompt_cost: float = 0.01
    min_area: int = 50
    granularity: str = "smallest"
    window_side: int = 0
    most: int = 12

    limits: ClassVar[Mapping[str, tuple[float, float]]] = {
        **Settings.limits, "copies": (0, 0), "window_side": (0, 10_000), "most": (0, 1000), "min_area": (1, 10**6),
    }  # fmt: skip
    reset_options: ClassVar[tuple[str, ...]] = ("image",)
    shown_prompts: ClassVar[ShownPrompts] = ShownRegions()
    feeds_mask: ClassVar[bool] = False
    has_cue: ClassVar[bool] = False
    unprompted: ClassVar[str] = "no click"
    describes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.granularity not in GRANULARITIES:
            raise ValueError(unknown("granularity", self.granularity, GRANULARITIES))
        if self.returns != LAST:
            raise ValueError(f"returns={self.returns!r}: a report is written of all regions; leave it at {LAST!r}")

    @property
    def windows(self) -> tuple[int | None, int]:
        """See `Settings.windows`."""
        return self.window_side or None, self.most

    def rules(self) -> dict[str, Any]:
        """See `Settings.rules`; the CLIP is what the text is observed through."""
        return {**super().rules(), "min_area": self.min_area, "clip": self.clip}

    def blank(self, n: int) -> ReportEpisodes:
        """See `Settings.blank`."""
        return ReportEpisodes.blank(n, self.max_prompts, self.grid)

    def actions(self) -> RegionClicks:
        """See `Settings.actions`."""
        if self.action_mode != "regions":
            raise ValueError(f"action_mode {self.action_mode!r} is unknown; there is 'regions'")
        return RegionClicks(self.grid)

    def draw_cue(self, tight: Floats, image_size: tuple[int, int], rng: np.random.Generator, **options: Any) -> Floats:
        """The whole window; nothing is drawn, and nothing depends on the objects."""
        return np.array([0, 0, image_size[1], image_size[0]], np.float32)


class ReportEngine(PromptEngine):
    """`PromptEngine` that gathers a region of each click, and judges the report that is written of them.

    Attributes:
        type: What all objects are called.
    """

    episodes: ReportEpisodes
    settings: ReportSettings
    actions: RegionClicks

    def __init__(self, settings: ReportSettings, num_envs: int, images: SegmentationData | None = None) -> None:
        if images is not None and not isinstance(images, WindowData):
            raise ValueError("reports are about whole windows: give images as sam_gym.data.windows.WindowData")
        super().__init__(settings, num_envs, images)
        self.type = NOUN_OF_TEXT.get(self.text, self.text)
        self.quality = Quality(*np.zeros((4, num_envs)))
        self._regions: list[list[Region]] = [[] for _ in range(num_envs)]
        self._statements: list[list[Statement]] = [[] for _ in range(num_envs)]
        self._true_regions: list[list[Region]] = [[] for _ in range(num_envs)]
        self._facts: list[list[Statement]] = [[] for _ in range(num_envs)]

    def regions(self, row: int) -> list[Region]:
        """The regions found so far, in their order."""
        return self._regions[row]

    def statements(self, row: int) -> list[Statement]:
        """What the report says, each with its pixels."""
        return self._statements[row]

    def report(self, row: int) -> str:
        """The report of the regions found so far: the exact grammar, no model."""
        return write(statement.fact for statement in self._statements[row])

    def score(self, row: int) -> Score:
        """What the report is worth, by the ground truth."""
        evidence = {statement.fact: statement.evidence for statement in self._statements[row]}
        return judge(self.report(row), self._facts[row], evidence)

    def true_regions(self, row: int) -> list[Region]:
        """The objects themselves. For oracles; never for agents."""
        return self._true_regions[row]

    def true_statements(self, row: int) -> list[Statement]:
        """What there is to say. For pictures and for rewards; never for agents."""
        return self._facts[row]

    def mask(self, row: int) -> NDArray[np.bool_]:
        """(H, W) bool, all regions together."""
        height, width = self.episodes.image_size[row]
        regions = [region.mask for region in self._regions[row]]
        return np.logical_or.reduce([np.zeros((height, width), np.bool_), *regions])

    def info(self, row: int) -> dict[str, Any]:
        """See `PromptEngine.info`; and the report, its facts and its scores."""
        f1, grounded = (float(one[row]) for one in (self.quality.f1, self.quality.grounded_f1) if one is not None)
        return {
            **super().info(row),
            "f1": f1,
            "grounded_f1": grounded,
            "regions": int(self.episodes.regions[row]),
            "text": self.report(row),
            "facts": tuple(str(statement.fact) for statement in self._statements[row]),
        }

    def picture(self, row: int) -> NDArray[np.uint8]:
        """See `PromptEngine.picture`."""
        return render_report(self, row)

    def _install(self, begun: Any, decoded: Decoded) -> None:
        for i, row in enumerate(begun.rows):
            self._regions[row] = []
            if self.data.labelled:
                labels = self.data.labels(int(begun.episodes.image[i]))
                self._true_regions[row] = regions_of(labels, self.type)
                self._facts[row] = describe(self._true_regions[row], [self.type])
        super()._install(begun, decoded)

    def _update_masks(self, rows: Rows, decoded: Decoded, *, first: bool) -> None:
        """The mask of a click joins the regions before it is observed; quality is that of all regions together."""
        if not len(rows):
            return
        if not first:
            for row, logits, seen in zip(rows, decoded.logits, self._observer.seen(rows, decoded.logits), strict=True):
                self._join(int(row), logits, seen)
        super()._update_masks(rows, decoded, first=first)
        for row in rows:
            self._statements[row] = describe(self._regions[row], [self.type])
            measured = [np.nan] * 4
            if self.data.labelled:
                mask, truth, total = self.mask(row), self.truth(row), self.score(row).total
                shared, both = np.count_nonzero(mask & truth), np.count_nonzero(mask) + np.count_nonzero(truth)
                iou, dice = (shared / (both - shared), 2 * shared / both) if both else (1.0, 1.0)
                measured = [iou, dice, total.f1, total.grounded_f1]
            for values, value in zip(vars(self.quality).values(), measured, strict=True):
                values[row] = value

    def _join(self, row: int, logits: Tensor, seen: NDArray[np.uint8]) -> None:
        """If enough of a mask is in no earlier region, the largest part of that becomes one; else nothing does."""
        episodes, mask = self.episodes, self.attention.mask(self._seen[row], logits).cpu().numpy()
        own = mask & ~self.mask(row)
        part = _largest_part(own)
        enough = np.count_nonzero(own) >= OWN * np.count_nonzero(mask)
        if enough and np.count_nonzero(part) >= self.settings.min_area:
            self._regions[row].append(Region.of(self.type, part))
            episodes.regions[row] += 1
            episodes.shown[row, FOUND] = np.maximum(episodes.shown[row, FOUND], seen)
        points, labels = episodes.points[row], episodes.labels[row]
        episodes.shown[row, CLICKED] = point_maps(points, labels, episodes.view[row], self.settings.grid)[0]


def _largest_part(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest 4-connected part of a mask, the first of equals; SAM's masks are often strewn with single pixels."""
    parts = number_regions(mask)
    return parts == np.bincount(parts.ravel())[1:].argmax() + 1 if mask.any() else mask


class SamReportEnv(EngineEnv):
    """Click the objects in an image; of what SAM outlines there, a report is written that is judged fact by fact.

    ## Description

    One episode is one window of an image with 0 to 12 objects. The agent clicks a cell, SAM segments what is there, and
    the mask joins the list of regions; it goes on until it says "report" or its clicks are used up. The report is
    written of the regions by an exact grammar (`sam_gym.reports`), without a model: how many objects there are; how
    many of them are small (below 1 % of the window), medium, large (from 5 % on), round, elongated, touch another one,
    reach the edge; in which quadrant the largest lies; or that there is none. So what a report is worth depends on
    where the agent looked, and on SAM. SAM is the world and is never trained; by default it is MobileSAM (Zhang et
    al., 2023). Reports that are grounded in masks are the subject of MAIRA-Seg (Sharma et al., 2024).

    Nobody knows what a region shows: all regions of an id count as objects of the one type that its dataset has. A
    click on the background makes a false object.

    | id                         | type of objects   | windows                                              |
    |----------------------------|-------------------|------------------------------------------------------|
    | SamReport-VNCMitochondria-v0 | mitochondrion   | 512 x 512 px of sections of 1024 x 1024              |
    | SamReport-VNCCells-v0      | cell              | 128 x 128 px of the same                             |
    | SamReport-WBC-v0           | white blood cell  | whole crops of smears, one cell in each              |
    | SamReport-DSB-v1           | nucleus           | 128 x 128 px of images, a fifth of them without any  |
    | SamReport-Synthetic-v0     | mitochondrion     | generated sections of 256 x 256 px                   |
    | SamReport-Smears-v0        | blood cell        | generated smears of 128 x 128 px                     |

    SAM is given the newest click alone. For one click it has three masks, of a part and of the whole; the smallest is
    taken, in WBC the middle one. If half of its pixels or more are in no earlier region, the largest connected part of
    these becomes a region, from `min_area` px on; else the click was for nothing.

    ## Action Space

    `Discrete(G * G + 1)`, G = 16. The window is divided into G x G cells, numbered row by row from its top left.

    | action           | meaning                              |
    |------------------|--------------------------------------|
    | `0 .. G*G-1`     | click at the centre of that cell     |
    | `G*G`            | report                               |

    `action_masks()` forbids cells that were clicked before or whose centre lies outside the image.

    ## Observation Space

    A `Dict` of four arrays; none of them depends on the ground truth.

    | key         | shape, dtype              | content                                                               |
    |-------------|---------------------------|-----------------------------------------------------------------------|
    | `maps`      | (7, 64, 64) uint8         | the window: red, green, blue, mask of the newest click, the image's area, all regions found, clicks |
    | `embedding` | (C, G, G) float32         | SAM's image embedding, as in `SamPromptEnv`                           |
    | `state`     | (6,) float32 in [0, 1]    | what `SamPromptEnv` has, and regions found / `max_prompts`            |
    | `text`      | (D,) float32              | what CLIP says of the dataset's text                                  |

    With `observation="reference"` the last two maps are `regions` (2, 64, 64) uint8; the rest is as in `SamPromptEnv`.

    ## Rewards

    F1 of the report after the step minus F1 before it, minus `prompt_cost` for a click. Precision is the share of its
    sentences that are true, recall the share of the true facts that it says. The report of no region says that there is
    nothing, and has an F1 of 1 where that is true and of 0 elsewhere; so the undiscounted return is the F1 of the report
    less that, less the clicks' cost. With `reward="grounded_f1"` a sentence counts only if more than half of the pixels that it
    speaks of are right, as in RadFact (Bannur et al., 2024): then true numbers by wrong regions are worth nothing.
    "iou" and "dice", of all regions together and all objects together, are there as well, and weighted sums.

    ## Starting State

    A window drawn uniformly from the split, and no region. `reset(options={"image": ...})` chooses the window.

    ## Episode End

    Terminates when the agent says "report" or has given `max_prompts` (8) clicks. It truncates only if `max_episode_steps`
    is passed to `gymnasium.make`.

    ## Information

    `text`, the report as it stands, and `facts`, what it says; `f1`, `grounded_f1`, `regions`; `iou` and `dice` of all
    regions together; `prompts`, `image`, `object` (always 1), `source`.

    ## Arguments

    | argument       | default       | meaning                                                              |
    |----------------|---------------|----------------------------------------------------------------------|
    | `max_prompts`  | 8             | clicks in an episode, and regions at most                            |
    | `prompt_cost`  | 0.01          | see Rewards                                                          |
    | `reward`       | "f1"          | see Rewards                                                          |
    | `granularity`  | "smallest"    | which of SAM's three masks: "smallest", "middle", "largest"          |
    | `window_side`  | by id         | side of windows in px; 0: whole images                               |
    | `most`         | 12            | windows with more objects are left out                               |
    | `min_area`     | 50            | smallest object and smallest region, in px of the window             |
    | `clip`         | "clip-micro"  | the CLIP of `text`, as `sam_gym.semantics.load_clip` takes it        |
    | `action_mode`  | "regions"     | the only one                                                         |
    | `dataset`, `split`, `data`, `checkpoint`, `device`, `precision`, `attention`, `observation`, `grid`, `view_scale`, `render_mode` | | as for `SamPromptEnv` |

    ## Vectorized environment

    `gymnasium.make_vec("SamReport-DSB-v1", num_envs=16)` gives `SamReportVectorEnv`: the same step function over 16
    episodes with one SAM call per step. `autoreset_mode` is "NextStep" (default), "SameStep" or "Disabled", as a string.

    ## Version History

    * v0: initial version (sam_gym 0.1.0).
    * v1: of DSB only: 111 more images in the training split; validation and test are the same (sam_gym 0.1.0).
    """  # noqa: E501

    settings_class = ReportSettings
    engine_class = ReportEngine


class SamReportVectorEnv(EngineVectorEnv):
    """N SamReport episodes with one SAM call per step; see `SamReportEnv` for what an episode is.

    Autoreset, seeding and options are those of `EngineVectorEnv`.
    """

    settings_class = ReportSettings
    engine_class = ReportEngine
