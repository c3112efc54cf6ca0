"""Numbers about masks and about IoU curves: small, numpy, tested against examples worked by hand.

Means and their intervals are in `sam_gym.evaluation.bootstrap`.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import distance_transform_cdt

from sam_gym._utils.boxes import tight_box

Mask = NDArray[np.bool_]

NEVER = -1
"""What `prompts_to_reach` says of an object that never reaches the threshold."""

# --------------------------------------------------------------------------------------------------------- masks


def mask_iou(mask: Mask, truth: Mask) -> float:
    """Intersection over union of two masks (H, W); 1 where both are empty.

    Example:
        >>> mask_iou(np.array([[True, True, False]]), np.array([[False, True, True]]))
        0.3333333333333333
    """
    _check_masks(mask, truth)
    union = np.count_nonzero(mask | truth)
    return float(np.count_nonzero(mask & truth) / union) if union else 1.0


def mask_dice(mask: Mask, truth: Mask) -> float:
    """Dice coefficient of two masks (H, W), twice the shared pixels over all of both; 1 where both are empty.

    Example:
        >>> mask_dice(np.array([[True, True, False]]), np.array([[False, True, True]]))
        0.5
    """
    _check_masks(mask, truth)
    both = np.count_nonzero(mask) + np.count_nonzero(truth)
    return float(2 * np.count_nonzero(mask & truth) / both) if both else 1.0


def boundary_width(shape: tuple[int, ...]) -> int:
    """How many pixels of a mask count as its boundary in an image (H, W): 2 % of the diagonal, at least 1.

    Example:
        >>> boundary_width((3, 4)), boundary_width((512, 512))
        (1, 14)
    """
    return max(1, round(0.02 * math.hypot(*shape[:2])))


def mask_boundary(mask: Mask, width: int | None = None) -> Mask:
    """The pixels of a mask (H, W) that `width` erosions by 3 x 3 take away; outside the image nothing is mask.

    It is `mask_to_boundary` of Cheng et al. 2021, "Boundary IoU": a pixel goes within d erosions where a pixel that is
    not of the mask lies within the chessboard distance d.

    Args:
        mask: (H, W) bool.
        width: d in pixels; None takes `boundary_width`.

    Returns:
        (H, W) bool.

    Example:
        >>> mask_boundary(np.ones((3, 5), bool), 1).astype(int)
        array([[1, 1, 1, 1, 1],
               [1, 0, 0, 0, 1],
               [1, 1, 1, 1, 1]])
    """
    boundary = np.zeros_like(mask)
    box = tight_box(mask)
    if box is None:
        return boundary
    x0, y0, x1, y1 = box.astype(int)  # the distance has to be known here only
    inside = np.pad(mask[y0:y1, x0:x1], 1)
    depth = distance_transform_cdt(inside, "chessboard")[1:-1, 1:-1]
    boundary[y0:y1, x0:x1] = (depth > 0) & (depth <= (boundary_width(mask.shape) if width is None else width))
    return boundary


def boundary_iou(mask: Mask, truth: Mask, width: int | None = None) -> float:
    """Boundary IoU: the intersection over union of the boundaries of two masks (H, W).

    Args:
        mask: (H, W) bool.
        truth: (H, W) bool.
        width: Of the boundaries in pixels; None takes `boundary_width`, 2 % of the image's diagonal.

    Source: Cheng et al. 2021, "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation", equation 2.

    Example:
        >>> square, wider = np.zeros((5, 6), bool), np.zeros((5, 6), bool)
        >>> square[1:4, 1:4], wider[1:4, 1:5] = True, True
        >>> boundary_iou(square, wider, 1)  # 8 and 10 px of boundary, 7 of them shared
        0.6363636363636364
    """
    return mask_iou(mask_boundary(mask, width), mask_boundary(truth, width))


def _check_masks(mask: Mask, truth: Mask) -> None:
    if mask.shape != truth.shape or mask.dtype != np.bool_ or truth.dtype != np.bool_:
        got = f"{mask.dtype} {mask.shape} and {truth.dtype} {truth.shape}"
        raise ValueError(f"two masks of one image are bool and of equal shape, got {got}")


# -------------------------------------------------------------------------------------------------------- curves


def prompts_to_reach(curves: ArrayLike, threshold: float) -> NDArray[np.int64]:
    """NoC@k of each object: the first number of prompts after which its IoU is at least k.

    Args:
        curves: (M, T + 1) IoU after 0..T prompts. 0 prompts is the box alone.
        threshold: k in (0, 1].

    Returns:
        (M,) int64 in 0..T, or `NEVER`: what is reached at the last prompt and what is never reached stay apart.

    Example:
        >>> prompts_to_reach([[0.8, 0.9], [0.7, 0.8], [0.7, 0.7], [0.7, 0.9]], 0.8)
        array([ 0,  1, -1,  1])
    """
    reached = np.asarray(curves, np.float64) >= threshold
    if reached.ndim != 2 or not reached.shape[1]:
        raise ValueError(f"curves have one row an object and one column for each 0..T prompts, got {reached.shape}")
    return np.where(reached.any(axis=1), reached.argmax(axis=1), NEVER)
