"""SamProofread: a mask is wrong, and an agent clicks until it is right. Settings, wrong masks, environments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from sam_gym._utils.boxes import Floats, tight_box
from sam_gym._utils.depth import depth_in
from sam_gym._utils.naming import unknown
from sam_gym.envs.base import EngineEnv, EngineVectorEnv
from sam_gym.envs.prompt import PromptSettings
from sam_gym.envs.settings import RESET_OPTIONS

Bools = NDArray[np.bool_]

ERRORS_VERSION = 1
"""Changes whenever the rule by which wrong masks are drawn changes."""


def _grown(mask: Bools, others: Bools, radius: float, rng: np.random.Generator) -> Bools:
    return depth_in(mask) > -radius * rng.uniform(0.15, 0.4)


def _shrunk(mask: Bools, others: Bools, radius: float, rng: np.random.Generator) -> Bools:
    depth = depth_in(mask)
    return depth > depth.max() * rng.uniform(0.25, 0.55)


def _shifted(mask: Bools, others: Bools, radius: float, rng: np.random.Generator) -> Bools:
    angle, reach = rng.uniform(0, 2 * np.pi), radius * rng.uniform(0.25, 0.7)
    move = np.rint([reach * np.sin(angle), reach * np.cos(angle)])
    return ndimage.shift(mask.astype(np.uint8), move, order=0) > 0


def _cut(mask: Bools, others: Bools, radius: float, rng: np.random.Generator) -> Bools:
    rows, columns = np.nonzero(mask)
    angle = rng.uniform(0, 2 * np.pi)
    along = np.sin(angle) * np.arange(mask.shape[0])[:, None] + np.cos(angle) * np.arange(mask.shape[1])
    return mask & (along > np.quantile(along[rows, columns], rng.uniform(0.2, 0.5)))


def _merged(mask: Bools, others: Bools, radius: float, rng: np.random.Generator) -> Bools:
    """With the part of a neighbour that lies within two radii; without a neighbour, grown."""
    near = others & (depth_in(mask) > -2 * radius)
    labels, count = ndimage.label(near)
    if not count:
        return _grown(mask, others, radius, rng)
    sizes = ndimage.sum_labels(near, labels, np.arange(1, count + 1))
    neighbour = labels == 1 + int(rng.choice(count, p=sizes / sizes.sum()))
    both = mask | neighbour
    return both | ndimage.binary_closing(both, iterations=max(1, round(0.1 * radius)))  # and what lies between them


ERRORS: Mapping[str, Callable[[Bools, Bools, float, np.random.Generator], Bools]] = MappingProxyType(
    {"grown": _grown, "shrunk": _shrunk, "shifted": _shifted, "cut": _cut, "merged": _merged}
)
"""Name of an error -> the wrong mask of a mask, its neighbours, the radius of a disc of its area, and a generator."""

BOX, ANY = "box", "any"
"""SAM's own mask of a box that is somewhat wrong; one of all errors, that one included."""


@dataclass(frozen=True)
class ProofreadSettings(PromptSettings):
    """Arguments of SamProofread environments.

    Attributes:
        mask_error: What is wrong with the first mask: a key of `ERRORS`, "box" or "any".
    """

    view_scale: float = 2.0
    mask_error: str = ANY

    unprompted: ClassVar[str] = "given mask"
    reset_options: ClassVar[tuple[str, ...]] = (*RESET_OPTIONS, "mask")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mask_error not in (known := (*ERRORS, BOX, ANY)):
            raise ValueError(unknown("mask_error", self.mask_error, known))

    def first_mask(self, labels: NDArray[np.integer], object_id: int, cue: Floats) -> Bools | None:
        """See `Settings.first_mask`."""
        seed = [ERRORS_VERSION, object_id, *np.asarray(cue, np.float32).view(np.uint32).tolist()]
        rng = np.random.default_rng(seed)
        error = self.mask_error if self.mask_error != ANY else str(rng.choice([*ERRORS, BOX]))
        return None if error == BOX else wrong_mask(labels, object_id, error, rng)


def wrong_mask(labels: NDArray[np.integer], object_id: int, error: str, rng: np.random.Generator) -> Bools:
    """A wrong mask of an object.

    Args:
        labels: (H, W), 0 = none, else an object's id.
        object_id: The object's value in them.
        error: A key of `ERRORS`.
        rng: Draws how wrong it is.

    Returns:
        (H, W) bool, neither empty nor the object itself, but for objects too small to be cut or shrunk.
    """
    mask = labels == object_id
    box = tight_box(mask)
    assert box is not None, "objects have pixels"
    x0, y0, x1, y1 = box.astype(int)
    margin = max(x1 - x0, y1 - y0)
    part = slice(max(0, y0 - margin), y1 + margin), slice(max(0, x0 - margin), x1 + margin)
    here = mask[part]
    others = (labels[part] > 0) & ~here
    wrong = ERRORS[error](here, others, float(np.sqrt(here.sum() / np.pi)), rng)
    whole = np.zeros_like(mask)
    whole[part] = wrong if wrong.any() else here
    return whole


class SamProofreadEnv(EngineEnv):
    """Correct a mask that is wrong, by clicks, with a frozen Segment Anything Model.

    ## Description

    One episode is one object in one image, and a mask of it that somebody made and that is wrong: grown over its edge,
    shrunk, shifted, cut, merged with a neighbour, or what SAM makes of a box that is somewhat wrong. The agent sees that
    mask and nothing of how it came about, and clicks until it is right. It is what annotators do all day: most of a
    section is segmented by some program, and the rest is proofreading.

    SAM is given the wrong mask as its mask prompt, the mask's tight box, and the clicks. What it answers is the next
    mask. (Without the box it forgets the mask at the first click: on ISBI's validation sections oracle clicks then lower
    the IoU.)

    Wrong masks are drawn from the labels, by a generator that is seeded by the object and a box drawn as SamPrompt's
    cue, which nobody is shown. So an episode list poses the same wrong masks for everybody. The *view* is the square
    centred on the tight box of the first mask, 2 times its longer side.

    ## Action Space

    As in `SamPromptEnv`: `Discrete(2 * G * G + 1)`, a click in a cell, foreground or background, or stop; the action
    modes "point" and "box" are the same as well.

    ## Observation Space

    As in `SamPromptEnv`; the cue box is the tight box of the first mask. SAM's predicted IoU is 0 until SAM has made a
    mask.

    ## Rewards

    As in `SamPromptEnv`: the IoU gained over the mask that the episode began with.

    ## Starting State

    An object drawn uniformly from the split, and a wrong mask of it. `reset(options={"image": ..., "object": ...,
    "cue": (x0, y0, x1, y1)})` poses one case; equal options give equal masks. The option "mask" is a mask of your own, (H, W)
    of 0 and 1 in the image's size.

    ## Episode End

    As in `SamPromptEnv`.

    ## Information

    As in `SamPromptEnv`.

    ## Arguments

    | argument       | default       | meaning                                                              |
    |----------------|---------------|----------------------------------------------------------------------|
    | `mask_error`   | "any"         | "grown", "shrunk", "shifted", "cut", "merged", "box"; "any": one of them, each as likely |
    | `view_scale`   | 2.0           | side of the view over the longer side of the first mask's tight box  |
    | `dataset`, `split`, `data`, `checkpoint`, `device`, `precision`, `attention`, `action_mode`, `observation`, `action_mask`, `grid`, `max_prompts`, `box_noise`, `reward`, `prompt_cost`, `clip`, `min_area`, `max_area`, `root`, `shares`, `window`, `returns`, `copies`, `render_mode` | | as for `SamPromptEnv` |

    ## Vectorized environment

    `gymnasium.make_vec("SamProofread-ISBI-v0", num_envs=16)` gives `SamProofreadVectorEnv`, as for `SamPromptEnv`.

    ## Version History

    * v0: initial version (sam_gym 0.1.0).
    """  # noqa: E501

    settings_class = ProofreadSettings


class SamProofreadVectorEnv(EngineVectorEnv):
    """N SamProofread episodes with one SAM call per step; see `SamProofreadEnv` for what an episode is.

    Autoreset, seeding and options are those of `EngineVectorEnv`.
    """

    settings_class = ProofreadSettings
