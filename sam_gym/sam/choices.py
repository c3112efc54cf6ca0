"""Choices between SAM's masks of several boxes, as a CSV file: what somebody chose, and between what. No torch here.

A row is a comparison: `image,object,box,candidates,choice`. The image is an id, the object its label there. `box` is
the prompt that was there before, `candidates` are the boxes whose masks were shown, `choice` is the number of the best
one, counted from 0, or empty where none is better. A box is `x0 y0 x1 y1` in pixels of the image; candidates are
separated by semicolons. Boxes, and not masks, because SAM makes the same masks of them again.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

COLUMNS = ("image", "object", "box", "candidates", "choice")


@dataclass(frozen=True)
class Comparison:
    """One row.

    Attributes:
        image: Id of the image in its split.
        object_id: The object's label there.
        box: x0, y0, x1, y1 in pixels of the image.
        candidates: K boxes, the same.
        choice: Which of them is the best; None: none is better than the others.
    """

    image: str
    object_id: int
    box: tuple[float, ...]
    candidates: tuple[tuple[float, ...], ...]
    choice: int | None = None

    @classmethod
    def of(cls, image: str, object_id: int, box: NDArray, candidates: NDArray, choice: int | None = None) -> Comparison:
        """From arrays: `box` (4,), `candidates` (K, 4)."""
        return cls(image, object_id, tuple(box.tolist()), tuple(tuple(one) for one in candidates.tolist()), choice)

    @property
    def key(self) -> str:
        """What is compared, whatever was chosen."""
        return f"{self.image}/{self.object_id}/{_text(self.box)}/{'; '.join(map(_text, self.candidates))}"


def append_choice(file: Path, comparison: Comparison) -> None:
    """Write one row at the end of a file, with the columns' names before the first one."""
    new = not file.is_file() or not file.stat().st_size
    with open(file, "a", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        if new:
            writer.writerow(COLUMNS)
        candidates = "; ".join(map(_text, comparison.candidates))
        choice = "" if comparison.choice is None else comparison.choice
        writer.writerow((comparison.image, comparison.object_id, _text(comparison.box), candidates, choice))


def read_choices(file: Path) -> list[Comparison]:
    """All rows of a file, each comparison once.

    Raises:
        ValueError: A row makes no sense, or contradicts another one; names the file and the line.
    """
    found: dict[str, Comparison] = {}
    with open(file, newline="", encoding="utf-8") as opened:
        reader = csv.DictReader(opened)
        if reader.fieldnames is None or not set(COLUMNS) <= set(reader.fieldnames):
            raise ValueError(f"{file} needs the columns {','.join(COLUMNS)}; it has {reader.fieldnames}")
        for row in reader:
            one = _read(row, f"{file}, line {reader.line_num}")
            known = found.setdefault(one.key, one)
            if known.choice != one.choice:
                raise ValueError(
                    f"{file}, line {reader.line_num}: object {one.object_id} of image {one.image} was judged otherwise "
                    "before, between the same candidates: leave out one of the two rows"
                )
    return list(found.values())


def _read(row: dict[str, str], where: str) -> Comparison:
    try:
        box, *candidates = (tuple(map(float, one.split())) for one in (row["box"], *row["candidates"].split(";")))
        choice = int(row["choice"]) if row["choice"].strip() else None
        one = Comparison(row["image"], int(row["object"]), box, tuple(candidates), choice)
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(
            f"{where}: object and choice are whole numbers, boxes are 'x0 y0 x1 y1', candidates have semicolons between"
        ) from error
    if any(len(box) != 4 for box in (one.box, *one.candidates)) or len(one.candidates) < 2:
        raise ValueError(f"{where}: a box has 4 numbers, and there are at least 2 candidates")
    if choice is not None and not 0 <= choice < len(one.candidates):
        raise ValueError(f"{where}: choice {choice} is none of the candidates 0 to {len(one.candidates) - 1}")
    return one


def _text(box: Sequence[float]) -> str:
    """A box so that reading it gives the same float32 numbers."""
    return " ".join(f"{value:.9g}" for value in np.asarray(box, np.float32))
