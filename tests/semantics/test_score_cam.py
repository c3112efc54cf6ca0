"""Score maps: channels count by the gradient of the score, and places by what the image says through them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sam_gym.semantics import ClipModel
from sam_gym.semantics.score_cam import _channels, score_map


def score_of(clip: ClipModel) -> Callable[[Tensor], Tensor]:
    target = clip.embed_texts(["a cell"])[0]
    return lambda embeddings: embeddings @ target


def test_slopes_are_those_of_the_score(clip: ClipModel) -> None:
    """Raising a channel in all patches raises the score by its slope, times the patches."""
    score, visual = score_of(clip), clip.model.visual
    pixels = torch.rand(1, 3, clip.image_size, clip.image_size)
    activations, slope = _channels(clip, pixels, score)
    assert activations.shape[1:] == visual.grid_size
    patches, step = visual.grid_size[0] * visual.grid_size[1], 0.02

    def raised(channel: int, by: float) -> float:
        def change(module: torch.nn.Module, inputs: object, tokens: Tensor) -> Tensor:
            tokens = tokens.clone()
            tokens.flatten(0, 1)[-patches:, channel] += by
            return tokens

        hook = visual.transformer.resblocks[-2].register_forward_hook(change)
        with torch.no_grad():
            found = score(F.normalize(clip.model.encode_image(pixels).float(), dim=-1))
        hook.remove()
        return float(found[0])

    for channel in range(0, len(slope), 3):
        found = (raised(channel, step) - raised(channel, -step)) / (2 * step * patches)
        assert found == pytest.approx(float(slope[channel]), rel=0.05, abs=2e-5)
    assert not visual.transformer.resblocks[-2]._forward_hooks


def test_maps_lie_between_0_and_1_and_bad_input_is_named(clip: ClipModel) -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    for others in ((), ("a tree", "a dog")):
        found = score_map(clip, image, "a cell", others, channels=5)
        assert found.shape == clip.model.visual.grid_size
        assert (found.min(), found.max()) == (0, 1)
        torch.testing.assert_close(found, score_map(clip, image, "a cell", others, channels=5))
    with pytest.raises(ValueError, match="channels=0"):
        score_map(clip, image, "a cell", channels=0)
