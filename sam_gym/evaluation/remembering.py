"""Each episode's first mask is the same for every prompter: it is decoded once for all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sam_gym.sam.interface import Backend, ImageEmbedding
from sam_gym.sam.masks import Masks, Statistics, join
from sam_gym.sam.prompts import PromptBatch

REMEMBERED_BYTES = 2**28
"""Memory for first masks; those of 1,000 objects fill it."""


@contextmanager
def first_masks_remembered(backend: Backend) -> Iterator[None]:
    """While it lasts, prompts without a mask before them are decoded once, however often they are asked for.

    Nothing else changes, not the last bit, and `masks_decoded` counts what was asked for. On a GPU a mask's last bits
    depend on its company in the call, so that there everything is decoded as ever.
    """
    if backend.device.type != "cpu":
        yield
        return
    plain, own = backend.decode, vars(backend).get("decode")
    known: dict[bytes, Masks] = {}
    free = REMEMBERED_BYTES

    def decode(embeddings: Sequence[ImageEmbedding], prompts: PromptBatch, **asked: Any) -> Masks:
        nonlocal free
        if prompts.has_mask.any():
            return plain(embeddings, prompts, **asked)
        keys = [_key(embedding, prompts, row, asked) for row, embedding in enumerate(embeddings)]
        rows = [row for row, key in enumerate(keys) if key not in known]
        fresh: dict[int, Masks] = {}
        if rows:
            some: Any = dict(asked)
            if asked.get("truths") is not None:
                some["truths"] = [asked["truths"][row] for row in rows]
            made = plain([embeddings[row] for row in rows], _rows(prompts, np.array(rows)), **some)
            fresh = {row: _one(made, place) for place, row in enumerate(rows)}
        backend.masks_decoded += len(keys) - len(rows)
        for row, masks in fresh.items():
            if masks.logits.nbytes <= free and keys[row] not in known:
                known[keys[row]] = masks
                free -= masks.logits.nbytes
        return join([fresh[row] if row in fresh else known[key] for row, key in enumerate(keys)])

    backend.decode = decode  # type: ignore[method-assign]
    try:
        yield
    finally:
        if own is None:
            del backend.decode
        else:
            backend.decode = own  # type: ignore[method-assign]


def _key(embedding: ImageEmbedding, prompts: PromptBatch, row: int, asked: dict[str, Any]) -> bytes:
    """Of all that one row's result depends on."""
    digest = hashlib.sha256(embedding.key.encode())
    for array in (prompts.points, prompts.labels, prompts.boxes):
        digest.update(np.ascontiguousarray(array[row]).tobytes())
    for name, value in sorted(asked.items()):
        own = value[row].numpy().tobytes() if name == "truths" and value is not None else repr(value).encode()
        digest.update(name.encode() + own)
    return digest.digest()


def _rows(prompts: PromptBatch, rows: NDArray[np.intp]) -> PromptBatch:
    return PromptBatch(
        points=prompts.points[rows], labels=prompts.labels[rows], boxes=prompts.boxes[rows], mask_logits=None,
        has_mask=prompts.has_mask[rows],
    )  # fmt: skip


def _one(masks: Masks, row: int) -> Masks:
    """One prompt's result, with a memory of its own."""
    here, measured = slice(row, row + 1), masks.statistics
    statistics = None
    if measured is not None:
        columns = (getattr(measured, field.name) for field in fields(Statistics))
        statistics = Statistics(*(None if column is None else column[here].clone() for column in columns))  # type: ignore[arg-type]
    full = None if masks.full is None else masks.full[here]
    score = None if masks.object_score is None else masks.object_score[here].clone()
    return Masks(masks.logits[here].clone(), masks.predicted_iou[here].clone(), statistics, full, score)
