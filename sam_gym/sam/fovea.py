"""A decoder with a fovea: the image cells of a window one by one, the rest of the image in blocks.

An episode looks at one place, its view, yet SAM's decoder works on all cells of the image at each step. Here the cells
of a square window W around the view stay as they are. The rest is cut into blocks B, and each block becomes one cell:
the mean of its cells outside the window, at their middle. Where tokens read cells, a block counts as often as it has
cells there. With scores s and values v, a token reads

    sum_W exp(s_i) v_i + sum_B n_b exp(s_b) v_b, divided by the same sum without v,

which is an ordinary softmax after log(n_b) is added to the scores of blocks. If all cells of a block were equal, this
would be SAM's own result. Nothing is trained, and the weights are SAM's. The logits exist in the window only; outside
it there is no mask. Where a view is so large that its window would be most of the image, the window is coarse: its
cells are means of 2 x 2.

How near the masks are to those of the whole decode is measured in docs/results/fovea.md. What stays the same within an
episode is computed once, in `Fovea.window`. Nothing here knows of episodes or RL.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor

from sam_gym.sam.cache import EmbeddingCache
from sam_gym.sam.decoder import BatchedDecoder, Told, arranged, mask_patches, visit
from sam_gym.sam.masks import Statistics, axis_matrix, measure
from sam_gym.sam.prompt_tokens import place_code

if TYPE_CHECKING:
    from sam_gym.sam.interface import ImageEmbedding

SIDES = (*range(6, 33), 40, 48, 56)
"""Sides of windows in cells; a view that none of them holds gets the whole image."""

LARGEST_FINE = 32
"""Windows of more cells a side are coarse."""

BLOCKS = 10
"""The rest of the image is cut into so many blocks a side."""

SUMS_BYTES = 2**26
"""Memory for sums over blocks; an image takes 100 KiB."""

EMPTY_LOGIT = -15.0
"""What the mask prompt says of cells outside the window."""

NEVER = -1e4
"""Logarithm of a count of no cells at all."""


@dataclass(eq=False)
class Window:
    """The part of an image that an episode looks at, and the rest in blocks; made by `SamBackend.window`.

    Attributes:
        embedding: Of the image.
        row: First row of the image's cells in the window.
        column: First column of them.
        side: Rows and columns of them.
        frame: Middle x, y and half the side of the window, where SAM's square input is [-1, 1].
        cells: (n * n + blocks, C) what the decoder works on: n x n cells of the window, n being `side` or, where it is
            coarse, half of it; then the blocks.
        positions: (n * n + blocks, C) their positional codes.
        log_counts: (n * n + blocks,) logarithm of how many of the image's cells each stands for, less that of the
            window's own.
        down: (h, 4n) matrix from rows of logits to rows of pixels of the original image.
        across: (w, 4n) the same for columns.
        corner: (y, x) of the window's first pixel in the original image.
    """

    embedding: ImageEmbedding
    row: int
    column: int
    side: int
    frame: tuple[float, float, float]
    cells: Tensor
    positions: Tensor
    log_counts: Tensor
    down: Tensor
    across: Tensor
    corner: tuple[int, int]
    _truth: tuple[Tensor, Tensor, Tensor] | None = field(default=None, repr=False)

    @property
    def mask_size(self) -> tuple[int, int]:
        """(4n, 4n) of the logits in the window."""
        return (self.down.shape[1], self.across.shape[1])

    def truth(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        """A truth (H, W) bool as far as it lies in the window, (h, w), and its whole area; cut once an episode."""
        if self._truth is None or self._truth[0] is not mask:
            (y, x), h, w = self.corner, len(self.down), len(self.across)
            self._truth = mask, mask[y : y + h, x : x + w].contiguous(), mask.sum()
        return self._truth[1:]

    def at_full_size(self, logits: Tensor) -> Tensor:
        """Logits (K, 4n, 4n) in the window -> (K, h, w), a logit for each pixel of the original image in it."""
        return self.down @ logits @ self.across.T

    def cut(self, logits: Tensor) -> Tensor:
        """Logits (4h, 4w) of the whole image -> those in the window, of `mask_size`."""
        part = logits[4 * self.row : 4 * (self.row + self.side), 4 * self.column : 4 * (self.column + self.side)]
        pool = 4 * self.side // self.mask_size[0]
        return part if pool == 1 else F.avg_pool2d(part[None], pool)[0]

    def place(self, masks: Tensor) -> Tensor:
        """Masks (K, h, w) of the window in the whole image, (K, H, W) bool."""
        (y, x), whole = self.corner, masks.new_zeros(len(masks), *self.embedding.image_size)
        whole[:, y : y + len(self.down), x : x + len(self.across)] = masks
        return whole


class Fovea:
    """Makes windows, and decodes them with the layers of a `BatchedDecoder`.

    Args:
        decoder: Of the model.
        frame: Side of the model's square input in pixels.
    """

    def __init__(self, decoder: BatchedDecoder, frame: int) -> None:
        self._decoder, self._frame = decoder, frame
        encoder = decoder.encoder
        self._grid = encoder.image_embedding_size[0]
        device = encoder.no_mask_embed.weight.device
        interval = torch.arange(self._grid, device=device) * BLOCKS // self._grid
        self._block = interval[:, None] * BLOCKS + interval  # (grid, grid)
        middles = (torch.arange(self._grid, device=device) + 0.5) * (frame / self._grid)
        self._places = torch.stack(torch.meshgrid(middles, middles, indexing="xy"), dim=-1)  # (grid, grid, 2) x, y
        whole = middles.new_zeros(BLOCKS**2, 1)
        self._counts = whole.index_add(0, self._block.flatten(), torch.ones(self._grid**2, 1, device=device))
        self._place_sums = whole.repeat(1, 2).index_add(0, self._block.flatten(), self._places.flatten(0, 1))
        self._known = EmbeddingCache(SUMS_BYTES)
        with torch.no_grad():
            self._codes = self._code(self._places.flatten(0, 1)).unflatten(0, (self._grid, self._grid))
            self._nothing = decoder.dense(torch.full((1, 4, 4), EMPTY_LOGIT, device=device))  # (1, C)

    def window(self, embedding: ImageEmbedding, view: ArrayLike) -> Window:
        """The smallest window that holds a view.

        Args:
            embedding: Of the image.
            view: left, top, side of a square in pixels of the original image; what leaves the image is not looked at.
        """
        left, top, extent = np.asarray(view, np.float64)
        spans = []  # of the view, in cells
        for axis, low in ((0, top), (1, left)):
            cell = self._frame / self._grid * embedding.image_size[axis] / embedding.input_size[axis]
            last = embedding.input_size[axis] * self._grid / self._frame
            spans.append(np.clip([low / cell, (low + extent) / cell], 0, last))
        need = max(np.ceil(high) - np.floor(low) for low, high in spans)
        side = next((side for side in SIDES if need <= side < self._grid), self._grid)
        row, column = (
            int(np.clip(round((low + high - side) / 2), max(0, np.ceil(high) - side), min(low // 1, self._grid - side)))
            for low, high in spans
        )
        pool = 1 if side <= LARGEST_FINE else 2
        (y, down), (x, across) = (
            axis_matrix(
                4 * self._grid, self._frame, embedding.input_size[axis], embedding.image_size[axis],
                4 * start, 4 * side, pool, embedding.features.device,
            )
            for axis, start in ((0, row), (1, column))
        )  # fmt: skip
        near = (slice(row, row + side), slice(column, column + side))
        frame = *((2 * start + side) / self._grid - 1 for start in (column, row)), side / self._grid
        cells, positions, log_counts = self._cells(embedding, near, pool)
        return Window(embedding, row, column, side, frame, cells, positions, log_counts, down, across, (y, x))

    def _cells(self, embedding: ImageEmbedding, near: tuple[slice, slice], pool: int) -> tuple[Tensor, Tensor, Tensor]:
        """Cells, positional codes and log counts of a window; see `Window`."""
        features = embedding.features.permute(1, 2, 0)
        inner, inner_places = features[near].float(), self._places[near]
        cells, places = _pooled(inner, pool), _pooled(inner_places, pool)
        # The code of a place, not the mean of codes: that would be shorter, and further from what SAM has learned
        positions = self._codes[near].flatten(0, 1) if pool == 1 else self._code(places)
        log_counts = cells.new_zeros(len(cells))
        if cells.shape[0] * pool**2 < self._grid**2:
            held = self._block[near].flatten()

            def without(sums: Tensor, inside: Tensor) -> Tensor:
                return sums.index_add(0, held, inside.flatten(0, 1), alpha=-1)

            counts = without(self._counts, torch.ones_like(inner_places[..., :1])).round()
            outer = without(self._sums(embedding), inner) / counts.clamp(min=1)
            outer_places = without(self._place_sums, inner_places) / counts.clamp(min=1)
            # an empty block stays, and is never read
            shares = torch.where(counts > 0, (counts.clamp(min=1) / pool**2).log(), NEVER)[:, 0]
            cells, log_counts = torch.cat([cells, outer]), torch.cat([log_counts, shares])
            positions = torch.cat([positions, self._code(outer_places)])
        return tuple(made.to(self._decoder.dtype) for made in (cells, positions, log_counts))  # type: ignore[return-value]

    def _sums(self, embedding: ImageEmbedding) -> Tensor:
        """(blocks, C) sums of an image's cells in each block; once an image, for as long as it is among the last."""
        if (sums := self._known.get(embedding.key)) is None:
            features = embedding.features.permute(1, 2, 0).flatten(0, 1).float()
            sums = features.new_zeros(BLOCKS**2, features.shape[1]).index_add_(0, self._block.flatten(), features)
            self._known.put(embedding.key, sums)
        return sums

    def _code(self, places: Tensor) -> Tensor:
        return place_code(self._decoder.encoder, places[None])[0]

    def __call__(
        self,
        windows: Sequence[Window],
        points: Tensor,
        labels: Tensor,
        boxes: Tensor,
        mask_logits: Sequence[Tensor | None],
        *,
        multimask: bool = False,
    ) -> tuple[list[Tensor], Tensor]:
        """Decode N masks in windows of any sides.

        Args:
            windows: N.
            points: (N, P, 2) float32, x, y in pixels of the model's input frame, as are boxes.
            labels: (N, P) int8, -1 where there is no point.
            boxes: (N, 4) float32, NaN rows where there is no box.
            mask_logits: Per row the mask prompt in the window, float32 of its `mask_size`, or None.
            multimask: Return SAM's three masks for ambiguous prompts instead of the single one.

        Returns:
            N times logits (K, 4n, 4n), and predicted IoU (N, K), float32, K = 3 if `multimask` else 1.
        """
        decoder = self._decoder
        tokens, absent = decoder.tokens(points, labels, boxes)
        present = [tokens.shape[1]] * len(windows) if absent is None else (~absent).sum(dim=1).tolist()
        given, heads = self._given(windows, mask_logits), decoder.decoder.transformer.num_heads
        positions, log_counts = ([getattr(window, name) for window in windows] for name in ("positions", "log_counts"))
        groups = []
        for rows in self._together(windows):
            held, places, shares = (_stacked([x[row] for row in rows]) for x in (given, positions, log_counts))
            groups.append(_Group(rows, held, places, shares, heads * max(present[row] for row in rows)))
        hyper, quality = decoder.read_out(decoder.transform(tokens, WindowCells(groups), absent, multimask), multimask)
        logits: dict[int, Tensor] = {}
        for group in groups:
            n = windows[group.rows[0]].mask_size[0] // 4
            made = arranged(decoder.upscale(group.cells[:, : n * n], hyper[group.index]), (n, n))
            logits.update(zip(group.rows, made, strict=True))
        return [logits[row] for row in range(len(windows))], quality

    def _together(self, windows: Sequence[Window]) -> list[list[int]]:
        """Rows visited together: on a CPU each alone, to stay in a core's own memory; else those of one side."""
        if self._codes.device.type == "cpu":
            return [[row] for row in range(len(windows))]
        sides = dict.fromkeys(window.side for window in windows)
        return [[row for row, window in enumerate(windows) if window.side == side] for side in sides]

    def _given(self, windows: Sequence[Window], mask_logits: Sequence[Tensor | None]) -> list[Tensor]:
        """Cells (L, C) as the transformer is given them; blocks are told that there is no mask in them."""
        decoder = self._decoder
        patches = [mask_patches(mask[None])[0] for mask in mask_logits if mask is not None]
        told = iter(decoder.dense(torch.cat(patches)).split([len(one) for one in patches]) if patches else ())
        given = []
        for window, mask in zip(windows, mask_logits, strict=True):
            dense = decoder.encoder.no_mask_embed.weight
            if mask is not None:
                near = next(told)
                dense = torch.cat([near, self._nothing.expand(len(window.cells) - len(near), -1)])
            given.append(decoder.add(window.cells, dense))
        return given


@dataclass(eq=False)
class _Group:
    """Windows that are visited together: m rows, cells and codes (m, L, C), log counts (m, L).

    `pairs` of a token and a head exist at most in each; nothing is computed for the others.
    """

    rows: list[int]
    cells: Tensor
    positions: Tensor
    log_counts: Tensor
    pairs: int

    @property
    def index(self) -> slice | list[int]:
        """What picks its rows of a tensor; a view where it is but one."""
        return slice(self.rows[0], self.rows[0] + 1) if len(self.rows) == 1 else self.rows


class WindowCells:
    """The cells of windows, group by group."""

    def __init__(self, groups: Sequence[_Group]) -> None:
        self._groups = groups

    def visit(self, told: Told | None, probe: Tensor) -> Tensor:
        """See `sam_gym.sam.decoder.Cells`; what absent tokens read is 0."""
        read = torch.zeros_like(probe)
        for group in self._groups:
            rows, pairs = group.index, min(group.pairs, probe.shape[1])
            heard = None if told is None else told.at(rows, group.pairs)
            asked = probe[rows, :pairs]
            group.cells, read[rows, :pairs] = visit(group.cells, group.positions, heard, asked, group.log_counts)
        return read


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors as rows of one; a single one is not copied."""
    return tensors[0][None] if len(tensors) == 1 else torch.stack(list(tensors))


def _pooled(grid: Tensor, pool: int) -> Tensor:
    """(h, w, C) -> means of pool x pool, (h/pool * w/pool, C)."""
    if pool == 1:
        return grid.flatten(0, 1)
    return grid.unflatten(0, (-1, pool)).unflatten(2, (-1, pool)).mean(dim=(1, 3)).flatten(0, 1)


def examine_windows(
    windows: Sequence[Window], logits: Sequence[Tensor], truths: Sequence[Tensor] | None, *, boxes: bool, keep: bool
) -> tuple[Statistics, list[Tensor]]:
    """Statistics, at full size, of N masks in windows; outside their windows they are empty.

    Args:
        windows: N.
        logits: N times (K, 4n, 4n) float32.
        truths: Per row a bool tensor (H, W) of its image's size, or None for no truth at all.
        boxes: Find the tight boxes as well.
        keep: Hand out the masks themselves too.

    Returns:
        The statistics, and N bool tensors (K, H, W) if `keep`, else an empty list.
    """
    made = [window.at_full_size(one) > 0 for window, one in zip(windows, logits, strict=True)]
    cut = None if truths is None else [window.truth(truth) for window, truth in zip(windows, truths, strict=True)]
    measured = measure(_padded(made), None if cut is None else _padded([part for part, _ in cut]), boxes=boxes)
    if cut is not None:
        measured = replace(measured, truth_area=torch.stack([area for _, area in cut]))
    if measured.box is not None:
        corner = torch.tensor([window.corner[::-1] * 2 for window in windows], device=measured.area.device)[:, None]
        measured = replace(measured, box=torch.where(measured.area[..., None] > 0, measured.box + corner, 0))
    return measured, [window.place(mask) for window, mask in zip(windows, made, strict=True)] if keep else []


def _padded(parts: list[Tensor]) -> Tensor:
    """Masks (..., h, w) of several sizes as one, with nothing below and on the right."""
    height, width = (max(part.shape[axis] for part in parts) for axis in (-2, -1))
    whole = parts[0].new_zeros(len(parts), *parts[0].shape[:-2], height, width)
    for one, part in zip(whole, parts, strict=True):
        one[..., : part.shape[-2], : part.shape[-1]] = part
    return whole
