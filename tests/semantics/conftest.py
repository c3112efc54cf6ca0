"""Tiny CLIP models with random weights, generated images with masks, and nuclei that need no file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import open_clip
import pytest
import torch

from sam_gym.data import SegmentationData
from sam_gym.semantics import ClipModel

BuildClip = Callable[..., ClipModel]


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., dict[str, Any]]:
    """`tiny_config(**vision)`: an architecture in open_clip's form; `vision` changes its image tower."""

    def config(**vision: Any) -> dict[str, Any]:
        plain = {"image_size": 32, "patch_size": 8, "layers": 4, "width": 32, "head_width": 16}
        return {
            "embed_dim": 24,
            "vision_cfg": {**plain, **vision},
            "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
        }

    return config


@pytest.fixture(scope="session")
def build_clip(tiny_config: Callable[..., dict[str, Any]]) -> BuildClip:
    """`build_clip(**vision)`: a frozen tiny CLIP whose image tower is changed as said."""

    tokenizer = open_clip.SimpleTokenizer(context_length=16)

    def build(name: str = "tiny", **vision: Any) -> ClipModel:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = open_clip.CLIP(**tiny_config(**vision)).eval().requires_grad_(False)
        return ClipModel(name, model, tokenizer, vision.get("image_size", 32), (0.5, 0.4, 0.6), (0.25, 0.2, 0.3))

    return build


@pytest.fixture(scope="session")
def clip(build_clip: BuildClip) -> ClipModel:
    return build_clip()


@pytest.fixture
def regions() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Five images of three sizes, each with an ellipse; one reaches over the image's edge."""
    rng = np.random.default_rng(0)
    images, masks = [], []
    for height, width, y, x in [(40, 40, 20, 20), (40, 40, 8, 30), (64, 48, 60, 5), (33, 70, 10, 50), (64, 48, 30, 20)]:
        images.append(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        rows, columns = np.mgrid[:height, :width]
        masks.append(((rows - y) / 9) ** 2 + ((columns - x) / 6) ** 2 < 1)
    return images, masks


@pytest.fixture(scope="session")
def disks() -> SegmentationData:
    """Two black images 96 x 96 with nine bright disks each, in place of nuclei."""
    y, x = np.mgrid[:96, :96]
    near = np.hypot(y % 32 - 16, x % 32 - 16) < 9
    labels = np.where(near, 1 + y // 32 * 3 + x // 32, 0)
    image = np.where(near, 220, 20).astype(np.uint8)
    return SegmentationData("disks", "train", "disks", ("a", "b"), [image, image], [labels, labels], min_area=50)
