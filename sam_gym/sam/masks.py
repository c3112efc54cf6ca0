"""What comes out of a decode: low-resolution logits, masks at full size, and numbers about them, all on the device.

Nothing here runs the model. Whether a mask is good is for `truths` to say; nothing else in `sam_gym.sam` sees them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Statistics:
    """Numbers about K masks of each of N prompts at full resolution, on the device.

    Attributes:
        area: (N, K) int64 pixels in the mask.
        box: (N, K, 4) int64 tight box x0, y0, x1, y1 in pixels of each original image, x1 and y1 exclusive; zeros where
            the mask is empty. None where only truths were asked about.
        intersection: (N, K) int64 pixels that mask and truth share, or None where no truth was given.
        truth_area: (N,) int64 pixels in the truth, or None.
    """

    area: Tensor
    box: Tensor | None
    intersection: Tensor | None
    truth_area: Tensor | None

    @property
    def iou(self) -> Tensor:
        """(N, K) float64 intersection over union with the truth; an empty mask of an empty truth has 1."""
        intersection, both = self._counts()
        empty = both == 0
        return (intersection + empty) / (both - intersection + empty)

    @property
    def dice(self) -> Tensor:
        """(N, K) float64 Dice coefficient with the truth; an empty mask of an empty truth has 1."""
        intersection, both = self._counts()
        empty = both == 0
        return (2 * intersection + empty) / (both + empty)

    def _counts(self) -> tuple[Tensor, Tensor]:
        if self.intersection is None or self.truth_area is None:
            raise ValueError("IoU and Dice need the truth: pass truths=[...] to SamBackend.decode")
        return self.intersection.double(), (self.area + self.truth_area[:, None]).double()


@dataclass(frozen=True)
class Masks:
    """Result of one decode call for N prompts, K masks each.

    Attributes:
        logits: (N, K, 4h, 4w) float32 low-resolution logits on the device, in the padded input frame; above 0 is mask.
        predicted_iou: (N, K) float32, SAM's own estimate.
        statistics: Of the masks at full size, where they were asked for.
        full: N bool tensors (K, H, W), each of its own image's size, where they were asked for.
        object_score: (N,) float32 logit of "the object is there", above 0 for yes; None for models that do not say.
    """

    logits: Tensor
    predicted_iou: Tensor
    statistics: Statistics | None = None
    full: list[Tensor] | None = None
    object_score: Tensor | None = None


@dataclass(frozen=True)
class WindowMasks:
    """Result of one decode of N windows, K masks each; windows may differ in size.

    Attributes:
        logits: N tensors (K, 4n, 4n) float32, of each window's `mask_size`; above 0 is mask.
        predicted_iou: (N, K) float32, SAM's own estimate.
        statistics: Of the masks at full size, where they were asked for.
        full: N bool tensors (K, H, W), each of its own image's size, where they were asked for.
    """

    logits: list[Tensor]
    predicted_iou: Tensor
    statistics: Statistics | None = None
    full: list[Tensor] | None = None

    @classmethod
    def join(cls, parts: Sequence[WindowMasks], rows: Sequence[int]) -> WindowMasks:
        """Results of several calls, whose masks are those of `rows`, in the order of the rows."""
        places = {row: place for place, row in enumerate(rows)}
        order = [places[row] for row in range(len(rows))]
        index = torch.tensor(order, device=parts[0].predicted_iou.device)
        logits = [one for part in parts for one in part.logits]
        full = [one for part in parts for one in part.full or ()]
        statistics = [part.statistics for part in parts if part.statistics is not None]
        return cls(
            [logits[place] for place in order],
            torch.cat([part.predicted_iou for part in parts])[index],
            _map(lambda tensors: torch.cat(tensors)[index], statistics) if statistics else None,
            [full[place] for place in order] if full else None,
        )


def upscale(logits: Tensor, side: int, input_size: tuple[int, int], image_size: tuple[int, int]) -> Tensor:
    """Low-resolution logits at full size, as `Sam.postprocess_masks` gives them up to rounding.

    It interpolates to the model's square input, cuts the padding off and interpolates to the image. Both are linear and
    work on rows and columns apart, and together each pixel takes from three rows and three columns at most: that is
    done in one go, in a third of the time on a CPU.

    Args:
        logits: (N, K, 4h, 4w) float32.
        side: Side of the model's square input in pixels.
        input_size: (H', W') of the image inside it.
        image_size: (H, W) of the original image.

    Returns:
        (N, K, H, W) float32.
    """
    down = _taps(logits.shape[-2], side, input_size[0], image_size[0], logits.device)
    across = _taps(logits.shape[-1], side, input_size[1], image_size[1], logits.device)
    # Rows are gathered quicker than columns: columns first, as rows of the transpose, while there are few.
    return _gather_rows(_gather_rows(logits.mT.contiguous(), *across).mT.contiguous(), *down)


def _gather_rows(planes: Tensor, places: Tensor, weights: Tensor) -> Tensor:
    """(N, K, A, B) -> (N, K, B', B): each row the weighted sum of three."""
    rows = planes.index_select(2, places[0]) * weights[0]
    for place, weight in zip(places[1:], weights[1:], strict=True):
        rows.addcmul_(planes.index_select(2, place), weight)
    return rows


@lru_cache(maxsize=256)
def _taps(low: int, side: int, inside: int, full: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Which of `low` places, (3, full), with which weights, (3, full, 1), make each pixel of one axis."""
    unit = torch.eye(low)[None]  # one interpolated impulse per place: together the matrix of both interpolations
    padded = F.interpolate(unit, side, mode="linear", align_corners=False)[..., :inside]
    matrix = F.interpolate(padded, full, mode="linear", align_corners=False)[0].T
    weights, places = matrix.topk(3, dim=1)
    return places.T.contiguous().to(device), weights.T[..., None].contiguous().to(device)


def axis_matrix(
    low: int, side: int, inside: int, full: int, start: int, length: int, pool: int, device: torch.device
) -> tuple[int, Tensor]:
    """Along one axis, the matrix from a stretch of low-resolution logits to the pixels that lie in it.

    As `upscale`, but what lies beyond the stretch is taken to be as its ends.

    Args:
        low: Low-resolution logits along the axis.
        side: Side of the model's square input in pixels.
        inside: Of the image in it.
        full: Of the original image.
        start: First logit of the stretch.
        length: Logits in the stretch.
        pool: So many of them are one, their mean.
        device: Of the matrix.

    Returns:
        The first pixel, and the matrix (pixels, length / pool).
    """
    centres = (np.arange(full) + 0.5) * inside / full * low / side
    first, last = np.searchsorted(centres, (start, start + length))
    places, weights = (taps[:, first:last] for taps in _taps(low, side, inside, full, device))
    matrix = torch.zeros(last - first, length, device=device)
    for place, weight in zip(places, weights, strict=True):
        matrix.scatter_add_(1, (place - start).clamp(0, length - 1)[:, None], weight)
    if pool > 1:
        wide = torch.eye(length // pool, device=device)[None]
        matrix = matrix @ F.interpolate(wide, length, mode="linear", align_corners=False)[0].T
    return int(first), matrix


def measure(masks: Tensor, truths: Tensor | None, *, boxes: bool) -> Statistics:
    """Statistics of masks of one size.

    Args:
        masks: (N, K, H, W) bool.
        truths: (N, H, W) bool on the same device, or None.
        boxes: Find the tight boxes as well.

    Returns:
        The statistics.
    """
    area = _count(masks)
    box = intersection = truth_area = None
    if boxes:
        (top, bottom), (left, right) = _extent(_any(masks, 3)), _extent(_any(masks, 2))
        box = torch.stack([left, top, right, bottom], dim=-1)
    if truths is not None:
        intersection = _count(masks & truths[:, None])
        truth_area = _count(truths)
    return Statistics(area, box, intersection, truth_area)


# On a CPU torch reduces bytes several times quicker than booleans.


def _count(masks: Tensor) -> Tensor:
    return masks.view(torch.uint8).sum(dim=(-2, -1), dtype=torch.int32).long()


def _any(masks: Tensor, dim: int) -> Tensor:
    return masks.view(torch.uint8).amax(dim=dim).bool()


def _extent(occupied: Tensor) -> tuple[Tensor, Tensor]:
    """(N, K, L) bool -> first place that is occupied and the one after the last, each (N, K); 0 and 0 if none is."""
    some = occupied.any(dim=2)
    first = occupied.int().argmax(dim=2)
    after = occupied.shape[2] - occupied.flip(2).int().argmax(dim=2)
    return first * some, after * some


def examine(
    logits: Tensor,
    side: int,
    sizes: Sequence[tuple[tuple[int, int], tuple[int, int]]],
    truths: Sequence[Tensor] | None,
    *,
    boxes: bool,
    keep: bool,
) -> tuple[Statistics, list[Tensor]]:
    """Statistics of N masks whose images may differ in size; those of one size are upscaled together.

    Args:
        logits: (N, K, 4h, 4w) float32.
        side: Side of the model's square input in pixels.
        sizes: Per row, the image's size inside the model's input and its original size.
        truths: Per row a bool tensor (H, W) of the original size, or None for no truth at all.
        boxes: Find the tight boxes as well.
        keep: Hand out the masks themselves too.

    Returns:
        The statistics, and N bool tensors (K, H, W) if `keep`, else an empty list.
    """
    groups: dict[tuple[tuple[int, int], tuple[int, int]], list[int]] = {}
    for row, size in enumerate(sizes):
        groups.setdefault(size, []).append(row)
    statistics: list[Statistics] = []
    full: dict[int, Tensor] = {}
    for (input_size, image_size), rows in groups.items():
        masks = upscale(logits[rows] if len(groups) > 1 else logits, side, input_size, image_size) > 0
        here = None if truths is None else torch.stack([truths[row] for row in rows])
        statistics.append(measure(masks, here, boxes=boxes))
        full.update(zip(rows, masks, strict=True))
    if len(groups) == 1:
        joined = statistics[0]
    else:
        order = torch.tensor([row for rows in groups.values() for row in rows], device=logits.device).argsort()
        joined = _map(lambda parts: torch.cat(parts)[order], statistics)
    return joined, [full[row] for row in range(len(sizes))] if keep else []


def join(parts: Sequence[Masks]) -> Masks:
    """Results of several calls of one kind as one, in order."""
    statistics = [part.statistics for part in parts if part.statistics is not None]
    full = [mask for part in parts for mask in part.full or ()]
    scores = [part.object_score for part in parts if part.object_score is not None]
    return Masks(
        logits=torch.cat([part.logits for part in parts]),
        predicted_iou=torch.cat([part.predicted_iou for part in parts]),
        statistics=_map(torch.cat, statistics) if statistics else None,
        full=full or None,
        object_score=torch.cat(scores) if scores else None,
    )


def _map(function: Callable[[list[Tensor]], Tensor], parts: Sequence[Statistics]) -> Statistics:
    """Statistics whose every tensor is `function` of the parts' tensors; what is None in the parts stays None."""
    columns = ([getattr(part, field.name) for part in parts] for field in fields(Statistics))
    return Statistics(*(None if None in column else function(column) for column in columns))  # type: ignore[arg-type]
