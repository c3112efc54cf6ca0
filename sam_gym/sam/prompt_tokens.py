"""Points and boxes as the tokens of SAM's prompt encoder, for rows with different numbers of them.

What is done with tokens is `sam_gym.sam.decoder`'s business. Mask prompts are no tokens, and not here.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from segment_anything.modeling import PromptEncoder
from torch import Tensor

from sam_gym.sam.added_token import added_token
from sam_gym.sam.prompts import ABSENT


def embed_sparse(encoder: PromptEncoder, points: Tensor, labels: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens of points and boxes, at a fixed place each, with a mask that says which of them exist.

    As in `SamPredictor`, one "not a point" token is added where there are points but no box.

    Args:
        encoder: SAM's prompt encoder.
        points: (N, P, 2) float32, x, y in pixels of the model's input frame.
        labels: (N, P) integer: 1, 0, or -1 for no point.
        boxes: (N, 4) float32 in the input frame; NaN rows for no box.

    Returns:
        Tokens (N, P + 3, C) and (N, P + 3) bool, True where a token exists; one more where a token was added to the
        encoder (`sam_gym.sam.added_token`), which every row has.
    """
    n, p = labels.shape
    has_point = labels != ABSENT
    has_box = ~boxes.isnan().any(dim=1)
    corners = torch.nan_to_num(boxes).view(n, 2, 2)
    placed = points.masked_fill(~has_point[..., None], 0.0)  # whatever pads a row, NaN included, reaches nobody
    coordinates = torch.cat([placed, corners], dim=1) + 0.5  # SAM's shift to the pixel centre
    code = place_code(encoder, coordinates)
    kind = torch.stack([embedding.weight[0] for embedding in encoder.point_embeddings])
    point_tokens = code[:, :p] + kind[labels.clamp(min=0).long()]
    corner_tokens = code[:, p:] + kind[2:4]
    filler = encoder.not_a_point_embed.weight.expand(n, 1, -1)
    tokens = torch.cat([point_tokens, filler, corner_tokens], dim=1)
    needs_filler = has_point.any(dim=1) & ~has_box
    exists = torch.cat([has_point, needs_filler[:, None], has_box[:, None].expand(n, 2)], dim=1)
    if (added := added_token(encoder)) is not None:
        tokens = torch.cat([tokens, added().expand(n, 1, -1)], dim=1)
        exists = F.pad(exists, (0, 1), value=True)
    return tokens, exists


def place_code(encoder: PromptEncoder, places: Tensor) -> Tensor:
    """SAM's positional code (N, P, C) of places (N, P, 2), x, y in pixels of the model's input frame.

    The stock layer multiplies matrices, and a BLAS may round a product of two terms otherwise for another number of
    rows. These are sums of two products, element by element, so a place has one code whatever stands beside it.
    """
    height, width = encoder.input_image_size
    x, y = places[..., :1] / width * 2 - 1, places[..., 1:] / height * 2 - 1
    directions: Tensor = encoder.pe_layer.positional_encoding_gaussian_matrix  # (2, C / 2)
    angles = 2 * torch.pi * (x * directions[0] + y * directions[1])
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
