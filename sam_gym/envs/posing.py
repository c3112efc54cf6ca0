"""Where episodes begin: drawn at random, or as somebody asks, and checked.

Pure NumPy: no model. Ground truth is looked at for cues and for what an episode is given by rule, and by nobody else.
"""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sam_gym._utils.boxes import clip_box, tight_box
from sam_gym.data import SegmentationData
from sam_gym.envs.labelling import TRUTH, clicks_of_truth
from sam_gym.envs.settings import RESET_OPTIONS, Settings

NO_CLICKS = np.zeros((0, 3), np.float32)


@dataclass(frozen=True)
class Pose:
    """Where one episode begins: image index, object id, cue box (4,), clicks that are given (k, 3) x, y, label.

    Without clicks, None, an episode begins as its settings say. Where there is a `mask` (H, W) it begins with that, and
    the cue is the mask's tight box.
    """

    image: int
    object_id: int
    cue: NDArray[np.float32]
    clicks: NDArray[np.float32] | None
    mask: NDArray[np.bool_] | None = None


def pose_of(
    settings: Settings, data: SegmentationData, rng: np.random.Generator, request: Mapping[str, Any] | None = None
) -> Pose:
    """Draw an episode, or take what `request` fixes of it.

    Args:
        settings: Of the task.
        data: The images.
        rng: The sub-environment's own generator.
        request: See `PromptEngine.pose`.

    Raises:
        ValueError: An unknown entry, or an image, object, cue or mask that is not there.
    """
    request = dict(request or {})
    if unknown := sorted(request.keys() - set(settings.reset_options)):
        *others, last = map(repr, settings.reset_options)
        raise ValueError(f"unknown reset options {unknown}; known are {', '.join(others)} and {last}")
    image, wanted, cue, points, mask = (request.pop(name, None) for name in (*RESET_OPTIONS, "points", "mask"))
    objects = data.objects
    if wanted is not None:
        if image is None:
            raise ValueError("reset option 'object' needs 'image': object ids count within one image")
        row = data.find(_plain(image), int(wanted))
    elif image is not None:
        index = data.image_index(_plain(image))
        rows = np.flatnonzero(objects.image_index == index)
        if not len(rows):
            raise ValueError(f"image {data.image_ids[index]!r} has no object within the area limits")
        row = int(rng.choice(rows))
    else:
        row = data.draw(rng)
    index = int(objects.image_index[row])
    size = data.image(index).shape[:2]
    if cue is None:
        box = settings.draw_cue(objects.box[row], (size[0], size[1]), rng, **request)
    elif request:
        raise ValueError(f"reset option 'cue' is the box itself; leave out {sorted(request)}")
    else:
        box = np.asarray(cue, np.float32)
        if box.shape != (4,) or not np.isfinite(box).all() or (box[2:] <= box[:2]).any():
            raise ValueError(f"reset option 'cue' must be x0, y0, x1, y1 with x0 < x1 and y0 < y1, got {cue!r}")
        if (box[2:] <= 0).any() or (box[:2] >= size[::-1]).any():
            raise ValueError(f"reset option 'cue' lies outside the image of {size[1]} x {size[0]} px: {cue!r}")
        box = clip_box(box, (size[0], size[1]))
    clicks = None if points is None else _checked_clicks(points, size, settings.given_clicks)
    if clicks is None and settings.first_clicks == TRUTH:
        clicks = clicks_of_truth(data.mask(index, int(objects.object_id[row])), rng)
    object_id = int(objects.object_id[row])
    if mask is not None:
        mask = _checked_mask(mask, size)
    elif data.labelled:
        mask = settings.first_mask(data.labels(index), object_id, box)
    if mask is not None and (tight := tight_box(mask)) is not None:
        box = tight
    return Pose(index, object_id, box, clicks, mask)


def _checked_clicks(points: Any, size: tuple[int, ...], most: int) -> NDArray[np.float32]:
    """Clicks (k, 3) x, y, label in the pixels of an image of `size`; ValueError if they are none or too many."""
    try:
        clicks = np.asarray(points, np.float32) if len(points) else NO_CLICKS
    except (TypeError, ValueError):
        clicks = np.zeros(0, np.float32)
    if clicks.ndim != 2 or clicks.shape[1] != 3 or len(clicks) > most or not np.isin(clicks[:, 2], (0, 1)).all():
        raise ValueError(
            f"reset option 'points' must be up to {most} times x, y, label with label 1 (foreground) or 0 (background),"
            f" got {points!r}"
        )
    limit = np.array([size[1] - 1, size[0] - 1])
    if not ((clicks[:, :2] >= 0) & (clicks[:, :2] <= limit)).all():
        raise ValueError(f"reset option 'points' leaves the image of {size[1]} x {size[0]} px: {points!r}")
    return clicks


def _checked_mask(mask: Any, size: tuple[int, ...]) -> NDArray[np.bool_]:
    """A mask (H, W) of an image of `size` as bool; ValueError if it is none."""
    array = np.asarray(mask)
    if array.shape != tuple(size) or not (array.dtype == bool or np.isin(array, (0, 1)).all()) or not array.any():
        raise ValueError(
            f"reset option 'mask' must be {size[0]} x {size[1]} of 0 and 1, the image's size, and not empty; got "
            f"{array.dtype} of {' x '.join(map(str, array.shape)) or 'one number'}"
        )
    return array.astype(bool)


def _plain(image: Any) -> int | str:
    """NumPy integers and strings as Python's."""
    return int(image) if isinstance(image, numbers.Integral) else str(image)
