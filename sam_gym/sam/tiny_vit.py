"""MobileSAM's image encoder: timm's TinyViT under SAM's neck.

The network is timm's `tiny_vit_5m_224` with its last downsampling undone (so that the embedding has 1/16 of the
image's resolution, as SAM's decoder expects) followed by the neck of SAM's own encoder. This file builds it and
translates the names that MobileSAM's official weights use. It neither fetches nor reads weights: see
`sam_gym.sam.sources` and `sam_gym.sam.weights_files`.

Sources: Zhang et al. 2023, "Faster Segment Anything: Towards Lightweight SAM for Mobile Applications"
(arXiv:2306.14289); Wu et al. 2022, "TinyViT" (arXiv:2207.10666).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from segment_anything.modeling.common import LayerNorm2d
from torch import nn

EMBEDDING_CHANNELS = 256
"""Channels of every SAM image embedding."""

STRIDE = 16
"""Pixels of the input image per cell of the embedding."""


class TinyVitEncoder(nn.Module):
    """TinyViT-5M with SAM's neck; build it with `build_tiny_vit`.

    Args:
        patch_embed: Stem, image -> feature map of 1/4 of its resolution.
        stages: The four TinyViT stages, down to 1/16.
        channels: Channels that the last stage hands on.
        image_size: Side of the square input image in pixels.

    Attributes:
        img_size: `image_size`, under the name by which segment_anything asks every image encoder for it.
    """

    def __init__(self, patch_embed: nn.Module, stages: nn.Module, channels: int, image_size: int) -> None:
        super().__init__()
        self.img_size = image_size
        self.patch_embed = patch_embed
        self.stages = stages
        self.neck = nn.Sequential(
            nn.Conv2d(channels, EMBEDDING_CHANNELS, kernel_size=1, bias=False),
            LayerNorm2d(EMBEDDING_CHANNELS),
            nn.Conv2d(EMBEDDING_CHANNELS, EMBEDDING_CHANNELS, kernel_size=3, padding=1, bias=False),
            LayerNorm2d(EMBEDDING_CHANNELS),
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Encode images.

        Args:
            image: float32 (B, 3, S, S) with S = `img_size`, RGB, normalised by SAM's pixel mean and deviation and
                padded with zeros at the bottom or right (`Sam.preprocess` does both).

        Returns:
            float32 (B, 256, S / 16, S / 16).
        """
        return self.neck(self.stages(self.patch_embed(image)))


def build_tiny_vit(image_size: int = 1024) -> TinyVitEncoder:
    """MobileSAM's image encoder with random weights, in training mode; nothing is downloaded.

    Args:
        image_size: Side of the square input in pixels, a multiple of 16. Every size has the same parameters;
            MobileSAM's were trained at 1024.

    Raises:
        ValueError: `image_size` is not a positive multiple of 16.
    """
    if image_size <= 0 or image_size % STRIDE:
        raise ValueError(f"image_size must be a positive multiple of {STRIDE}, not {image_size}")
    import timm  # here, since only this architecture needs it and it takes half a second to import

    # Any: to a type checker every attribute of a module may be a tensor
    trunk: Any = timm.create_model("tiny_vit_5m_224", pretrained=False, num_classes=0, drop_path_rate=0.0)
    # MobileSAM keeps the resolution between the last two stages, where TinyViT halves it.
    trunk.stages[3].downsample.conv2.conv.stride = (1, 1)
    return TinyVitEncoder(trunk.patch_embed, trunk.stages, trunk.num_features, image_size)


_PREFIX = "image_encoder."

# In this order: a stage's downsampling closes the stage in MobileSAM and opens the next one in timm.
_RENAMINGS = (
    (re.compile(r"^patch_embed\.seq\.0\."), lambda match: "patch_embed.conv1."),
    (re.compile(r"^patch_embed\.seq\.2\."), lambda match: "patch_embed.conv2."),
    (re.compile(r"^layers\.(\d+)\.downsample\."), lambda match: f"stages.{int(match[1]) + 1}.downsample."),
    (re.compile(r"^layers\."), lambda match: "stages."),
    (re.compile(r"\.c\."), lambda match: ".conv."),
)

# The classifier that TinyViT was distilled with: in the official file, but never used by MobileSAM.
_UNUSED = re.compile(r"^(norm_head|head)\.")


def rename_official(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Translate MobileSAM's official key names into those of a `Sam` whose image encoder is `build_tiny_vit()`.

    Args:
        state: State dict of a whole model. The keys under `image_encoder.` are translated (the prefix stays); all
            others are the same in both and pass through. So do names that are ours already and those of SAM's own
            ViT encoders: the function may be applied to the state dict of any SAM.

    Returns:
        A new dict over the same tensors, without the classifier (`norm_head`, `head`) that MobileSAM never uses.
    """
    renamed = {}
    for key, tensor in state.items():
        if key.startswith(_PREFIX):
            key = key.removeprefix(_PREFIX)
            if _UNUSED.match(key):
                continue
            for pattern, replacement in _RENAMINGS:
                key = pattern.sub(replacement, key)
            key = _PREFIX + key
        renamed[key] = tensor
    return renamed
