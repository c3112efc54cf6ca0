"""The added token of prompt tuning: one more prompt, learned, beside the box or the points of every decode.

A learned vector of 128 numbers goes through a fully connected layer and becomes a token as wide as SAM's other
prompts; it is concatenated to them. It lives in the prompt encoder of a model, so that stock code, which calls that
encoder, gets it as well. It is trained by `sam_gym.sam.tuning`; nothing here trains.
"""

from __future__ import annotations

import torch
from segment_anything.modeling import PromptEncoder
from torch import Tensor, nn

WIDTH = 128
"""Numbers in the learned vector."""

NAME = "added_token"
"""Attribute of the prompt encoder, and so the middle of its tensors' names in a state dict."""


class AddedToken(nn.Module):
    """A learned vector and the layer that makes a prompt token of it.

    Args:
        embed_dim: C, width of SAM's prompt tokens.
        width: Numbers in the vector.
    """

    def __init__(self, embed_dim: int, width: int = WIDTH) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.randn(width))
        self.project = nn.Linear(width, embed_dim)

    def forward(self) -> Tensor:
        """The token, (1, 1, C)."""
        return self.project(self.vector)[None, None]


def add_token(encoder: PromptEncoder, width: int = WIDTH) -> AddedToken:
    """Give a prompt encoder a new token, with random weights; its own `forward` appends it from then on.

    Args:
        encoder: SAM's prompt encoder; changed in place.
        width: Numbers in the learned vector.

    Raises:
        ValueError: It has one already.
    """
    if added_token(encoder) is not None:
        raise ValueError("this prompt encoder has an added token already")
    token = AddedToken(encoder.embed_dim, width).to(encoder.no_mask_embed.weight.device)
    encoder.add_module(NAME, token)
    encoder.register_forward_hook(_append)
    return token


def shapes_of_token(encoder: PromptEncoder, width: int, prefix: str) -> dict[str, tuple[int, ...]]:
    """Names, after a prefix, and shapes of the tensors of a token of this width for this encoder."""
    with torch.device("meta"):
        state = AddedToken(encoder.embed_dim, width).state_dict()
    return {f"{prefix}{name}": tuple(tensor.shape) for name, tensor in state.items()}


def added_token(encoder: PromptEncoder) -> AddedToken | None:
    """The token that `add_token` gave to a prompt encoder, or None."""
    return getattr(encoder, NAME, None)


def _append(encoder: PromptEncoder, _: object, outputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Forward hook of the stock prompt encoder."""
    sparse, dense = outputs
    token = added_token(encoder)
    assert token is not None, "the hook comes with the token"
    return torch.cat([sparse, token().expand(len(sparse), 1, -1)], dim=1), dense
