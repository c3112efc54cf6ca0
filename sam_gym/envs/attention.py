"""What SAM's decoder looks at in an episode: the whole image, or a window around the view and the rest in blocks.

Each way says what it needs to know of an episode, from first to last (`look`), and decodes by that. Nothing else in the
suite needs to know which one it is. Nothing here has access to ground truth besides handing it to the backend.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from sam_gym._utils.boxes import tight_box
from sam_gym._utils.depth import depth_in
from sam_gym.sam.fovea import Window
from sam_gym.sam.interface import Backend, ImageEmbedding
from sam_gym.sam.masks import Masks, WindowMasks
from sam_gym.sam.prompts import PromptBatch

NO_MASK = -100.0
"""Low-resolution logit of a mask that SAM has not made: empty, and without doubt."""

Frame = tuple[float, float, float]
"""Middle x, y and half the side of the square that low-resolution logits cover, in SAM's square input of [-1, 1]."""

WHOLE: Frame = (0.0, 0.0, 1.0)
"""That of the whole image."""

STEEPNESS, CERTAIN = 4.0, 10.0
"""Logits of a mask that somebody gives: so much a low-resolution pixel from its outline, up to so much."""

Previous = Sequence[Tensor | None]
Truths = Sequence[Tensor] | None


class Attention(ABC):
    """One way to look; `seen` is always what its `look` said.

    Args:
        backend: The frozen SAM.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    @abstractmethod
    def look(self, embedding: ImageEmbedding, view: NDArray) -> Any:
        """What stays the same within an episode on an image, seen in a view (left, top, side) of its pixels."""

    @abstractmethod
    def frame(self, seen: Any) -> Frame:
        """Where the logits lie."""

    @abstractmethod
    def size(self, seen: Any) -> tuple[int, int]:
        """Rows and columns of the logits."""

    @abstractmethod
    def decode(
        self,
        seen: Sequence[Any],
        prompts: PromptBatch,
        previous: Previous,
        truths: Truths,
        boxes: bool,
        multimask: bool = False,
    ) -> Masks | WindowMasks:
        """The one decode call of a step.

        Args:
            seen: Per mask.
            prompts: Points and boxes.
            previous: Per mask the logits that are fed back, or None.
            truths: Per mask (H, W) bool, to be measured with; or None for no truth at all.
            boxes: Find the masks' tight boxes as well.
            multimask: Three masks for an ambiguous prompt instead of the single one.
        """

    @abstractmethod
    def mask(self, seen: Any, logits: Tensor) -> Tensor:
        """Logits as a mask (H, W) bool of the image's size."""

    def nothing(self, seen: Any) -> Tensor:
        """Logits of an empty mask that SAM was not asked for."""
        return torch.full(self.size(seen), NO_MASK, device=self.backend.device)

    def given(self, seen: Any, embedding: ImageEmbedding, mask: NDArray[np.bool_]) -> Tensor:
        """Logits of a mask (H, W) that SAM has not made: at full size it is the same but for a pixel at its outline.

        They rise with the distance to the outline, as SAM's own do, so that they say where it is between two pixels.
        """
        (rows, columns), (middle_x, middle_y, half) = self.size(seen), self.frame(seen)
        side = max(embedding.input_size)  # the longer side of the image fills the model's square input
        places, inside = [], []
        for axis, (count, middle) in enumerate(((rows, middle_y), (columns, middle_x))):
            share = (middle + half * ((2 * np.arange(count) + 1) / count - 1) + 1) / 2
            pixels = share * side * embedding.image_size[axis] / embedding.input_size[axis]
            places.append(pixels - 0.5)  # whole numbers are the centres of pixels
            inside.append((pixels >= 0) & (pixels < embedding.image_size[axis]))
        step = half / columns * side * embedding.image_size[1] / embedding.input_size[1]
        depth = _depth_near(mask, CERTAIN / STEEPNESS * step)
        depth = ndimage.map_coordinates(depth, np.meshgrid(*places, indexing="ij"), order=1, mode="nearest")
        logits = np.clip(depth / step * STEEPNESS, -CERTAIN, CERTAIN)
        logits[~(inside[0][:, None] & inside[1])] = -CERTAIN
        return torch.as_tensor(logits, dtype=torch.float32, device=self.backend.device)


def _depth_near(mask: NDArray[np.bool_], reach: float) -> NDArray[np.float64]:
    """`depth_in`, between -reach and reach; worked out around the mask only."""
    depth = np.full(mask.shape, -reach)
    if (box := tight_box(mask)) is not None:
        (x0, y0), (x1, y1) = (box[:2] - reach - 2).clip(0).astype(int), (box[2:] + reach + 2).astype(int)
        depth[y0:y1, x0:x1] = depth_in(mask[y0:y1, x0:x1]).clip(-reach, reach)
    return depth


class FullAttention(Attention):
    """All cells of the image, as SAM does it."""

    def look(self, embedding: ImageEmbedding, view: NDArray) -> ImageEmbedding:
        """See `Attention.look`."""
        return embedding

    def frame(self, seen: ImageEmbedding) -> Frame:
        """See `Attention.frame`."""
        return WHOLE

    def size(self, seen: ImageEmbedding) -> tuple[int, int]:
        """See `Attention.size`."""
        return self.backend.mask_size

    def decode(
        self,
        seen: Sequence[ImageEmbedding],
        prompts: PromptBatch,
        previous: Previous,
        truths: Truths,
        boxes: bool,
        multimask: bool = False,
    ) -> Masks:
        """See `Attention.decode`."""
        if any(mask is not None for mask in previous):
            blank = torch.zeros(self.backend.mask_size, device=self.backend.device)
            prompts = replace(
                prompts,
                mask_logits=torch.stack([blank if mask is None else mask for mask in previous]),
                has_mask=prompts.has_mask | [mask is not None for mask in previous],
            )
        return self.backend.decode(seen, prompts, multimask=multimask, truths=truths, statistics=boxes)

    def mask(self, seen: ImageEmbedding, logits: Tensor) -> Tensor:
        """See `Attention.mask`."""
        return self.backend.upscale(logits, seen) > 0


class FoveatedAttention(Attention):
    """The cells around the view one by one, the rest of the image in blocks (`sam_gym.sam.fovea`)."""

    def look(self, embedding: ImageEmbedding, view: NDArray) -> Window:
        """See `Attention.look`."""
        return self.backend.window(embedding, view)

    def frame(self, seen: Window) -> Frame:
        """See `Attention.frame`."""
        return seen.frame

    def size(self, seen: Window) -> tuple[int, int]:
        """See `Attention.size`."""
        return seen.mask_size

    def decode(
        self,
        seen: Sequence[Window],
        prompts: PromptBatch,
        previous: Previous,
        truths: Truths,
        boxes: bool,
        multimask: bool = False,
    ) -> WindowMasks:
        """See `Attention.decode`."""
        return self.backend.decode_windows(
            seen, prompts, previous, multimask=multimask, truths=truths, statistics=boxes
        )

    def mask(self, seen: Window, logits: Tensor) -> Tensor:
        """See `Attention.mask`."""
        return seen.place(seen.at_full_size(logits[None]) > 0)[0]


ATTENTIONS: dict[str, type[Attention]] = {"full": FullAttention, "foveated": FoveatedAttention}
