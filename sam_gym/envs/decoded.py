"""What a step needs of a decode: low-resolution logits that stay on the device, and a few numbers a mask on the host.

Nothing is decoded here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sam_gym.sam.masks import Masks, WindowMasks

GRANULARITIES = ("smallest", "middle", "largest")
"""Which of the three masks that SAM has for an ambiguous prompt, by their areas."""


@dataclass
class Decoded:
    """What a step needs of a decode: n logits (4h, 4w) on the device; on the host four numbers per mask and its box.

    `agreement` is that of the masks with their text, 0 where no reward asks for it. The boxes are (n, 4) float32 in
    pixels of the image, NaN where the mask is empty or nobody asked.
    """

    logits: list[Tensor]
    predicted_iou: NDArray[np.float64]
    iou: NDArray[np.float64]
    dice: NDArray[np.float64]
    mask_box: NDArray[np.float32]
    agreement: NDArray[np.float64]

    @classmethod
    def nothing(cls, logits: list[Tensor]) -> Decoded:
        """Empty masks that SAM was not asked for; `logits` say so."""
        n = len(logits)
        predicted, iou, dice, agreement = np.zeros((4, n))
        return cls(logits, predicted, iou, dice, np.full((n, 4), np.nan, np.float32), agreement)

    def among(self, asked: NDArray[np.bool_], nothing: list[Tensor]) -> Decoded:
        """These results at the rows that were `asked` for, at the others nothing, of which those are the logits."""
        made, empty = iter(self.logits), iter(nothing)
        every = Decoded.nothing([next(made if one else empty) for one in asked])
        for name in ("predicted_iou", "iou", "dice", "mask_box", "agreement"):
            getattr(every, name)[asked] = getattr(self, name)
        return every

    @classmethod
    def of(cls, masks: Masks | WindowMasks, granularity: str | None = None) -> Decoded:
        """One mask of each prompt, in one copy to the host; without truths IoU and Dice are NaN.

        Args:
            masks: Of a decode.
            granularity: Which one, where each prompt has three, of `GRANULARITIES`; needs statistics. None: the single.
        """
        if granularity is not None:
            masks = _sorted_out(masks, granularity)
        measured, estimate = masks.statistics, masks.predicted_iou.double()
        agreement = [torch.full_like(estimate, torch.nan)] * 2
        if measured is not None and measured.intersection is not None:
            agreement = [measured.iou, measured.dice]
        predicted, iou, dice = torch.stack([estimate, *agreement])[..., 0].cpu().numpy()
        boxes = np.full((len(masks.logits), 4), np.nan, np.float32)
        if measured is not None and measured.box is not None:
            some = (measured.area[:, 0] > 0).cpu().numpy()
            boxes[some] = measured.box[:, 0].cpu().numpy()[some]
        return cls([one[0] for one in masks.logits], predicted, iou, dice, boxes, np.zeros(len(boxes)))

    @classmethod
    def joined(cls, parts: Sequence[Decoded]) -> Decoded:
        """The masks of several decodes, one after the other."""
        parts = parts or [cls.nothing([])]
        arrays = (np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)[1:])
        return cls([one for part in parts for one in part.logits], *arrays)

    def at(self, rows: Sequence[int]) -> Decoded:
        """Some of them, in the order of `rows`."""
        arrays = (getattr(self, field.name)[rows] for field in fields(self)[1:])
        return Decoded([self.logits[row] for row in rows], *arrays)

    def __getitem__(self, rows: slice) -> Decoded:
        return Decoded(*(getattr(self, field.name)[rows] for field in fields(self)))


def _sorted_out(masks: Masks | WindowMasks, granularity: str) -> Masks | WindowMasks:
    """One of the three masks of each prompt."""
    measured = masks.statistics
    assert measured is not None, "the engine asks for statistics with three masks"
    which = measured.area.argsort(dim=1, stable=True)[:, GRANULARITIES.index(granularity)]
    rows = torch.arange(len(which), device=which.device)

    def one(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[rows, which, None]

    chosen = replace(
        measured, area=measured.area[rows, which, None], box=one(measured.box), intersection=one(measured.intersection)
    )
    logits = [three[k : k + 1] for three, k in zip(masks.logits, which.tolist(), strict=True)]
    together: Any = torch.stack(logits) if isinstance(masks.logits, Tensor) else logits
    return replace(masks, logits=together, predicted_iou=masks.predicted_iou[rows, which, None], statistics=chosen)
