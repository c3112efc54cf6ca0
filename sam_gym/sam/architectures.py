"""Architectures: how a `Sam` is built, and how the architecture of given weights is recognised.

All are segment_anything's own `Sam` with its own prompt encoder and mask decoder; they differ in the image encoder
and in size. A further architecture is one more entry of `ARCHITECTURES`. Weights and files are the business of
`sam_gym.sam.checkpoints`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import nn

from sam_gym.sam.tiny_vit import build_tiny_vit


def _sam(
    image_encoder: nn.Module,
    image_size: int = 1024,
    embed_dim: int = 256,
    mlp_dim: int = 2048,
    num_heads: int = 8,
) -> Sam:
    """A `Sam` around an image encoder; the defaults are those of every published SAM (segment_anything.build_sam)."""
    grid = image_size // 16
    return Sam(
        image_encoder=image_encoder,
        prompt_encoder=PromptEncoder(
            embed_dim=embed_dim,
            image_embedding_size=(grid, grid),
            input_image_size=(image_size, image_size),
            mask_in_chans=16,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=embed_dim, mlp_dim=mlp_dim, num_heads=num_heads),
            transformer_dim=embed_dim,
            iou_head_depth=3,
            iou_head_hidden_dim=embed_dim,
        ),
        pixel_mean=[123.675, 116.28, 103.53],
        pixel_std=[58.395, 57.12, 57.375],
    )


def _mobile_sam() -> Sam:
    return _sam(build_tiny_vit(1024))


def _tiny() -> Sam:
    """About 100 k parameters: every code path of a real SAM in milliseconds."""
    encoder = ImageEncoderViT(
        img_size=256,
        patch_size=16,
        embed_dim=32,
        depth=1,
        num_heads=2,
        mlp_ratio=4,
        out_chans=32,
        qkv_bias=True,
        norm_layer=functools.partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        global_attn_indexes=(0,),
    )
    return _sam(encoder, image_size=256, embed_dim=32, mlp_dim=64, num_heads=4)


ARCHITECTURES: dict[str, Callable[[], Sam]] = {"mobile_sam": _mobile_sam, "tiny": _tiny}
"""Name -> a function that builds the model, with random weights drawn from torch's CPU generator."""


def build(architecture: str, seed: int = 0) -> Sam:
    """Build a model with random weights.

    Args:
        architecture: Key of `ARCHITECTURES`.
        seed: Seed of the weights: the same one gives the same weights in every process.

    Returns:
        A `Sam` on the CPU, in training mode. torch's global generators are afterwards as they were before.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.random.default_generator.manual_seed(seed)  # torch.manual_seed would reseed every GPU as well
        return ARCHITECTURES[architecture]()


@functools.cache
def shapes(architecture: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in the state dict of an architecture."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in ARCHITECTURES[architecture]().state_dict().items()}


def recognise(state: Mapping[str, torch.Tensor]) -> str:
    """The architecture that weights belong to.

    Args:
        state: State dict of a whole `Sam`, in the names of this package's modules.

    Raises:
        ValueError: None fits. The message says what was found and how it differs from the closest architecture.
    """
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    for architecture in ARCHITECTURES:
        if shapes(architecture) == found:
            return architecture
    closest = max(ARCHITECTURES, key=lambda architecture: len(shapes(architecture).items() & found.items()))
    expected = shapes(closest)
    differences = {
        "missing": expected.keys() - found.keys(),
        "not expected": found.keys() - expected.keys(),
        "of another shape": {name for name in expected.keys() & found.keys() if expected[name] != found[name]},
    }
    told = "; ".join(f"{len(names)} {what} ({_some(names)})" for what, names in differences.items() if names)
    examples = ", ".join(f"{name} {list(shape)}" for name, shape in list(found.items())[:3]) or "none"
    raise ValueError(
        f"the tensors fit none of the known architectures ({', '.join(ARCHITECTURES)}). "
        f"Found {len(found)} tensors: {examples}, ... Compared with {closest}: {told}. "
        "What is needed is the state dict of a whole SAM: image_encoder, prompt_encoder and mask_decoder."
    )


def _some(names: set[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:3]) + (", ..." if len(ordered) > 3 else "")
