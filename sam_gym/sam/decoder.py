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
* The transposed convolutions, and the convolutions of the mask prompt, have stride = kernel size, so they are matrix
  products on channels-last cells.
* Cells are visited part by part (`visit`): what tokens told them in the last layer, and what tokens read of them in the
  next, is computed while a part is in a core's own memory. A softmax over all parts is put together from theirs.

This does fewer operations than the stock order and equals it up to rounding. Notation follows Kirillov et al. 2023,
"Segment Anything", appendix A. Nothing here knows of images' files, caches or RL.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam
from segment_anything.modeling.transformer import Attention
from torch import Tensor

from sam_gym.sam.prompt_tokens import embed_sparse

PARTS = 16
"""Into how many parts the image cells are cut on a CPU: 256 cells of 256 numbers are a quarter of a megabyte.

Every part is computed by one thread, and sums over parts are added in their order. So a mask is the same to the last
bit whether one core decodes it or all of them do, on any CPU: no BLAS is ever asked to share a product among threads.
"""

Each = Callable[..., Iterable[Any]]
"""`map`, or the same by several threads."""


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
        tokens, absent = self.tokens(points, labels, boxes)
        cells = PartedCells(self._given(features, mask_logits, has_mask), self._positions, each)
        read = self.transform(tokens, cells, absent, multimask)
        hyper, quality = self.read_out(read, multimask)
        logits = torch.cat(list(each(lambda part: self.upscale(part, hyper), cells.parts)), dim=1)
        return arranged(logits, features.shape[-2:]), quality

    def _given(self, features: Tensor, mask_logits: Tensor | None, has_mask: Tensor) -> list[Tensor]:
        """Parts of cells (N, hw/p, C) as the transformer is given them: their embedding and that of the mask prompt."""
        told: Tensor = to_cells(features)
        none = dense = self.encoder.no_mask_embed.weight
        if mask_logits is not None and has_mask.any():
            dense = self.dense(mask_patches(mask_logits).flatten(0, 1)).unflatten(0, told.shape[:2])
            dense = dense if has_mask.all() else torch.where(has_mask[:, None, None], dense, none)
        denses = [dense] * self._parts if dense is none else dense.chunk(self._parts, dim=1)
        return [self.add(*pair) for pair in zip(told.chunk(self._parts, dim=1), denses, strict=True)]

    # ------------------------------------------------ pieces, which `sam_gym.sam.fovea` puts together otherwise

    def tokens(self, points: Tensor, labels: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor | None]:
        """Tokens (N, T, C), SAM's own and those of the prompts, and (N, T) bool: which of them nobody may attend to.

        Those come last in their rows.
        """
        sparse, exists = embed_sparse(self.encoder, points, labels, boxes)
        if not (needed := exists.any(dim=0)).all():  # a token that nobody has costs time and is left out
            sparse, exists = sparse[:, needed], exists[:, needed]
        if not exists.all():
            exists, order = exists.int().sort(dim=1, descending=True, stable=True)
            exists, sparse = exists.bool(), sparse.take_along_dim(order[..., None], dim=1)
        own = torch.cat([self.decoder.iou_token.weight, self.decoder.mask_tokens.weight])
        tokens = torch.cat([own.expand(len(sparse), -1, -1), sparse.to(self.dtype)], dim=1)
        return tokens, None if exists.all() else F.pad(~exists, (len(own), 0), value=False)

    def add(self, told: Tensor, dense: Tensor) -> Tensor:
        """What image cells are given to the transformer as: their embedding and that of the mask prompt.

        Summed in float32: rounding the sum alone keeps fast masks nearer to the exact ones.
        """
        return (told.float() + dense).to(self.dtype)

    def dense(self, patches: Tensor) -> Tensor:
        """(M, C) embeddings of mask prompts at M cells, of their logits there, (M, 4, 4) as `mask_patches` has them."""
        first, norm, _, second, norm_again, _, project = self.encoder.mask_downscaling
        hidden = F.linear(patches, first.weight.flatten(1), first.bias)  # (M, 4, C/64): the four quarters of a cell
        hidden = F.gelu(F.layer_norm(hidden, hidden.shape[-1:], norm.weight, norm.bias, norm.eps)).flatten(1)
        hidden = F.linear(hidden, second.weight.permute(0, 2, 3, 1).flatten(1), second.bias)
        hidden = F.layer_norm(hidden, hidden.shape[-1:], norm_again.weight, norm_again.bias, norm_again.eps)
        return F.linear(F.gelu(hidden), project.weight.flatten(1), project.bias)

    def transform(self, tokens: Tensor, cells: Cells, absent: Tensor | None, multimask: bool) -> Tensor:
        """`TwoWayTransformer.forward`: tokens and image cells tell each other.

        Args:
            tokens: (N, T, C).
            cells: Those of N images; changed.
            absent: (N, T) bool, True for tokens that nobody may attend to.
            multimask: Whether the three masks are wanted or the single one.

        Returns:
            The tokens that are read out in the end, (N, 1 + K, C): that of the IoU, then those of the wanted masks.
        """
        transformer = self.decoder.transformer
        queries, told = tokens, None
        for layer in transformer.layers:
            if layer.skip_first_layer_pe:
                queries = layer.norm1(_among_tokens(layer.self_attn, queries, queries, absent))
            else:
                queries = layer.norm1(queries + _among_tokens(layer.self_attn, queries + tokens, queries, absent))
            attention = layer.cross_attn_token_to_image
            read = cells.visit(told, _question(attention, queries + tokens))
            queries = layer.norm2(queries + _answer(attention, read))
            queries = layer.norm3(queries + layer.mlp(queries))
            told = Told.of(layer.cross_attn_image_to_token, queries + tokens, queries, absent, layer.norm4)
        final = transformer.final_attn_token_to_image
        wanted = [0, *(1 + k for k in self._wanted(multimask))]  # nobody asks what the others would read now
        queries, tokens = queries[:, wanted], tokens[:, wanted]
        read = cells.visit(told, _question(final, queries + tokens))
        return transformer.norm_final_attn(queries + _answer(final, read))

    def _wanted(self, multimask: bool) -> range:
        """Which of SAM's masks are wanted."""
        return range(1, self.decoder.num_mask_tokens) if multimask else range(1)

    def read_out(self, read: Tensor, multimask: bool) -> tuple[Tensor, Tensor]:
        """Hyper-network weights (N, K, C/8), and predicted IoU (N, K) float32, of what `transform` returned."""
        wanted = self._wanted(multimask)
        networks = (self.decoder.output_hypernetworks_mlps[k] for k in wanted)
        hyper = torch.stack([network(read[:, 1 + i]) for i, network in enumerate(networks)], dim=1)
        return hyper, self.decoder.iou_prediction_head(read[:, 0])[:, wanted.start : wanted.stop].float()

    def upscale(self, cells: Tensor, hyper: Tensor) -> Tensor:
        """Image cells (N, L, C) -> their logits (N, 16 L, K) under hyper-network weights (N, K, C/8)."""
        first, norm, _, second, _ = self.decoder.output_upscaling
        widen, widen_again = self._upscalings or (_as_linear(first), _as_linear(second))
        n, count = cells.shape[:2]
        up = F.linear(cells, *widen).view(n, count, 4, -1)
        up = F.gelu(F.layer_norm(up, up.shape[-1:], norm.weight, norm.bias, norm.eps))
        up = F.gelu(F.linear(up, *widen_again).view(n, count * 16, -1))
        return torch.bmm(up, hyper.transpose(1, 2))


def arranged(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Logits (N, 16hw, K) of cells of (h, w) `size`, as `BatchedDecoder.upscale` has them -> (N, K, 4h, 4w) float32."""
    h, w = size
    n, _, k = logits.shape
    # (row, column, dy1, dx1, dy2, dx2): each transposed convolution splits a cell into 2 x 2
    parts = logits.view(n, h, w, 2, 2, 2, 2, k).permute(0, 7, 1, 3, 5, 2, 4, 6)
    return parts.reshape(n, k, 4 * h, 4 * w).float()


def mask_patches(logits: Tensor) -> Tensor:
    """Mask prompts (N, 4h, 4w) -> (N, hw, 4, 4): per cell its four quarters, and in each its four logits."""
    h, w = (side // 4 for side in logits.shape[1:])
    return logits.view(-1, h, 2, 2, w, 2, 2).permute(0, 1, 4, 2, 5, 3, 6).reshape(-1, h * w, 4, 4)


@dataclass(frozen=True)
class Told:
    """What tokens tell image cells in one layer, for `score`: all that does not depend on the cells.

    Attributes:
        probe: (N, TH, C), whose product with a placed cell, and `offset`, is the score of a token in one of H heads.
        offset: (N, TH), -inf for tokens that are absent.
        told: (N, TH, C) what a cell is told by it.
        heads: H.
        norm: What follows.
    """

    probe: Tensor
    offset: Tensor
    told: Tensor
    heads: int
    norm: torch.nn.Module

    @classmethod
    def of(cls, attention: Attention, key: Tensor, value: Tensor, absent: Tensor | None, norm: torch.nn.Module) -> Told:
        """By the attention of cells to tokens; keys and values (N, T, C) are the tokens'."""
        heads = attention.num_heads
        key, value = _split(attention.k_proj(key), heads), _split(attention.v_proj(value), heads)  # N T H d
        scale = key.shape[-1] ** -0.5
        probe = torch.einsum("nthd,chd->nthc", key, _split(attention.q_proj.weight.T, heads)) * scale
        offset = (key * attention.q_proj.bias.view(heads, -1)).sum(-1) * scale  # N T H
        if absent is not None:
            offset = offset.masked_fill(absent[..., None], -torch.inf)
        told = torch.einsum("nthd,chd->nthc", value, _split(attention.out_proj.weight, heads))
        told = told + attention.out_proj.bias / heads  # a cell's weights over tokens sum to 1 in each head
        return cls(probe.flatten(1, 2), offset.flatten(1, 2), told.flatten(1, 2), heads, norm)

    def at(self, rows: slice | list[int], count: int) -> Told:
        """Of some images, by the first so many pairs of a token and a head; views where rows are a slice."""
        return Told(self.probe[rows, :count], self.offset[rows, :count], self.told[rows, :count], self.heads, self.norm)

    def heard(self, cells: Tensor, placed: Tensor) -> Tensor:
        """Cells (N, L, C) after it."""
        scores = torch.baddbmm(self.offset[..., None], self.probe, placed.transpose(1, 2))  # N TH L
        weights = scores.unflatten(1, (-1, self.heads)).softmax(dim=1).flatten(1, 2)
        return self.norm(torch.baddbmm(cells, weights.transpose(1, 2), self.told))


class Read(NamedTuple):
    """What tokens read of a part of the cells: peaks and masses (N, TH, 1) of exponentials, their sums (N, TH, C)."""

    peak: Tensor
    mass: Tensor
    sums: Tensor


def score(
    cells: Tensor, position: Tensor, told: Told | None, probe: Tensor, log_counts: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Cells (N, L, C) hear what they are told, and then are scored.

    Args:
        cells: Of a part of the image, or of all of it.
        position: Their positional codes, (1 or N, L, C).
        told: By the tokens in the layer before, None in the first one.
        probe: (N, TH, C), whose products with placed cells are the scores of tokens that read.
        log_counts: (N, L) logarithm of how many cells each stands for; None where that is one. A cell that stands for n
            is read as n equal ones would be.

    Returns:
        The cells, and scores (N, TH, L).
    """
    if told is not None:
        cells = told.heard(cells, cells + position)
    placed = (cells + position).transpose(1, 2)
    return cells, torch.bmm(probe, placed) if log_counts is None else torch.baddbmm(log_counts[:, None], probe, placed)


def visit(
    cells: Tensor, position: Tensor, told: Told | None, probe: Tensor, log_counts: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """All cells hear and are scored as `score` has it, then they are read: the cells, and (N, TH, C)."""
    cells, scores = score(cells, position, told, probe, log_counts)
    return cells, torch.bmm(scores.softmax(dim=-1), cells)


def visit_part(cells: Tensor, position: Tensor, told: Told | None, probe: Tensor) -> tuple[Tensor, Read]:
    """`visit` for one part of the cells; `put_together` makes of all parts what `visit` gives, up to rounding."""
    cells, scores = score(cells, position, told, probe)
    peak = scores.detach().amax(dim=-1, keepdim=True)
    weights = (scores - peak).exp()
    return cells, Read(peak, weights.sum(dim=-1, keepdim=True), torch.bmm(weights, cells))


def put_together(parts: Sequence[Read]) -> Tensor:
    """(N, TH, C): what is read of all parts, as one softmax over their cells gives it up to rounding."""
    peaks, masses, sums = (torch.stack(one) for one in zip(*parts, strict=True))
    shares = (peaks - peaks.amax(dim=0)).exp()
    return (shares * sums).sum(dim=0) / (shares * masses).sum(dim=0)


class Cells(Protocol):
    """The image cells of N masks while they are decoded."""

    def visit(self, told: Told | None, probe: Tensor) -> Tensor:
        """All cells hear what they are told, and then are read: (N, TH, C)."""


class PartedCells:
    """Cells of whole images, in parts (N, hw/p, C); `each` visits the parts."""

    def __init__(self, parts: list[Tensor], positions: Sequence[Tensor], each: Each) -> None:
        self.parts, self._positions, self._each = parts, positions, each

    def visit(self, told: Told | None, probe: Tensor) -> Tensor:
        """See `Cells.visit`."""
        if len(self.parts) == 1:
            self.parts[0], whole = visit(self.parts[0], self._positions[0], told, probe)
            return whole
        each = self._each(lambda one, position: visit_part(one, position, told, probe), self.parts, self._positions)
        visited = list(each)
        self.parts = [cells for cells, _ in visited]
        return put_together([read for _, read in visited])


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


def _question(attention: Attention, query: Tensor) -> Tensor:
    """Tokens (N, T, C) that read cells -> (N, TH, C), whose product with a placed cell is the score of a head."""
    heads = attention.num_heads
    query, key_weight = _split(attention.q_proj(query), heads), _split(attention.k_proj.weight.T, heads)
    return torch.einsum("nthd,chd->nthc", query, key_weight).flatten(1, 2) * query.shape[-1] ** -0.5


def _answer(attention: Attention, read: Tensor) -> Tensor:
    """What heads read, (N, TH, C) -> what tokens are told, (N, T, C)."""
    heads = attention.num_heads
    value_weight = _split(attention.v_proj.weight.T, heads)  # C H d
    value = torch.einsum("nthc,chd->nthd", read.unflatten(1, (-1, heads)), value_weight)
    return attention.out_proj(value.flatten(2) + attention.v_proj.bias)


def _split(x: Tensor, heads: int) -> Tensor:
    """Last axis into (heads, channels per head)."""
    return x.unflatten(-1, (heads, -1))


def to_cells(features: Tensor) -> Tensor:
    """(N, C, h, w) -> (N, hw, C), a view where `features` is channels-last."""
    return features.permute(0, 2, 3, 1).flatten(1, 2)


def _as_linear(convolution: torch.nn.ConvTranspose2d) -> tuple[Tensor, Tensor]:
    """A transposed 2 x 2 convolution of stride 2 as a linear layer (C_in -> 2 * 2 * C_out)."""
    assert convolution.bias is not None, "SAM's transposed convolutions have one"
    weight = convolution.weight.permute(2, 3, 1, 0)  # (dy, dx, C_out, C_in)
    return weight.reshape(-1, weight.shape[-1]), convolution.bias.repeat(4)
