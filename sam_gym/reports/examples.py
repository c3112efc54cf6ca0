"""Examples for a writer of reports: generated blood smears, encoded by SAM, with their facts.

Each is small, since all that SAM knows of an image is pooled once. White and red cells are two types. Regions are known
twice: as they are, and as SAM outlines them after one click into each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from sam_gym._utils.fetching import atomic_path
from sam_gym._utils.progress import progress_bar
from sam_gym.data.smears import CYTOPLASM, NUCLEUS, SMEAR_SIZE, Smear, generate_smear
from sam_gym.reports.facts import KINDS, Fact, Region, describe
from sam_gym.reports.tokens import draw_marks, image_features, region_features, region_maps
from sam_gym.sam.interface import Backend, ImageEmbedding
from sam_gym.sam.prompts import PromptBatch

TYPES = ("white blood cell", "red blood cell")

MOST_REGIONS = 8
"""Regions of an example, those of the largest cells; smaller ones have to be seen in the image."""

MIN_AREA = 50
"""Smallest cell in px."""

PART = 10
"""Examples that are made, and stored, together."""

FIRST_SEED = {"train": 700_000, "val": 800_000, "test": 900_000}
"""Seeds of smears count on from here. Those of the datasets and of clip-micro are others."""

TRUE, MADE = 0, 1
"""Masks as they are, and as SAM makes them."""


@dataclass(frozen=True)
class Examples:
    """N examples as arrays; R is `MOST_REGIONS`, and regions that are not there are zeros.

    Attributes:
        image: (N, C, k, k) float16 image features.
        marked: (N, C, k, k) float16 those of the image with marks of SAM's masks.
        features: (N, 2, R, C) float16 features under the true masks, and under SAM's.
        maps: (N, 2, R, s, s) float16 these masks at a small size.
        masks: (N, 2, R, H * W / 8) uint8 and at full size, eight pixels a byte (`numpy.packbits`).
        types: (N, R) int64 index in `TYPES` of the cells, -1 for no region.
        facts: (N, F, 3) int64 what is true: index in `TYPES`, index in `KINDS`, value; -1 for no fact.
    """

    image: NDArray[np.float16]
    marked: NDArray[np.float16]
    features: NDArray[np.float16]
    maps: NDArray[np.float16]
    masks: NDArray[np.uint8]
    types: NDArray[np.int64]
    facts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.image)

    @classmethod
    def joined(cls, parts: Sequence[Examples]) -> Examples:
        """The examples of several, one after the other."""
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def facts_of(self, row: int) -> list[Fact]:
        """What is true of an example."""
        return [Fact(TYPES[type], KINDS[kind], value) for type, kind, value in self.facts[row].tolist() if type >= 0]

    def masks_of(self, row: int, whose: int) -> NDArray[np.bool_]:
        """(r, H, W) the masks of an example's regions, `TRUE` or `MADE`."""
        packed = self.masks[row, whose][self.types[row] >= 0]
        return np.unpackbits(packed, axis=1).astype(np.bool_).reshape(-1, SMEAR_SIZE, SMEAR_SIZE)


def cells_of(smear: Smear) -> list[Region]:
    """The cells of a smear of `MIN_AREA` px and more, each with its type."""
    regions = []
    for value in np.unique(smear.cells[smear.cells > 0]):
        mask = smear.cells == value
        if np.count_nonzero(mask) >= MIN_AREA:
            white = np.isin(smear.classes[mask], (CYTOPLASM, NUCLEUS)).mean() > 0.5
            regions.append(Region.of(TYPES[0 if white else 1], mask))
    return regions


def sam_masks(backend: Backend, embedding: ImageEmbedding, masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """SAM's masks of one click each, deepest in masks (R, H, W): the smallest of its three, as in SamReport."""
    if not len(masks):
        return masks
    depths = [ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1] for mask in masks]
    points = [np.array([np.unravel_index(int(depth.argmax()), depth.shape)[::-1]], np.float32) for depth in depths]
    prompts = PromptBatch.from_lists(points=points, labels=[[1]] * len(masks))
    made = backend.decode([embedding] * len(masks), prompts, multimask=True, full=True, statistics=True)
    assert made.full is not None
    assert made.statistics is not None
    smallest = made.statistics.area.argmin(dim=1).tolist()
    return np.stack([three[k].cpu().numpy() for three, k in zip(made.full, smallest, strict=True)])


def make_example(smear: Smear, backend: Backend) -> Examples:
    """One example."""
    cells = cells_of(smear)
    largest = sorted(cells, key=lambda cell: -cell.area)[:MOST_REGIONS]
    true = np.array([cell.mask for cell in largest], np.bool_).reshape(-1, *smear.cells.shape)
    embedding = backend.encode([smear.image])[0]
    made = sam_masks(backend, embedding, true)
    marked = backend.encode([draw_marks(smear.image, list(made))])[0]
    room = MOST_REGIONS - len(true)

    def both(look: Callable[[NDArray[np.bool_]], Tensor]) -> NDArray[np.float16]:
        arrays = [look(masks).cpu().numpy() for masks in (true, made)]
        return np.stack([np.concatenate([one, np.zeros((room, *one.shape[1:]))]) for one in arrays]).astype(np.float16)

    packed = [np.packbits(masks.reshape(len(masks), smear.cells.size), axis=1) for masks in (true, made)]
    empty = np.zeros((room, smear.cells.size // 8), np.uint8)
    facts = np.full((len(TYPES) * len(KINDS), 3), -1, np.int64)
    for place, statement in enumerate(describe(cells, TYPES)):
        type, kind, value = statement.fact
        facts[place] = TYPES.index(type), KINDS.index(kind), value
    one: tuple[Any, ...] = (
        image_features(embedding).cpu().numpy().astype(np.float16),
        image_features(marked).cpu().numpy().astype(np.float16),
        both(lambda masks: region_features(embedding, masks)),
        both(region_maps),
        np.stack([np.concatenate([masks, empty]) for masks in packed]),
        np.array([TYPES.index(cell.type) for cell in largest] + [-1] * room, np.int64),
        facts,
    )
    return Examples(*(array[None] for array in one))


def load_examples(split: str, count: int, backend: Backend, folder: Path) -> Examples:
    """Examples of a split, the first of which are the same for any count; made, and stored, where they are not yet.

    Args:
        split: Key of `FIRST_SEED`.
        count: How many.
        backend: SAM.
        folder: Where they are stored, `PART` in a file. It is for one SAM only.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    with progress_bar(f"{split} smears", count, "smear") as bar:
        for start in range(0, count, PART):
            file = folder / f"{split}-{start:06d}.npz"
            if not file.is_file():
                made = []
                for seed in range(start, start + PART):
                    made.append(make_example(generate_smear(FIRST_SEED[split] + seed), backend))
                    bar.update()
                with atomic_path(file) as path, open(path, "wb") as opened:
                    np.savez_compressed(opened, **vars(Examples.joined(made)))
            with np.load(file) as stored:
                parts.append(Examples(**stored))
            bar.update(min(count, start + PART) - bar.n)
    whole = Examples.joined(parts)
    return Examples(*(getattr(whole, field.name)[:count] for field in fields(Examples)))


# What the eight symmetries of the square do to an example: to its features' places, its masks, and one fact.


def turned_quadrant(value: int, which: int) -> int:
    """Where a quadrant lies after one of the eight symmetries (`sam_gym.sb3.teachers.turn` has the same numbers).

    Example:
        >>> [turned_quadrant(0, which) for which in range(8)]
        [0, 1, 2, 3, 0, 2, 1, 3]
    """
    row, column = divmod(value, 2)
    if which & 1:
        column = 1 - column
    if which & 2:
        row = 1 - row
    if which & 4:
        row, column = column, row
    return 2 * row + column
