"""Architectures: how a `Sam` is built, and how the architecture of given weights is recognised.

All are segment_anything's own `Sam` with its own prompt encoder and mask decoder; they differ in the image encoder
and in size. A further architecture is one more entry of `ARCHITECTURES`. Weights and files are the business of
`sam_gym.sam.checkpoints` and `sam_gym.sam.weights_files`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import nn
from torch.overrides import TorchFunctionMode

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


def _vit(
    embed_dim: int,
    depth: int,
    num_heads: int,
    global_attn_indexes: tuple[int, ...],
    image_size: int = 1024,
    window_size: int = 14,
    out_chans: int = 256,
) -> ImageEncoderViT:
    """SAM's own image encoder; the defaults are those of every published SAM (segment_anything.build_sam)."""
    return ImageEncoderViT(
        img_size=image_size,
        patch_size=16,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        mlp_ratio=4,
        out_chans=out_chans,
        qkv_bias=True,
        norm_layer=functools.partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=window_size,
        global_attn_indexes=global_attn_indexes,
    )


def _vit_b() -> Sam:
    return _sam(_vit(embed_dim=768, depth=12, num_heads=12, global_attn_indexes=(2, 5, 8, 11)))


def _vit_l() -> Sam:
    return _sam(_vit(embed_dim=1024, depth=24, num_heads=16, global_attn_indexes=(5, 11, 17, 23)))


def _vit_h() -> Sam:
    return _sam(_vit(embed_dim=1280, depth=32, num_heads=16, global_attn_indexes=(7, 15, 23, 31)))


def _tiny() -> Sam:
    """About 100 k parameters: every code path of a real SAM in milliseconds."""
    encoder = _vit(
        embed_dim=32, depth=1, num_heads=2, global_attn_indexes=(0,), image_size=256, window_size=0, out_chans=32
    )
    return _sam(encoder, image_size=256, embed_dim=32, mlp_dim=64, num_heads=4)


ARCHITECTURES: dict[str, Callable[[], Sam]] = {
    "mobile_sam": _mobile_sam,
    "vit_b": _vit_b,
    "vit_l": _vit_l,
    "vit_h": _vit_h,
    "tiny": _tiny,
}
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


class _WithoutInitialisation(TorchFunctionMode):
    """Makes the functions of torch.nn.init leave their tensor as it is."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def build_empty(architecture: str) -> Sam:
    """Build a model to load weights into: what it holds before means nothing, but came quickly.

    Drawing the random weights of a ViT-H that are thrown away at once takes seconds.

    Args:
        architecture: Key of `ARCHITECTURES`.

    Returns:
        A `Sam` on the CPU, in training mode, with parameters of arbitrary content and buffers as they must be.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), _WithoutInitialisation():
        return ARCHITECTURES[architecture]()


@functools.cache
def shapes(architecture: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in the state dict of an architecture."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return shapes_of(ARCHITECTURES[architecture]().state_dict())


def recognise(state: Mapping[str, torch.Tensor]) -> str:
    """The architecture that weights belong to.

    Args:
        state: State dict of a whole `Sam`, in the names of this package's modules.

    Raises:
        ValueError: None fits. The message says what was found and how it differs from the closest architecture.
    """
    found = shapes_of(state)
    for architecture in ARCHITECTURES:
        if shapes(architecture) == found:
            return architecture
    closest = max(ARCHITECTURES, key=lambda architecture: len(shapes(architecture).items() & found.items()))
    examples = ", ".join(f"{name} {list(shape)}" for name, shape in list(found.items())[:3]) or "none"
    raise ValueError(
        f"the tensors fit none of the known architectures ({', '.join(ARCHITECTURES)}). "
        f"Found {len(found)} tensors: {examples}, ... Compared with {closest}: {differences(shapes(closest), found)}. "
        "What is needed is the state dict of a whole SAM: image_encoder, prompt_encoder and mask_decoder."
    )


def shapes_of(state: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a state dict."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def differences(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> str:
    """How the names and shapes of tensors differ from what they should be, for an error message.

    Example:
        >>> differences({"a": (1,), "b": (2,)}, {"b": (3,), "c": (4,)})
        '1 missing (a); 1 not expected (c); 1 of another shape (b)'
    """
    kinds = {
        "missing": expected.keys() - found.keys(),
        "not expected": found.keys() - expected.keys(),
        "of another shape": {name for name in expected.keys() & found.keys() if expected[name] != found[name]},
    }
    return "; ".join(f"{len(names)} {kind} ({_some(names)})" for kind, names in kinds.items() if names)


def _some(names: set[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:3]) + (", ..." if len(ordered) > 3 else "")
