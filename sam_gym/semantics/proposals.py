"""Prompts that nobody drew: from an image and a text to boxes and points with a confidence.

Six ways, from the most to the least that they know:

* "sam": SAM's masks of a grid of points, of which those are kept that look like the text;
* "map": where the similarity map of the text is high (`sam_gym.semantics.similarity`);
* "gscorecam": the same of another map, which asks the whole image (`sam_gym.semantics.score_cam`);
* "shades": bright parts and dark parts by Otsu's threshold, of which those are kept that look like the text;
* "otsu": the same for the rarer shade alone, whatever the text is;
* "whole": the whole image.

Whole images go in, and no ground truth. How good each is on which images: docs/results/proposals.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torchvision.ops import box_iou, nms

from sam_gym._utils.boxes import tight_box
from sam_gym._utils.naming import unknown
from sam_gym.sam.interface import Backend
from sam_gym.sam.masks import measure
from sam_gym.sam.prompts import PromptBatch
from sam_gym.semantics.captions import rivals
from sam_gym.semantics.score_cam import score_map
from sam_gym.semantics.scorer import RegionScorer
from sam_gym.semantics.similarity import similarity_map, upsample

WAYS = ("shades", "sam", "map", "gscorecam", "otsu", "whole")
MAPPED = ("map", "gscorecam")

TOGETHER = 64
"""Points of the grid that are decoded in one call."""


@dataclass(frozen=True)
class ProposalSettings:
    """How prompts are proposed.

    Attributes:
        way: One of `WAYS`.
        points: Points of the grid a side, for "sam".
        predicted_iou: SAM's own estimate that a mask must have, for "sam".
        stability: IoU that a mask cut at logit 1 and at -1 must have, for "sam".
        confidence: How likely the text must be among its rivals, for "shades" and "sam". Chosen on validation images of
            WBC, DSB and VNC mitochondria, as are the other defaults.
        overlap: IoU of boxes above which the less confident one is left out.
        min_area: Smallest object in px.
        max_share: Largest object as a share of the image, but for "whole".
        tiles: Parts a side in which CLIP sees the image, for "map".
    """

    way: str = "shades"
    points: int = 16
    predicted_iou: float = 0.8
    stability: float = 0.85
    confidence: float = 0.3
    overlap: float = 0.5
    min_area: int = 50
    max_share: float = 0.5
    tiles: int = 1

    def __post_init__(self) -> None:
        if self.way not in WAYS:
            raise ValueError(unknown("way", self.way, WAYS))
        if self.points < 1 or self.tiles < 1:
            raise ValueError(f"points={self.points} and tiles={self.tiles} must be at least 1")


@dataclass(frozen=True)
class Proposal:
    """One object that may be there.

    Attributes:
        box: (4,) float32 x0, y0, x1, y1 in pixels of the image.
        point: (2,) float32 x, y of a pixel's centre, deep inside.
        confidence: 0..1.
    """

    box: NDArray[np.float32]
    point: NDArray[np.float32]
    confidence: float


class Proposer:
    """Proposes prompts for images.

    Args:
        text: What to look for.
        scorer: Compares regions with texts; not needed for "otsu" and "whole".
        backend: The frozen SAM; needed for "sam" only.
        settings: See `ProposalSettings`.

    Raises:
        ValueError: What the way needs is missing, or the text is empty.
    """

    def __init__(
        self,
        text: str,
        scorer: RegionScorer | None = None,
        backend: Backend | None = None,
        settings: ProposalSettings | None = None,
    ) -> None:
        self.settings = ProposalSettings() if settings is None else settings
        self.text, self._scorer, self._backend = text, scorer, backend
        if self.settings.way in ("shades", "sam", *MAPPED) and (scorer is None or not text.strip()):
            raise ValueError(f"way {self.settings.way!r} needs a text and what compares regions with it")
        if self.settings.way == "sam" and backend is None:
            raise ValueError("way 'sam' needs a backend, as get_backend gives one")

    def __call__(self, image: NDArray[np.uint8]) -> list[Proposal]:
        """Proposals for one image (H, W, 3), the most confident first; none where nothing was found."""
        if self.settings.way == "whole":
            height, width = image.shape[:2]
            return [Proposal(_row(0, 0, width, height), _row(width / 2, height / 2), 1.0)]
        if self.settings.way == "sam":
            assert self._backend is not None, "checked at the beginning"
            masks, confidence = self._alike(image, automatic_masks(self._backend, image, self.settings))
        elif self.settings.way == "shades":
            masks, confidence = self._alike(image, [part for shade in _shades(image) for part in self._parts(shade)])
        elif self.settings.way == "otsu":
            masks = self._parts(_shades(image)[0])
            confidence = [1.0] * len(masks)
        else:
            heat = self.heat(image)
            masks = self._parts(heat)
            confidence = [float(heat[mask].mean()) for mask in masks]
        found = [_proposal(mask, value) for mask, value in zip(masks, confidence, strict=True)]
        return sorted(found, key=lambda one: -one.confidence)

    def _alike(
        self, image: NDArray[np.uint8], masks: list[NDArray[np.bool_]]
    ) -> tuple[list[NDArray[np.bool_]], list[float]]:
        """The masks that look like the text more than like its rivals, and how much; of alike ones the likeliest."""
        if not masks:
            return [], []
        assert self._scorer is not None, "checked at the beginning"
        n = len(masks)
        scores = self._scorer.score([image] * n, masks, [self.text] * n, [rivals(self.text)] * n)
        alike = np.flatnonzero(scores >= self.settings.confidence)
        if not len(alike):
            return [], []
        boxes = torch.as_tensor(np.stack([_tight(masks[i]) for i in alike]))
        kept = alike[nms(boxes, torch.as_tensor(scores[alike]).float(), self.settings.overlap).numpy()]
        return [masks[i] for i in kept], scores[kept].tolist()

    def _parts(self, heat: NDArray[np.float64]) -> list[NDArray[np.bool_]]:
        """Connected parts of where a map (H, W) is high, holes filled; neither too small nor too large."""
        labels, _ = ndimage.label(ndimage.binary_opening(heat > _otsu(heat)))
        masks = []
        for i, place in enumerate(ndimage.find_objects(labels), start=1):
            part = ndimage.binary_fill_holes(labels[place] == i)
            if self.settings.min_area <= part.sum() <= self.settings.max_share * heat.size:
                mask = np.zeros(heat.shape, np.bool_)
                mask[place] = part
                masks.append(mask)
        return masks

    def heat(self, image: NDArray[np.uint8]) -> NDArray[np.float64]:
        """(H, W) in 0..1: where the text applies; where no text is needed, where the rarer shade is."""
        if self._scorer is None or self.settings.way == "otsu":
            return _shades(image)[0]
        if self.settings.way == "gscorecam":
            maps = score_map(self._scorer.clip, image, self.text, rivals(self.text))[None]
            return upsample(maps, image.shape[:2])[0].double().cpu().numpy()
        maps = similarity_map(self._scorer.clip, [image], [self.text], [rivals(self.text)], tiles=self.settings.tiles)
        return upsample(maps, image.shape[:2])[0].double().cpu().numpy()


def _shades(image: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How bright pixels are, and how dark, (H, W) in 0..1; the shade that fewer pixels have comes first."""
    light = ndimage.gaussian_filter(image.mean(axis=2), 1)
    light = (light - light.min()) / max(float(np.ptp(light)), 1.0)
    return (light, 1 - light) if (light > _otsu(light)).mean() <= 0.5 else (1 - light, light)


def automatic_masks(backend: Backend, image: NDArray[np.uint8], settings: ProposalSettings) -> list[NDArray[np.bool_]]:
    """Masks (H, W) of everything that SAM takes for an object, from a grid of points.

    SAM's automatic mask generation (Kirillov et al. 2023, section 7.1 and appendix B) without crops: three masks a
    point, those kept that SAM is sure of and that hardly change with the threshold, no two alike.
    """
    embedding = backend.encode([image])[0]
    height, width = image.shape[:2]
    middle = (np.arange(settings.points) + 0.5) / settings.points
    points = np.stack(np.meshgrid(middle * width, middle * height), axis=-1).reshape(-1, 2).astype(np.float32)
    kept: list[tuple[Tensor, Tensor]] = []
    for start in range(0, len(points), TOGETHER):
        some = points[start : start + TOGETHER]
        prompts = PromptBatch.from_lists(points=[point[None] for point in some], labels=[np.ones(1)] * len(some))
        masks = backend.decode([embedding] * len(some), prompts, multimask=True)
        logits, quality = masks.logits.flatten(0, 1), masks.predicted_iou.flatten()
        low, high = (logits > -1).sum(dim=(1, 2)), (logits > 1).sum(dim=(1, 2))
        good = (quality >= settings.predicted_iou) & (high >= settings.stability * low) & (high > 0)
        kept.append((logits[good], quality[good]))
    logits, quality = (torch.cat(column) for column in zip(*kept, strict=True))
    if not len(logits):
        return []
    boxes = measure(logits[:, None] > 0, None, boxes=True).box
    assert boxes is not None, "they were asked for"
    chosen = nms(boxes[:, 0].float(), quality.float(), settings.overlap + 0.2)
    full = [(backend.upscale(logits[int(i)], embedding) > 0).cpu().numpy() for i in chosen]
    most = settings.max_share * height * width
    return [mask for mask in full if settings.min_area <= mask.sum() <= most]


def _proposal(mask: NDArray[np.bool_], confidence: float) -> Proposal:
    padded = np.pad(mask, 1)
    row, column = np.unravel_index(ndimage.distance_transform_edt(padded).argmax(), padded.shape)
    return Proposal(_tight(mask), _row(column - 0.5, row - 0.5), float(np.clip(confidence, 0, 1)))


def _tight(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    box = tight_box(mask)
    assert box is not None, "empty masks are left out"
    return box


def _row(*values: float) -> NDArray[np.float32]:
    return np.array(values, np.float32)


def _otsu(values: NDArray[np.floating], bins: int = 256) -> float:
    """Otsu's threshold (1979): between the two classes of values that differ the most."""
    counts, edges = np.histogram(values, bins)
    middles = (edges[1:] + edges[:-1]) / 2
    below, total = np.cumsum(counts), counts.sum()
    sums = np.cumsum(counts * middles)
    inner = below[:-1]
    between = (sums[-1] * inner / total - sums[:-1]) ** 2 / np.maximum(inner * (total - inner), 1)
    return float(middles[int(between.argmax())])


def match(found: Sequence[Proposal], boxes: NDArray[np.floating]) -> NDArray[np.float64]:
    """(M,) IoU of each true box (M, 4) with the proposal that fits it best, 0 where there is none."""
    if not found:
        return np.zeros(len(boxes))
    mine = torch.as_tensor(np.stack([one.box for one in found])).double()
    return box_iou(torch.as_tensor(np.asarray(boxes, np.float64)), mine).max(dim=1).values.numpy()
