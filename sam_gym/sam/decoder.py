"""SAM's prompt encoder and mask decoder for N different images with ragged prompts in one call.

The stock decoder repeats one image embedding for all prompts, and its only way to batch prompts of different
lengths is to pad with "not a point" tokens, which change the masks. Here every mask has its own image, and padding
tokens are masked out of attention. The weights are those of `segment_anything`'s own modules; only the order of the
arithmetic differs:

* There are ten or so tokens against 4096 image cells, so no cell is ever projected to keys, queries or values: each
  projection is moved to the tokens' side. With cells x, token query q and per-head weights W_k, W_v,
  `q·(W_k x + b_k) = (W_kᵀ q)·x + const`, and the constant leaves a softmax over cells;
  `Σ a (W_v x + b_v) = W_v Σ a x + b_v`.
  In the other direction `(W_q x + b_q)·k = x·(W_qᵀ k) + b_q·k`, and the output projection is applied to the values.
* The transposed convolutions have stride = kernel size, so they are matrix products on channels-last cells.

This does fewer operations than the stock order and equals it up to rounding. Notation follows Kirillov et al. 2023,
"Segment Anything", appendix A. Nothing here knows of images' files, caches or RL.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam
from segment_anything.modeling.transformer import Attention
from torch import Tensor

from sam_gym.sam.added_token import added_token
from sam_gym.sam.prompts import ABSENT

PARTS = 4
"""Into how many parts the image cells are cut on a CPU.

Every part is computed by one thread, and sums over parts are added in their order. So a mask is the same to the last
bit whether one core decodes it or all of them do, on any CPU: no BLAS is ever asked to share a product among threads.
"""

Each = Callable[..., Iterable[Any]]
"""`map`, or the same by several threads."""


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
    code = _place_code(encoder, coordinates)
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


def _place_code(encoder: PromptEncoder, places: Tensor) -> Tensor:
    """SAM's positional code (N, P, C) of places (N, P, 2), x, y in pixels of the model's input frame.

    The stock layer multiplies matrices, and a BLAS may round a product of two terms otherwise for another number of
    rows. These are sums of two products, element by element, so a place has one code whatever stands beside it.
    """
    height, width = encoder.input_image_size
    x, y = places[..., :1] / width * 2 - 1, places[..., 1:] / height * 2 - 1
    directions: Tensor = encoder.pe_layer.positional_encoding_gaussian_matrix  # (2, C / 2)
    angles = 2 * torch.pi * (x * directions[0] + y * directions[1])
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class BatchedDecoder:
    """Decodes one mask (or three) for each of N image embeddings.

    Args:
        sam: A `segment_anything` model; its prompt encoder and mask decoder are used as they are, not copied.
        dtype: What the mask decoder computes in. float32 equals the stock decoder up to rounding; in bfloat16 a copy of
            its weights is used, prompts are still embedded in float32, and so are the results.
    """

    def __init__(self, sam: Sam, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype
        self.encoder: PromptEncoder = sam.prompt_encoder
        self._parts = PARTS if sam.device.type == "cpu" else 1
        self.decoder: MaskDecoder = sam.mask_decoder
        if dtype != torch.float32:
            self.decoder = copy.deepcopy(sam.mask_decoder).to(dtype)
        with torch.no_grad():
            position = self.encoder.get_dense_pe().flatten(2).transpose(1, 2).contiguous().to(dtype)
        self._positions = position.chunk(self._parts, dim=1)
        first, _, _, second, _ = self.decoder.output_upscaling
        # Rearranged once where the weights are frozen; while they are trained, at every decode
        self._upscalings = None if first.weight.requires_grad else (_as_linear(first), _as_linear(second))

    def __call__(
        self,
        features: Tensor,
        points: Tensor,
        labels: Tensor,
        boxes: Tensor,
        mask_logits: Tensor | None,
        has_mask: Tensor,
        *,
        multimask: bool = False,
        each: Each = map,
    ) -> tuple[Tensor, Tensor]:
        """Decode N masks; the arguments are on the model's device, coordinates in the model's input frame.

        Args:
            features: (N, C, h, w) image embeddings, float32 or float16; quickest in `torch.channels_last`.
            points: (N, P, 2) float32.
            labels: (N, P) int8, -1 where there is no point.
            boxes: (N, 4) float32, NaN rows where there is no box.
            mask_logits: (N, 4h, 4w) float32 mask prompts, or None.
            has_mask: (N,) bool, whose mask prompt counts.
            multimask: Return SAM's three masks for ambiguous prompts instead of the single one.
            each: What works on the parts of the image cells; results are the same whatever it is.

        Returns:
            Logits (N, K, 4h, 4w) float32 and predicted IoU (N, K) float32, K = 3 if `multimask` else 1.
        """
        sparse, exists = embed_sparse(self.encoder, points, labels, boxes)
        if not (needed := exists.any(dim=0)).all():  # a token that nobody has costs time and is left out
            sparse, exists = sparse[:, needed], exists[:, needed]
        decoder = self.decoder
        output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        tokens = torch.cat([output_tokens.expand(len(sparse), -1, -1), sparse.to(self.dtype)], dim=1)
        absent = None
        if not exists.all():
            absent = F.pad(~exists, (len(output_tokens), 0), value=False)
        told, dense = _to_cells(features), self._dense(mask_logits, has_mask)
        denses = [dense] * self._parts if dense.shape[-2] == 1 else dense.chunk(self._parts, dim=1)
        # summed in float32: rounding the sum alone keeps fast masks nearer to the exact ones
        summed = each(lambda a, b: (a.float() + b).to(self.dtype), told.chunk(self._parts, dim=1), denses)
        queries, cells = self._transform(tokens, list(summed), absent, each)
        wanted = range(1, decoder.num_mask_tokens) if multimask else range(1)
        hyper = torch.stack([decoder.output_hypernetworks_mlps[k](queries[:, 1 + k]) for k in wanted], dim=1)
        quality = decoder.iou_prediction_head(queries[:, 0])[:, wanted.start : wanted.stop]
        return self._upscale(cells, hyper, features.shape[-2:], each).float(), quality.float()

    def _dense(self, mask_logits: Tensor | None, has_mask: Tensor) -> Tensor:
        """(N, hw, C) or (1, C): the mask prompt's embedding where there is one, else SAM's "no mask" vector."""
        none = self.encoder.no_mask_embed.weight
        if mask_logits is None or not has_mask.any():
            return none
        *downscale, project = self.encoder.mask_downscaling
        hidden = mask_logits[:, None]
        for layer in downscale:
            hidden = layer(hidden)
        embedded = F.linear(_to_cells(hidden), project.weight.flatten(1), project.bias)
        return embedded if has_mask.all() else torch.where(has_mask[:, None, None], embedded, none)

    def _transform(
        self, tokens: Tensor, cells: list[Tensor], absent: Tensor | None, each: Each
    ) -> tuple[Tensor, list[Tensor]]:
        """`TwoWayTransformer.forward`: tokens (N, T, C) and parts of image cells (N, hw/p, C) tell each other."""
        transformer = self.decoder.transformer
        queries = tokens
        for layer in transformer.layers:
            if layer.skip_first_layer_pe:
                queries = layer.norm1(_among_tokens(layer.self_attn, queries, queries, absent))
            else:
                queries = layer.norm1(queries + _among_tokens(layer.self_attn, queries + tokens, queries, absent))
            placed = list(each(torch.add, cells, self._positions))
            attended = _tokens_to_cells(layer.cross_attn_token_to_image, queries + tokens, placed, cells, each)
            queries = layer.norm2(queries + attended)
            queries = layer.norm3(queries + layer.mlp(queries))
            tell = _cells_to_tokens(layer.cross_attn_image_to_token, queries + tokens, queries, absent)
            cells = list(each(lambda p, c, tell=tell, norm=layer.norm4: norm(tell(p, c)), placed, cells))
        final = transformer.final_attn_token_to_image
        placed = list(each(torch.add, cells, self._positions))
        attended = _tokens_to_cells(final, queries + tokens, placed, cells, each)
        return transformer.norm_final_attn(queries + attended), cells

    def _upscale(self, cells: list[Tensor], hyper: Tensor, size: torch.Size, each: Each) -> Tensor:
        """Image cells, in parts, -> mask logits (N, K, 4h, 4w) under hyper-network weights (N, K, C/8)."""
        n, k, (h, w) = len(hyper), hyper.shape[1], size
        first, norm, _, second, _ = self.decoder.output_upscaling
        widen, widen_again = self._upscalings or (_as_linear(first), _as_linear(second))

        def widened(part: Tensor) -> Tensor:
            up = F.linear(part, *widen).view(n, part.shape[1], 4, -1)
            up = F.gelu(F.layer_norm(up, up.shape[-1:], norm.weight, norm.bias, norm.eps))
            up = F.gelu(F.linear(up, *widen_again).view(n, part.shape[1] * 16, -1))
            return torch.bmm(up, hyper.transpose(1, 2))

        logits = torch.cat(list(each(widened, cells)), dim=1).view(n, h, w, 2, 2, 2, 2, k)
        # (row, column, dy1, dx1, dy2, dx2): each transposed convolution splits a cell into 2 x 2
        return logits.permute(0, 7, 1, 3, 5, 2, 4, 6).reshape(n, k, 4 * h, 4 * w)


def _among_tokens(attention: Attention, query_key: Tensor, value: Tensor, absent: Tensor | None) -> Tensor:
    """Self-attention of the tokens; `absent` (N, T) marks those that nobody may attend to."""
    heads = attention.num_heads
    query, key, value = (
        _split(projection(x), heads).transpose(1, 2)
        for projection, x in (
            (attention.q_proj, query_key),
            (attention.k_proj, query_key),
            (attention.v_proj, value),
        )
    )
    allowed = None if absent is None else ~absent[:, None, None, :]
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
    return attention.out_proj(attended.transpose(1, 2).flatten(2))


def _tokens_to_cells(
    attention: Attention, query: Tensor, placed: list[Tensor], cells: list[Tensor], each: Each
) -> Tensor:
    """Cross-attention, tokens (N, T, C) reading parts of cells; keys come from `placed`, values from `cells`."""
    heads = attention.num_heads
    query = _split(attention.q_proj(query), heads)  # N T H d
    key_weight, value_weight = (_split(p.weight.T, heads) for p in (attention.k_proj, attention.v_proj))  # C H d
    probe = torch.einsum("nthd,chd->nthc", query, key_weight) * query.shape[-1] ** -0.5
    probe = probe.flatten(1, 2)
    scores = torch.cat(list(each(lambda part: torch.bmm(probe, part.transpose(1, 2)), placed)), dim=2)
    weights = scores.softmax(dim=-1).chunk(len(cells), dim=2)  # N TH hw/p
    read = torch.stack(list(each(torch.bmm, weights, cells))).sum(dim=0).unflatten(1, (-1, heads))  # N T H C
    value = torch.einsum("nthc,chd->nthd", read, value_weight).flatten(2) + attention.v_proj.bias
    return attention.out_proj(value)


def _cells_to_tokens(
    attention: Attention, key: Tensor, value: Tensor, absent: Tensor | None
) -> Callable[[Tensor, Tensor], Tensor]:
    """Cross-attention, cells reading tokens: what makes cells plus what they read of a part, placed and as it is."""
    heads = attention.num_heads
    key, value = _split(attention.k_proj(key), heads), _split(attention.v_proj(value), heads)  # N T H d
    scale = key.shape[-1] ** -0.5
    probe = torch.einsum("nthd,chd->nthc", key, _split(attention.q_proj.weight.T, heads)) * scale
    probe = probe.flatten(1, 2)
    offset = (key * attention.q_proj.bias.view(heads, -1)).sum(-1) * scale  # N T H
    if absent is not None:
        offset = offset.masked_fill(absent[..., None], -torch.inf)
    told = torch.einsum("nthd,chd->nthc", value, _split(attention.out_proj.weight, heads)).flatten(1, 2)

    def tell(placed: Tensor, cells: Tensor) -> Tensor:
        scores = torch.baddbmm(offset.flatten(1)[..., None], probe, placed.transpose(1, 2))  # N TH hw/p
        weights = scores.unflatten(1, (-1, heads)).softmax(dim=1).flatten(1, 2)
        return torch.baddbmm(cells + attention.out_proj.bias, weights.transpose(1, 2), told)

    return tell


def _split(x: Tensor, heads: int) -> Tensor:
    """Last axis into (heads, channels per head)."""
    return x.unflatten(-1, (heads, -1))


def _to_cells(features: Tensor) -> Tensor:
    """(N, C, h, w) -> (N, hw, C), a view where `features` is channels-last."""
    return features.permute(0, 2, 3, 1).flatten(1, 2)


def _as_linear(convolution: torch.nn.ConvTranspose2d) -> tuple[Tensor, Tensor]:
    """A transposed 2 x 2 convolution of stride 2 as a linear layer (C_in -> 2 * 2 * C_out)."""
    assert convolution.bias is not None, "SAM's transposed convolutions have one"
    weight = convolution.weight.permute(2, 3, 1, 0)  # (dy, dx, C_out, C_in)
    return weight.reshape(-1, weight.shape[-1]), convolution.bias.repeat(4)
