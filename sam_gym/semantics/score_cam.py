"""Score maps: where an image must not be hidden if it shall still look like a text, in the manner of gScoreCAM.

Chen et al. 2022, "gScoreCAM: What objects is CLIP looking at?" (ACCV). Channels of the image tower are maps of their
own. Those on which the text's score depends the most, by its gradient, are laid over the image one by one, and each
counts by how well the image, seen through it, fits the text. It is what Konwer et al. (CVPR 2025) take prompts from.

`sam_gym.semantics.similarity` asks patches what they look like, for one run of the tower; this asks the whole image,
for as many runs as there are channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sam_gym.semantics.models import ClipModel
from sam_gym.semantics.similarity import check_tower, normalised
from sam_gym.semantics.views import check_images, whole_views

CHANNELS = 100
"""How many channels are tried at most. The authors take a tenth of some thousands; small towers have fewer in all."""


def score_map(
    clip: ClipModel, image: NDArray[np.uint8], text: str, others: Sequence[str] = (), *, channels: int = CHANNELS
) -> Tensor:
    """Where an image looks like a text.

    Args:
        clip: A model whose image tower is a plain open_clip ViT.
        image: uint8 (H, W, 3); squeezed if it is not square.
        text: What to look for.
        others: What it might be instead. The score is then how much likelier the text is than these; without them, as
            published, the cosine of image and text.
        channels: How many are tried, those first on which the score depends the most.

    Returns:
        float32 (h, w) in [0, 1] on the model's device, on the grid of patches; 0 where no channel says anything.

    Raises:
        ClipError: The image tower is of another kind.
        ValueError: The text is empty; an image of another shape or dtype; fewer than one channel.
    """
    if channels < 1:
        raise ValueError(f"channels={channels} must be at least 1")
    check_tower(clip)
    check_images([image], 1)
    texts = clip.embed_texts([text, *others])

    def score(embeddings: Tensor) -> Tensor:
        """(K,) of K images."""
        logits = clip.logit_scale * embeddings @ texts.T
        return logits.log_softmax(dim=1)[:, 0] if others else logits[:, 0]

    pixels = whole_views([image], clip, 1).flatten(0, 2).to(clip.device)
    activations, slope = _channels(clip, pixels, score)
    chosen = slope.topk(min(channels, len(slope))).indices
    maps = normalised(activations[chosen])
    shown = F.interpolate(maps[:, None], pixels.shape[-2:], mode="bilinear", align_corners=False)
    weights = score(clip.embed_images(pixels * shown)).softmax(0)  # what is hidden has the mean colour, which is 0
    return normalised((weights[:, None, None] * maps).sum(dim=0)[None])[0]


def _channels(clip: ClipModel, pixels: Tensor, score: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """What goes into the last block, (C, h, w), and how much the text's score rises with each channel, (C,)."""
    visual = clip.model.visual
    kept: list[Tensor] = []

    def keep(module: Any, inputs: Any, tokens: Tensor) -> Tensor:
        kept.append(tokens.detach().requires_grad_())
        return kept[0]

    hook = visual.transformer.resblocks[-2].register_forward_hook(keep)
    try:
        with torch.enable_grad():
            found = score(F.normalize(clip.model.encode_image(pixels).float(), dim=-1))
            (gradient,) = torch.autograd.grad(found.sum(), kept[0])
    finally:
        hook.remove()
    spatial = [
        one.flatten(0, 1)[-visual.grid_size[0] * visual.grid_size[1] :].T.unflatten(1, visual.grid_size).float()
        for one in (kept[0].detach(), gradient)
    ]
    return spatial[0], spatial[1].mean(dim=(1, 2))
