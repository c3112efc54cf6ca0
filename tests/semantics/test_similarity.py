"""Similarity maps: their form, what they do not depend on, and which image towers they are for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F

from sam_gym.semantics import ClipError, ClipModel, similarity_map
from sam_gym.semantics.similarity import patch_features, remove_redundancy, upsample
from sam_gym.semantics.views import whole_views

BuildClip = Callable[..., ClipModel]

TEXTS = ["mitochondrion", "nucleus", "membrane", "nucleus", "background"]
OTHERS = [("membrane", "cell interior"), ("background",), ["nucleus"], ("cytoplasm", "background"), ("nucleus",)]


@pytest.mark.parametrize("distractors", [None, OTHERS])
@pytest.mark.parametrize("tiles", [1, 3])
def test_maps_lie_on_the_grid_of_patches(clip: ClipModel, regions, distractors, tiles: int) -> None:
    maps = similarity_map(clip, regions[0], TEXTS, distractors, tiles=tiles)
    assert (maps.dtype, maps.shape) == (torch.float32, (5, 4 * tiles, 4 * tiles))
    assert torch.equal(maps.amin((1, 2)), torch.zeros(5))
    assert torch.equal(maps.amax((1, 2)), torch.ones(5))


@pytest.mark.parametrize("distractors", [None, OTHERS])
def test_map_does_not_depend_on_its_neighbours(build_clip: BuildClip, regions, distractors) -> None:
    clip, images = build_clip(), regions[0]
    together = similarity_map(clip, images, TEXTS, distractors, tiles=2)
    for index in range(5):
        others = None if distractors is None else [distractors[index]]
        alone = similarity_map(build_clip(), [images[index]], [TEXTS[index]], others, tiles=2)  # has seen no other
        assert torch.allclose(alone[0], together[index], atol=1e-4)


def test_tiles_are_put_back_where_they_were(clip: ClipModel) -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    patches, _ = patch_features(clip, [image], tiles=2)
    changed = image.copy()
    changed[:32, 32:] = 0  # the tile in the upper right
    moved = (patch_features(clip, [changed], tiles=2)[0] - patches).abs().amax(-1)[0] > 1e-6
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[:4, 4:] = True
    assert torch.equal(moved, expected)


def test_image_goes_through_the_tower_once(build_clip: BuildClip, regions) -> None:
    clip, images = build_clip(), regions[0]
    seen = []
    clip.model.visual.conv1.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    first = similarity_map(clip, images[:4], TEXTS[:4], tiles=2)
    assert sum(seen) == 4 * 4
    again = similarity_map(clip, [images[4], images[2].copy(), images[4]], TEXTS[:3], OTHERS[:3], tiles=2)
    assert sum(seen) == 5 * 4  # neither the copy nor the repeated image
    other = build_clip()
    assert torch.equal(similarity_map(other, images[2:3], TEXTS[1:2], OTHERS[1:2], tiles=2)[0], again[1])
    similarity_map(clip, images[:1], TEXTS[:1])  # in other tiles it is another view
    assert sum(seen) == 5 * 4 + 2  # an image alone goes in twice
    first.zero_()  # what a caller does with the result changes nothing
    assert similarity_map(clip, images[:4], TEXTS[:4], tiles=2).amax() == 1


def test_what_all_texts_share_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    patches = F.normalize(torch.randn(4, 4, 24, generator=generator), dim=-1)
    pooled = F.normalize(torch.randn(24, generator=generator), dim=-1)
    texts, shared = torch.randn(3, 24, generator=generator), torch.randn(24, generator=generator)
    before = remove_redundancy(patches, pooled, texts)
    assert before.shape == (4, 4, 3)
    assert before.abs().max() > 0.1
    assert torch.allclose(remove_redundancy(patches, pooled, texts + shared), before, atol=1e-5)


def test_redundancy_by_hand() -> None:
    """One patch with similarities 1 and 0; softmax (3/4, 1/4) of the image's, so the texts weigh 3/2 and 1/2."""
    patches, pooled = torch.tensor([[1.0, 0.0]]), torch.tensor([3.0, 1.0]).log() / 2
    assert torch.allclose(remove_redundancy(patches, pooled, torch.eye(2)), torch.tensor([[0.25, -0.75]]))


def test_second_path_by_hand(build_clip: BuildClip, regions) -> None:
    """Two blocks: the path is what comes out of the first, plus value-value attention of the second."""
    clip = build_clip(layers=2)
    visual, (first, second) = clip.model.visual, clip.model.visual.transformer.resblocks
    entered = []
    handle = first.register_forward_hook(lambda *args: entered.append(args[-1]))
    patches, pooled = patch_features(clip, regions[0])
    handle.remove()
    with torch.no_grad():
        tokens = second.ln_1(entered[0])
        values = F.linear(tokens, second.attn.in_proj_weight[64:], second.attn.in_proj_bias[64:])
        mixed = []
        for head in values.split(16, dim=-1):
            weights = (head @ head.transpose(1, 2) / 4).softmax(-1)  # 4: the square root of the head's width
            mixed.append(weights @ head)
        path = entered[0] + second.attn.out_proj(torch.cat(mixed, dim=-1))
        expected = F.normalize(visual.ln_post(path[:, 1:]) @ visual.proj, dim=-1)
    assert torch.allclose(patches.flatten(1, 2), expected, atol=1e-5)
    assert torch.allclose(pooled, clip.embed_images(whole_views(regions[0], clip)[:, 0, 0]), atol=1e-5)


def test_model_is_left_as_it_was(clip: ClipModel, regions) -> None:
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    before, state = clip.embed_images(pixels), {key: value.clone() for key, value in clip.model.state_dict().items()}
    similarity_map(clip, regions[0], TEXTS, tiles=5)
    assert torch.equal(clip.embed_images(pixels), before)
    after = clip.model.state_dict()
    assert after.keys() == state.keys()
    assert all(torch.equal(after[key], state[key]) for key in state)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in clip.model.modules())


@pytest.mark.parametrize(
    "vision",
    [
        {"pool_type": "avg"},
        {"pool_type": "avg", "final_ln_after_pool": True},
        {"no_ln_pre": True, "pos_embed_type": "sin_cos_2d"},
        {"ls_init_value": 0.1},
        {"output_tokens": True},
        {"patch_dropout": 0.5},
        {"layers": 13},
        {"layers": 3, "image_size": 48},
    ],
    ids=str,
)
def test_plain_vits_work(build_clip: BuildClip, regions, vision: dict) -> None:
    clip = build_clip(**vision)
    maps = similarity_map(clip, regions[0], TEXTS, OTHERS)
    side = vision.get("image_size", 32) // 8
    assert maps.shape == (5, side, side)
    assert torch.isfinite(maps).all()
    assert (maps.flatten(1).std(1) > 0.05).all()
    assert torch.equal(similarity_map(build_clip(**vision), regions[0], TEXTS, OTHERS), maps)  # nothing is drawn


@pytest.mark.parametrize(
    ("vision", "said"),
    [
        ({"attentional_pool": True, "attn_pooler_heads": 4}, "pools by attention"),
        ({"qk_norm": True}, "has blocks with attention of another kind"),
        ({"layers": 1}, "has a single block"),
        ({"layers": [1, 1, 1, 1]}, "is a ModifiedResNet"),
        ({"timm_model_name": "vit_tiny_patch16_224"}, "is a TimmModel"),
    ],
    ids=str,
)
def test_other_towers_are_refused(build_clip: BuildClip, regions, vision: dict, said: str) -> None:
    with pytest.raises(ClipError, match=f"CLIP model 'other': its image tower {said}.*VisionTransformer"):
        similarity_map(build_clip("other", **vision), regions[0], TEXTS)


def test_custom_text_towers_work(regions, tiny_config: Callable[..., dict]) -> None:
    model = open_clip.CustomTextCLIP(**tiny_config()).eval().requires_grad_(False)
    clip = ClipModel("custom", model, open_clip.SimpleTokenizer(context_length=16), 32, (0.5,) * 3, (0.25,) * 3)
    assert similarity_map(clip, regions[0], TEXTS).shape == (5, 4, 4)


def test_bad_input_is_named(clip: ClipModel, regions) -> None:
    images = regions[0]
    with pytest.raises(ValueError, match="5 images, 4 texts: unequal"):
        similarity_map(clip, images, TEXTS[:-1])
    with pytest.raises(ValueError, match="5 images, 5 texts, 4 sequences of distractors"):
        similarity_map(clip, images, TEXTS, OTHERS[:-1])
    with pytest.raises(ValueError, match="a text is empty"):
        similarity_map(clip, images, ["", *TEXTS[1:]])
    with pytest.raises(ValueError, match="at least one image"):
        similarity_map(clip, [], [])
    with pytest.raises(ValueError, match="at least one tile"):
        similarity_map(clip, images, TEXTS, tiles=0)


def test_maps_can_be_inputs_of_what_is_trained(clip: ClipModel, regions) -> None:
    maps = upsample(similarity_map(clip, regions[0], TEXTS), (16, 24))
    assert maps.shape == (5, 16, 24)
    layer = torch.nn.Conv2d(1, 1, 3)
    layer(maps[:, None]).sum().backward()
    assert layer.weight.grad is not None


def test_upsampling_keeps_places() -> None:
    ramp = torch.linspace(0, 1, 4).expand(1, 4, 4)
    large = upsample(ramp, (4, 16))[0, 0]
    assert (large.diff() >= 0).all()
    assert large[[0, -1]].tolist() == [0, 1]
    assert large[7:9].mean() == pytest.approx(0.5)
