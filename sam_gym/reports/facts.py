"""Atomic facts about an image with instances: from masks to facts, each with the pixels that it speaks of.

Facts are about one type of object each: how many there are, how many of them are small, round, at the edge and so on,
and where the largest lies. No words here (`sam_gym.reports.language` has them), and no model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from sam_gym._utils.boxes import tight_box

NUMBERED = ("count", "small", "medium", "large", "round", "elongated", "touching", "edge")
"""Kinds of facts that say how many; `largest` says where."""

LARGEST = "largest"
KINDS = (*NUMBERED, LARGEST)

QUADRANTS = ("upper left", "upper right", "lower left", "lower right")
"""Where the centre of mass of an object may lie in the image."""

MOST = 12
"""Larger numbers are all one: `MOST` + 1, which is said as "more than twelve"."""

SMALL, LARGE = 0.01, 0.05
"""Shares of the image below which an object is small, and from which on it is large."""

ELONGATED = 1.5
"""Length over width, of the ellipse with the same second moments, from which on an object is elongated."""

NEAR = 2
"""Objects touch if no more than so many px lie between them, and are at the edge if no more lie between it and them.

SAM's masks are made at a quarter of its input's resolution, and are seldom right to the pixel at their outlines.
"""


class Fact(NamedTuple):
    """One atomic fact.

    Attributes:
        type: Of the objects that it is about, in the singular: "mitochondrion".
        kind: One of `KINDS`.
        value: How many objects, 0 to `MOST` + 1; of `largest` the number of a quadrant.
    """

    type: str
    kind: str
    value: int

    def __str__(self) -> str:
        if self.kind == LARGEST:
            return f"{self.type}: {LARGEST} {QUADRANTS[self.value]}"
        return f"{self.type}: {self.kind} {self.value if self.value <= MOST else f'> {MOST}'}"


@dataclass(frozen=True, eq=False)
class Region:
    """A mask with what the facts need to know of it.

    Attributes:
        type: What it shows, in the singular.
        mask: (H, W) bool, not empty.
        box: (4,) float32 tight box x0, y0, x1, y1 in px.
        area: In px.
        quadrant: Index in `QUADRANTS`.
        size: "small", "medium" or "large".
        shape: "round" or "elongated".
        at_edge: Whether it reaches the edge of the image.
    """

    type: str
    mask: NDArray[np.bool_]
    box: NDArray[np.float32]
    area: int
    quadrant: int
    size: str
    shape: str
    at_edge: bool

    @classmethod
    def of(cls, type: str, mask: NDArray[np.bool_]) -> Region:
        """The region of a mask (H, W).

        Raises:
            ValueError: The mask is empty.
        """
        box = tight_box(mask)
        if box is None:
            raise ValueError("an empty mask is no region")
        rows, columns = np.nonzero(mask)
        height, width = mask.shape
        quadrant = 2 * int(rows.mean() + 0.5 >= height / 2) + int(columns.mean() + 0.5 >= width / 2)
        share = len(rows) / mask.size
        size = "small" if share < SMALL else "medium" if share < LARGE else "large"
        # A pixel is a square and no point: it has a second moment of its own, 1/12
        spread = np.cov(np.stack([rows, columns]), bias=True) + np.eye(2) / 12
        short, long = np.linalg.eigvalsh(spread)
        shape = "elongated" if long >= ELONGATED**2 * short else "round"
        at_edge = bool((box[:2] <= NEAR).any() or box[2] >= width - NEAR or box[3] >= height - NEAR)
        return cls(type, mask, box, len(rows), quadrant, size, shape, at_edge)

    def touches(self, other: Region) -> bool:
        """Whether no more than `NEAR` px lie between the two, along either axis."""
        reach = NEAR + 1
        low = np.maximum(self.box[:2], other.box[:2]) - reach
        high = np.minimum(self.box[2:], other.box[2:]) + reach
        if (low > high).any():
            return False
        (x0, y0), (x1, y1) = np.maximum(low, 0).astype(int), high.astype(int)
        mine, others = self.mask[y0:y1, x0:x1], other.mask[y0:y1, x0:x1]
        grown = ndimage.maximum_filter(mine, 2 * reach + 1, mode="constant")
        return bool((grown & others).any())


@dataclass(frozen=True, eq=False)
class Statement:
    """A fact and what it speaks of.

    Attributes:
        fact: The fact.
        evidence: (H, W) bool, all objects that it counts; None where it says that there is none.
    """

    fact: Fact
    evidence: NDArray[np.bool_] | None


def regions_of(labels: NDArray[np.integer], type: str) -> list[Region]:
    """The regions of labels (H, W), 0 = none, in the order of their ids."""
    return [Region.of(type, labels == value) for value in np.unique(labels[labels > 0])]


def describe(regions: Sequence[Region], types: Iterable[str]) -> list[Statement]:
    """All facts about an image, type by type.

    Where a type has no object, that is the only fact about it. Else there is its number; how many of its objects are
    small, medium, large, round, elongated, as far as there are any; how many touch another object, of whichever type,
    and how many are at the edge, also if none does; and in which quadrant the largest lies, the first of equals.

    Args:
        regions: Of any order; they may overlap.
        types: That are looked for, in the singular.

    Raises:
        ValueError: A region is of a type that nobody looks for.
    """
    types = list(types)
    for region in regions:
        if region.type not in types:
            raise ValueError(f"a region is of type {region.type!r}, and the types are {', '.join(types)}")
    touching = [any(one.touches(other) for other in regions if other is not one) for one in regions]
    statements = []
    for type in types:
        own = [(region, near) for region, near in zip(regions, touching, strict=True) if region.type == type]
        counted = {
            "count": [region for region, _ in own],
            **{size: [one for one, _ in own if one.size == size] for size in ("small", "medium", "large")},
            **{shape: [one for one, _ in own if one.shape == shape] for shape in ("round", "elongated")},
            "touching": [one for one, near in own if near],
            "edge": [one for one, _ in own if one.at_edge],
        }
        always = ("count", "touching", "edge") if own else ("count",)
        for kind in NUMBERED:
            if counted[kind] or kind in always:
                fact = Fact(type, kind, min(len(counted[kind]), MOST + 1))
                statements.append(Statement(fact, _together(counted[kind])))
        if own:
            largest = max((region for region, _ in own), key=lambda region: region.area)
            statements.append(Statement(Fact(type, LARGEST, largest.quadrant), largest.mask))
    return statements


def _together(regions: Sequence[Region]) -> NDArray[np.bool_] | None:
    return np.logical_or.reduce([region.mask for region in regions]) if regions else None
