"""Ragged prompts for N images as rectangular arrays.

A `PromptBatch` says what is prompted, in pixels of each original image. How prompts become tokens is
`sam_gym.sam.decoder`'s business; nothing here runs the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

ABSENT = -1
"""Label of a padding entry in `PromptBatch.labels`: no point stands there, and the decoder never attends to it."""


@dataclass(frozen=True)
class PromptBatch:
    """Prompts for N masks, one mask each, of N images that may differ.

    All coordinates are (x, y) in pixels of the *original* image, origin at its top left corner.

    Attributes:
        points: (N, P, 2) float32, rows padded to the longest.
        labels: (N, P) int8: 1 foreground, 0 background, -1 no point (`ABSENT`).
        boxes: (N, 4) float32 as x0, y0, x1, y1; a row of NaN means no box.
        mask_logits: (N, h, w) float32 low-resolution logits of an earlier decode, or None where nobody has one.
        has_mask: (N,) bool: whose row of `mask_logits` counts.
    """

    points: NDArray[np.float32]
    labels: NDArray[np.int8]
    boxes: NDArray[np.float32]
    mask_logits: torch.Tensor | None
    has_mask: NDArray[np.bool_]

    def __post_init__(self) -> None:
        n, p = self.labels.shape
        shapes = {"points": (n, p, 2), "boxes": (n, 4), "has_mask": (n,)}
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"PromptBatch.{name} has shape {getattr(self, name).shape}, expected {shape}")
        if not np.isin(self.labels, (ABSENT, 0, 1)).all():
            raise ValueError("PromptBatch.labels holds other values than 1 (foreground), 0 (background), -1 (no point)")
        present = self.labels != ABSENT
        if not np.isfinite(self.points[present]).all():
            raise ValueError("PromptBatch.points holds NaN or infinity in a point that is present")
        given = self.has_box
        if not np.isfinite(self.boxes[given]).all():
            raise ValueError("PromptBatch.boxes holds a row that is partly NaN or infinite; no box is a row all NaN")
        if (self.boxes[given, 2:] < self.boxes[given, :2]).any():
            raise ValueError("PromptBatch.boxes holds a box with x1 < x0 or y1 < y0; the order is x0, y0, x1, y1")
        if self.has_mask.any() and (self.mask_logits is None or self.mask_logits.shape[0] != n):
            raise ValueError(f"PromptBatch.has_mask is set, but mask_logits has no {n} rows")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def has_box(self) -> NDArray[np.bool_]:
        """(N,) bool: which rows have a box."""
        return np.asarray(~np.isnan(self.boxes).all(axis=1), np.bool_)

    @classmethod
    def from_lists(
        cls,
        *,
        points: Sequence[ArrayLike | None] | None = None,
        labels: Sequence[ArrayLike | None] | None = None,
        boxes: Sequence[ArrayLike | None] | None = None,
        mask_logits: Sequence[torch.Tensor | None] | None = None,
    ) -> PromptBatch:
        """Build a batch from one entry per mask; None stands for "not given".

        Args:
            points: Per mask an array (k, 2) of x, y, any k.
            labels: Per mask an array (k,) of 1 or 0.
            boxes: Per mask x0, y0, x1, y1.
            mask_logits: Per mask a tensor (h, w) of low-resolution logits.

        Returns:
            The padded batch.

        Raises:
            ValueError: The lists differ in length, points and labels do not match, or values are out of range.

        Example:
            >>> batch = PromptBatch.from_lists(points=[[[3, 4]], None], labels=[[1], None], boxes=[None, [0, 0, 9, 9]])
            >>> len(batch), batch.labels.tolist(), batch.has_box.tolist()
            (2, [[1], [-1]], [False, True])
        """
        lengths = {len(given) for given in (points, labels, boxes, mask_logits) if given is not None}
        if len(lengths) != 1:
            raise ValueError(f"points, labels, boxes and mask_logits need one common length, got {sorted(lengths)}")
        n = lengths.pop()
        point_lists, label_lists, box_list = (
            [None] * n if given is None else list(given) for given in (points, labels, boxes)
        )
        masks = [None] * n if mask_logits is None else list(mask_logits)
        rows = [_as_points(i, *lists) for i, lists in enumerate(zip(point_lists, label_lists, strict=True))]
        width = max((len(k) for _, k in rows), default=0)
        all_points = np.zeros((n, width, 2), np.float32)
        all_labels = np.full((n, width), ABSENT, np.int8)
        for i, (xy, kinds) in enumerate(rows):
            all_points[i, : len(kinds)], all_labels[i, : len(kinds)] = xy, kinds
        all_boxes = np.full((n, 4), np.nan, np.float32)
        for i, box in enumerate(box_list):
            if box is not None:
                if np.shape(box) != (4,):
                    raise ValueError(f"box {i} has shape {np.shape(box)}; expected x0, y0, x1, y1")
                all_boxes[i] = box
        has_mask = np.array([m is not None for m in masks], np.bool_)
        stacked = None
        if present := [m for m in masks if m is not None]:
            if len(shapes := {tuple(m.shape) for m in present}) > 1:
                raise ValueError(f"mask_logits need one shape, got {sorted(shapes)}")
            stacked = torch.stack([torch.zeros_like(present[0]) if m is None else m for m in masks])
        return cls(all_points, all_labels, all_boxes, stacked, has_mask)


def _as_points(
    row: int, points: ArrayLike | None, labels: ArrayLike | None
) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    xy = np.zeros((0, 2), np.float32) if points is None or not np.size(points) else np.asarray(points, np.float32)
    if xy.ndim != 2 or xy.shape[1] != 2:
        raise ValueError(f"mask {row} has points of shape {xy.shape}; expected (k, 2) for k points x, y")
    kinds = np.zeros(0, np.int64) if labels is None else np.asarray(labels).reshape(-1)
    if len(xy) != len(kinds):
        raise ValueError(f"mask {row} has {len(xy)} points and {len(kinds)} labels")
    if not np.isin(kinds, (0, 1)).all():
        raise ValueError(f"mask {row} has labels other than 1 (foreground) and 0 (background): {kinds.tolist()}")
    return xy, kinds.astype(np.int8)
