"""Similarity maps: where in an image a text applies, in the manner of CLIP Surgery, without training.

Li et al. 2023, "CLIP Surgery for better explainability with enhancement in open-vocabulary tasks" (arXiv 2304.05653):
patches attend to each other by their values instead of queries and keys, in a second path beside the ordinary one
(architecture surgery), and what all texts have in common is taken out of the similarity (feature surgery). Written
against the public modules of open_clip's `VisionTransformer`, which are only read: the model itself stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from sam_gym.sam.cache import content_key
from sam_gym.semantics.models import BATCH, ClipError, ClipModel, import_open_clip
from sam_gym.semantics.views import check_images, whole_views

MAX_DEPTH = 6
"""Blocks at the end of a tower that have a second path: as many as the authors' code takes, half of a shallow tower."""

SHARPNESS = 2.0
"""Factor on cosines in the softmax that weighs texts against each other, as in the authors' code."""


def similarity_map(
    clip: ClipModel,
    images: Sequence[NDArray[np.uint8]],
    texts: Sequence[str],
    distractors: Sequence[Sequence[str]] | None = None,
    *,
    tiles: int = 1,
) -> Tensor:
    """Where each image looks like its text.

    Args:
        clip: A model whose image tower is a plain open_clip ViT.
        images: N RGB images uint8 (H, W, 3), of one size or of several; one that is not square is squeezed.
        texts: N texts, one for each image.
        distractors: N sequences of other texts, with which the text shares what is redundant. None: that is the
            embedding of the empty text, as the authors do where there is a single text.
        tiles: Each image is shown to the model as tiles x tiles parts, so that small objects are seen; the map grows
            with them. Costs tiles^2 runs of the image tower.

    Returns:
        float32 (N, h, w) in [0, 1] on the model's device, on the grid of patches: h = w = tiles x S / patch. Each map
        has its least value at 0 and its greatest at 1; a constant one is 0. It depends on its own image and texts only.

    Raises:
        ClipError: The image tower is of another kind.
        ValueError: A text is empty; unequal numbers; an image of another shape or dtype; no image.
    """
    if not len(images) == len(texts) or (distractors is not None and len(distractors) != len(texts)):
        others = "" if distractors is None else f", {len(distractors)} sequences of distractors"
        raise ValueError(f"{len(images)} images, {len(texts)} texts{others}: unequal")
    embeddings = [clip.embed_texts([text]) for text in texts]
    if distractors is not None:
        embeddings = [
            torch.cat([text, clip.embed_texts(others)]) for text, others in zip(embeddings, distractors, strict=True)
        ]
    patches, pooled = patch_features(clip, images, tiles=tiles)
    if distractors is None:
        raw = [patch @ (text[0] - clip.embed_nothing()) for patch, text in zip(patches, embeddings, strict=True)]
    else:
        regions = zip(patches, pooled, embeddings, strict=True)
        raw = [remove_redundancy(patch, image, text)[..., 0] for patch, image, text in regions]
    return normalised(torch.stack(raw))


def normalised(maps: Tensor) -> Tensor:
    """Each of (N, h, w) from 0 to 1; a constant one is 0."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low).clamp_min(torch.finfo(torch.float32).tiny)


def remove_redundancy(patches: Tensor, pooled: Tensor, texts: Tensor) -> Tensor:
    """Feature surgery: similarities of patches to texts, less what is common to all texts.

    With s_k the cosine of a patch and text k, and w the softmax of the whole image's similarities, divided by its mean
    over texts, it is s_k - mean_j(w_j s_j): texts that are obvious in the image weigh more in what is taken away. A
    direction that is added to all texts changes nothing.

    Args:
        patches: (..., D) of unit length.
        pooled: (D,) of unit length, of the whole image.
        texts: (K, D), K >= 2.

    Returns:
        (..., K).

    Example:
        >>> remove_redundancy(torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5]), torch.eye(2))
        tensor([ 0.5000, -0.5000])
    """
    weights = (SHARPNESS * texts @ pooled).softmax(0) * len(texts)
    similarity = patches @ texts.T
    return similarity - (similarity * weights).mean(-1, keepdim=True)


def patch_features(clip: ClipModel, images: Sequence[NDArray[np.uint8]], *, tiles: int = 1) -> tuple[Tensor, Tensor]:
    """Embeddings of patches that can be compared with texts, and those of whole images.

    They are kept in `clip.features` by the content of the image: an image goes through the tower once, whatever is
    asked of it.

    Args:
        clip: As for `similarity_map`.
        images: As for `similarity_map`.
        tiles: As for `similarity_map`.

    Returns:
        float32 (N, h, w, D) and (N, D), of unit length, on the model's device. With several tiles the embedding of the
        image is the mean of theirs, made of unit length again.

    Raises:
        ClipError: The image tower is of another kind.
        ValueError: An image of another shape or dtype; no image; no tile.
    """
    check_tower(clip)
    check_images(images, tiles)
    keys = [f"{content_key(image)}-{tiles}" for image in images]
    found = {key: kept for key in keys if (kept := clip.features.get(key)) is not None}
    missing = {key: image for key, image in zip(keys, images, strict=True) if key not in found}
    together = max(1, BATCH // tiles**2)
    for start in range(0, len(missing), together):
        part = list(missing)[start : start + together]
        for key, features in zip(part, _encode(clip, [missing[key] for key in part], tiles), strict=True):
            found[key] = features.clone()  # by itself: a slice would keep the whole batch in memory
            clip.features.put(key, found[key])
    every = torch.stack([found[key] for key in keys])
    rows, columns = clip.model.visual.grid_size
    return every[:, 1:].unflatten(1, (tiles * rows, tiles * columns)), every[:, 0]


def upsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (N, h, w) at another size (N, H, W), bilinear; both cover the same area."""
    return F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def check_tower(clip: ClipModel) -> None:
    """Raise ClipError unless similarity maps can be made with this model."""
    transformer = import_open_clip().transformer
    visual = clip.model.visual
    if not isinstance(visual, transformer.VisionTransformer):
        trouble = f"is a {type(visual).__name__}"
    elif visual.attn_pool is not None or visual.pool_type not in ("tok", "avg"):
        trouble = "pools by attention, which leaves no embedding for a patch"
    elif not all(isinstance(block.attn, nn.MultiheadAttention) for block in visual.transformer.resblocks):
        trouble = "has blocks with attention of another kind"
    elif len(visual.transformer.resblocks) < 2:
        trouble = "has a single block, and the second path needs one before it"
    else:
        return
    raise ClipError(
        f"no similarity maps with CLIP model {clip.name!r}: its image tower {trouble}. They need open_clip's own "
        "VisionTransformer, as in 'clip-micro', 'ViT-B-32/laion2b_s34b_b79k' or 'ViT-B-16/openai'."
    )


def _encode(clip: ClipModel, images: Sequence[NDArray[np.uint8]], tiles: int) -> Tensor:
    """Images -> unit embeddings (N, 1 + h w, D): of each image, then of its patches row by row."""
    views = whole_views(images, clip, tiles)
    grid = clip.model.visual.grid_size
    features = clip.in_batches(lambda pixels: _dual_path(clip.model.visual, pixels), views.flatten(0, 2))
    features = features.unflatten(0, (len(images), tiles, tiles))
    patches = features[..., 1:, :].unflatten(3, grid).transpose(2, 3).flatten(1, 4)  # rows of tiles -> rows of patches
    return torch.cat([F.normalize(features[..., 0, :].mean((1, 2)), dim=-1)[:, None], patches], dim=1)


def _dual_path(visual: Any, pixels: Tensor) -> Tensor:
    """Images (B, 3, S, S) -> unit embeddings (B, 1 + h w, D): the image's by the ordinary path, then the patches'."""
    blocks = visual.transformer.resblocks
    first = len(blocks) - min(MAX_DEPTH, len(blocks) // 2)
    indices = list(range(first - 1, len(blocks) - 1))  # what goes into the last blocks comes out of those before
    run = visual.forward_intermediates(pixels, indices=indices, output_fmt="NLC", output_extra_tokens=True)
    inputs = zip(run["image_intermediates_prefix"], run["image_intermediates"], strict=True)
    tokens = [torch.cat(pair, dim=1) for pair in inputs]
    path = tokens[0]
    for block, before in zip(blocks[first:], tokens, strict=True):
        path = path + block.ls_1(_value_attention(block.attn, block.ln_1(before)))  # the MLP has no part in this path
    patches = visual.ln_post(path[:, 1:]) @ visual.proj
    return F.normalize(torch.cat([run["image_features"][:, None], patches], dim=1).float(), dim=-1)


def _value_attention(attention: nn.MultiheadAttention, tokens: Tensor) -> Tensor:
    """Self-attention (B, L, C) with the values also as queries and as keys (CLIP Surgery, architecture surgery)."""
    width = attention.embed_dim
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    values = F.linear(tokens, weight[2 * width :], None if bias is None else bias[2 * width :])
    heads = values.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
    attended = F.scaled_dot_product_attention(heads, heads, heads)
    return attention.out_proj(attended.transpose(1, 2).flatten(2))
