"""Region-text agreement: how well a mask fits the words for its target, by a CLIP's judgement alone.

The reward "clip" is the gain of it. It sees image, mask and text and has no access to ground truth: an agent trained
on it never touches a mask that somebody drew.

Let m be a mask in the view, r the ring around it and s all the rest of the image that the view shows, |.| areas, and P
the probability that the text, and none of its rivals, names a region (`sam_gym.semantics.scorer`):

    A(m) = 2 p |m| / (|m| + p |m| + max(q, FLOOR) |r| + FLOOR |s|),    0 if m covers more than LARGEST of the view,

with q = P(r) and p the mean of P over the connected parts of m (its PARTS largest), weighted by their areas. That is
the Dice coefficient of the mask with what CLIP says of the places in it and about it. Parts are looked at one by one,
since CLIP knows single things and not patterns of many.

What it withstands: a mask of the wrong thing has a small p; of a piece of the right thing, a sliver at worst, the ring
lies in the same thing, and q is large; a corner that CLIP takes for the target by mistake counts by its area, since
the rest of the image is never believed to be free of the target beyond FLOOR, so that it also pays to find all of
a class; and the whole image is no answer. It is as good as the CLIP: what that does not know, nothing here mends.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from sam_gym.envs.attention import WHOLE, Frame
from sam_gym.envs.observations import Sampling, crop_map, sampled, sampling_of
from sam_gym.envs.settings import Settings
from sam_gym.sam.interface import ImageEmbedding

if TYPE_CHECKING:
    from sam_gym.semantics.scorer import RegionScorer

FLOOR = 0.05
"""Least share of what lies outside of a mask that is taken for target."""

LARGEST = 2 / 3
"""Masks that cover more of the view agree with nothing; no class of the suite covers more than half of an image."""

RING = 0.05
"""Width of the ring, as a share of the view's side."""

PARTS = 16
"""So many connected parts of a mask are looked at."""

FRAME = 512
"""Views are looked at in their own resolution, but not above so many px a side."""


@dataclass(frozen=True)
class Scene:
    """What stays the same in the view of an episode, at S x S px: pixels (S, S, 3) uint8, and where they lie."""

    pixels: NDArray[np.uint8]
    sampling: Sampling


class Agreement:
    """Measures the agreement of masks with one text.

    Args:
        text: The target, in words.
        settings: Which CLIP, and where.
    """

    def __init__(self, text: str, settings: Settings) -> None:
        from sam_gym.semantics.captions import rivals

        self._text, self._rivals = text, rivals(text)
        self._clip, self._device = settings.clip, settings.device
        _scorer(self._clip, self._device)  # a model that cannot be had is an error now, not in the first step

    def scene(
        self, image: NDArray[np.uint8], view: NDArray[np.float32], embedding: ImageEmbedding, frame: Frame = WHOLE
    ) -> Scene:
        """The view (left, top, side) of an image (H, W, 3), for `of`; logits will cover `frame`."""
        size = min(FRAME, math.ceil(view[2]))
        return Scene(crop_map(image, view, size), sampling_of(view, embedding, size, frame))

    def of(self, scenes: Sequence[Scene], logits: Sequence[Tensor]) -> NDArray[np.float64]:
        """The agreement of n masks, in one call of the scorer.

        Args:
            scenes: Of their episodes.
            logits: n low-resolution logits (4h, 4w).

        Returns:
            (n,) float64 in [0, 1]; 0 for empty masks.
        """
        regions: list[_Regions] = []
        # One by one, so that rounding does not depend on who else is there
        for scene, one in zip(scenes, logits, strict=True):
            inside = scene.sampling.inside[0]
            mask = (sampled(one[None], scene.sampling)[0] > 0) & inside
            ring = _grown(mask, max(1, round(RING * len(mask)))) & inside & ~mask
            regions.append(_Regions.of(*(part.cpu().numpy() for part in (mask, ring, inside))))
        looked_at = [region for each in regions for region in (*each.parts, each.ring)]
        pixels = [scene.pixels for scene, each in zip(scenes, regions, strict=True) for _ in (*each.parts, each.ring)]
        scores = _scorer(self._clip, self._device).score(
            pixels, looked_at, [self._text] * len(pixels), [self._rivals] * len(pixels)
        )
        ends = np.cumsum([len(each.parts) + 1 for each in regions])
        return np.array([each.agreement(s) for each, s in zip(regions, np.split(scores, ends[:-1]), strict=True)])


@dataclass(frozen=True)
class _Regions:
    """What is looked at of one mask, bool (S, S) each, and the areas of mask and view in pixels."""

    parts: list[NDArray[np.bool_]]
    ring: NDArray[np.bool_]
    area: int
    view: int

    @classmethod
    def of(cls, mask: NDArray[np.bool_], ring: NDArray[np.bool_], inside: NDArray[np.bool_]) -> _Regions:
        labels, count = ndimage.label(mask)
        largest = np.argsort(-np.bincount(labels.ravel(), minlength=count + 1)[1:], kind="stable")[:PARTS]
        return cls([labels == part + 1 for part in largest], ring, int(mask.sum()), int(inside.sum()))

    def agreement(self, scores: NDArray[np.float64]) -> float:
        """A(m), by the scores of the parts and of the ring."""
        if not 0 < self.area <= LARGEST * self.view:
            return 0.0
        p, q = np.average(scores[:-1], weights=[part.sum() for part in self.parts]), scores[-1]
        around = int(self.ring.sum())
        rest = self.view - self.area - around
        missed = max(q, FLOOR) * around + FLOOR * rest
        return float(2 * p * self.area / (self.area + p * self.area + missed))


def embed_text(text: str, settings: Settings) -> NDArray[np.float32]:
    """(D,) float32 of unit length: a text as the settings' CLIP embeds it."""
    return _scorer(settings.clip, settings.device).embed_texts([text])[0].cpu().numpy()


def _grown(mask: Tensor, reach: int) -> Tensor:
    """(S, S) bool: the mask and all within `reach` pixels of it, in either direction."""
    grown = mask[None].float()
    for kernel in ((2 * reach + 1, 1), (1, 2 * reach + 1)):
        grown = F.max_pool2d(grown, kernel, stride=1, padding=(kernel[0] // 2, kernel[1] // 2))
    return grown[0] > 0


def _scorer(clip: str, device: str) -> RegionScorer:
    from sam_gym.semantics.scorer import get_scorer  # open_clip is an extra, and only words need it

    return get_scorer(clip, device)
