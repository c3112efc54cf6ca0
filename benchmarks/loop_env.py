"""The baseline of benchmarks/throughput.py: SamPrompt as public re-implementations write it; not for use elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from PIL import Image
from segment_anything import SamPredictor
from segment_anything.modeling import Sam
from torch import Tensor

from sam_gym._utils.boxes import noisy_box
from sam_gym.data import SegmentationData
from sam_gym.envs.episode import GridActions, view_of
from sam_gym.sam import ImageEmbedding


def look_at(predictor: SamPredictor, handle: ImageEmbedding, features: Tensor) -> None:
    """Give SamPredictor an image that was encoded before, `features` (1, C, h, w) as it keeps them."""
    predictor.features = features
    predictor.original_size, predictor.input_size = handle.image_size, handle.input_size
    predictor.is_image_set = True


class LoopEnv(gymnasium.Env):
    """SamPrompt as public re-implementations write it: an environment of its own SamPredictor, one click at a time.

    Args:
        sam: The model.
        data: Images and objects.
        handles: Of the first images, their sizes.
        features: Of the same images, (1, C, h, w) as SamPredictor keeps them.
    """

    def __init__(
        self, sam: Sam, data: SegmentationData, handles: Sequence[ImageEmbedding], features: Sequence[Tensor]
    ) -> None:
        self.data, self.handles, self.features, self.grid = data, handles, features, GridActions(16)
        self.action_space = self.grid.space
        self.observation_space = spaces.Dict(
            image=spaces.Box(0, 255, (64, 64, 3), np.uint8),
            mask=spaces.Box(0, 255, (64, 64, 1), np.uint8),
            embedding=spaces.Box(-np.inf, np.inf, tuple(handles[0].features.shape), np.float32),
        )
        self.predictor = SamPredictor(sam)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, NDArray], dict]:
        """Begin with the mask of the cue box."""
        super().reset(seed=seed)
        self.image = int(self.np_random.integers(len(self.handles)))
        handle = self.handles[self.image]
        look_at(self.predictor, handle, self.features[self.image])
        objects = self.data.objects
        row = int(self.np_random.choice(np.flatnonzero(objects.image_index == self.image)))
        self.truth = self.data.mask(self.image, int(objects.object_id[row]))
        self.box = noisy_box(objects.box[row], 0.2, handle.image_size, self.np_random)
        self.view = view_of(self.box, 1.7)
        self.points: list[NDArray] = []
        self.labels: list[int] = []
        self.low: NDArray | None = None
        self._predict()
        return self._observe(), {}

    def step(self, action: Any) -> tuple[dict[str, NDArray], float, bool, bool, dict]:
        """Click, predict, reward."""
        before = self.iou
        if stop := action == self.grid.stop:
            return self._observe(), 0.0, stop, False, {}
        x, y = self.view[:2] + self.grid.centres[action % self.grid.cells] * self.view[2]
        height, width = self.truth.shape
        self.points.append(np.clip((x, y), 0, (width - 1, height - 1)))
        self.labels.append(int(action < self.grid.cells))
        self._predict()
        return self._observe(), self.iou - before, len(self.points) >= 5, False, {}

    def _predict(self) -> None:
        masks, _, low = self.predictor.predict(
            point_coords=np.array(self.points) if self.points else None,
            point_labels=np.array(self.labels) if self.points else None,
            box=self.box, mask_input=self.low, multimask_output=False,
        )  # fmt: skip
        self.mask, self.low = masks[0], low
        self.iou = float((self.mask & self.truth).sum() / max((self.mask | self.truth).sum(), 1))

    def _observe(self) -> dict[str, NDArray]:
        left, top, side = self.view
        around = (left, top, left + side, top + side)
        image = Image.fromarray(self.data.image(self.image)).crop(around).resize((64, 64))
        mask = Image.fromarray(self.mask.astype(np.uint8) * 255).crop(around).resize((64, 64))
        features = self.predictor.features[0].numpy().copy()
        return {"image": np.asarray(image), "mask": np.asarray(mask)[..., None], "embedding": features}
