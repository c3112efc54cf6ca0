"""A folder of segmented images: label images, one table of all boxes, and what made them, so that work can go on there.

    <folder>/labels/<image>.png   integers: 0, or the label of a box; 8 bits where they fit, else 16
    <folder>/boxes.csv            a row a box, in the order of images
    <folder>/run.json             agent, SAM, settings, versions

It writes, reads and compares. Masks are made in `segmenting`, pictures in `contact_sheet`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sam_gym._utils.fetching import atomic_path, write_json
from sam_gym.annotate.cue_boxes import CueBox


@dataclass(frozen=True)
class BoxRow:
    """One row of the table, as text.

    Attributes:
        image: Path below the folder of images.
        label: Value of its pixels.
        id: As the file of boxes calls it.
        x0, y0, x1, y1: The box that was given.
        area: Pixels in its mask; "" where there is an error, as in the next two.
        predicted_iou: What the agent's judge, or SAM, thinks of the mask's IoU; nobody has measured it.
        prompts: Prompts given, the box not counted.
        error: Why there is no mask, or "".
    """

    image: str
    label: str
    id: str
    x0: str
    y0: str
    x1: str
    y1: str
    area: str = ""
    predicted_iou: str = ""
    prompts: str = ""
    error: str = ""

    @classmethod
    def of(cls, image: str, cue: CueBox, **results: str) -> BoxRow:
        """The row of a box; `results` are area and what follows."""
        return cls(image, str(cue.label), cue.id, *(f"{value:.10g}" for value in cue.box), **results)

    @property
    def question(self) -> tuple[str, ...]:
        """Image, label, id and box: what was asked for."""
        return (self.image, self.label, self.id, self.x0, self.y0, self.x1, self.y1)


class SegmentFolder:
    """The folder, and the rows that it holds.

    Args:
        folder: It need not be there.

    Attributes:
        rows: Image -> its rows, as last written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.table = folder / "boxes.csv"
        self.rows: dict[str, list[BoxRow]] = {}

    def open(self, provenance: Mapping[str, Any], more: Mapping[str, Any], *, overwrite: bool) -> None:
        """Read what is there, or begin anew.

        Args:
            provenance: What the masks depend on; has to be that of what is there.
            more: What else run.json shall say.
            overwrite: Forget what is there.

        Raises:
            ValueError: The folder holds what another agent, SAM or setting made.
        """
        run = self.folder / "run.json"
        if overwrite:
            self.table.unlink(missing_ok=True)
        elif run.is_file():
            before = json.loads(run.read_text(encoding="utf-8"))["settings"]
            if before != (now := json.loads(json.dumps(provenance))):
                changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
                first = changed[0]
                raise ValueError(
                    f"{self.folder} holds masks made with {first} {before.get(first)!r}, not {now.get(first)!r}: name"
                    " another folder, or replace them with --overwrite"
                )
            self.rows = self._read()
        write_json(run, {**more, "settings": dict(provenance)})

    def label_path(self, image: str) -> Path:
        """Where the label image of an image lies; `cue_boxes` lets no path through that leaves the folder."""
        return self.folder / "labels" / PurePosixPath(image).with_suffix(".png")

    def done(self, image: str, cues: Sequence[CueBox]) -> bool:
        """Whether these very boxes of the image have been segmented without an error."""
        there = self.rows.get(image, [])
        asked = [BoxRow.of(image, cue).question for cue in cues]
        clean = not any(row.error for row in there)
        return clean and [row.question for row in there] == asked and self.label_path(image).is_file()

    def write(self, image: str, rows: Sequence[BoxRow], labels: NDArray[np.uint16] | None) -> None:
        """Store one image's label image and then its rows, so that a torn run never counts as done.

        Args:
            image: The image.
            rows: A row a box.
            labels: (H, W) uint16, or None where there is nothing: an old label image goes.
        """
        path = self.label_path(image)
        if labels is None:
            path.unlink(missing_ok=True)
        else:
            largest = max(int(row.label) for row in rows)
            with atomic_path(path) as temporary:
                Image.fromarray(labels if largest > 255 else labels.astype(np.uint8)).save(temporary, "PNG")
        self.rows[image] = list(rows)
        begin = not self.table.is_file()
        with open(self.table, "a", newline="", encoding="utf-8") as file:
            _write_rows(file, rows, header=begin)

    def close(self, images: Sequence[str]) -> None:
        """Write the table once more, in order of `images`; those of earlier runs follow."""
        order = [*images, *sorted(self.rows.keys() - set(images))]
        with atomic_path(self.table) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            _write_rows(file, (row for image in order for row in self.rows.get(image, [])), header=True)

    def _read(self) -> dict[str, list[BoxRow]]:
        """The rows of each image; one that was written twice counts as it was last written."""
        found: dict[str, dict[str, BoxRow]] = {}
        if self.table.is_file():
            with open(self.table, newline="", encoding="utf-8") as file:
                for cells in csv.DictReader(file):
                    if None not in cells and None not in cells.values():  # else torn off by a crash: not done
                        row = BoxRow(**cells)
                        found.setdefault(row.image, {})[row.label] = row
        return {image: list(rows.values()) for image, rows in found.items()}


def _write_rows(file: Any, rows: Iterable[BoxRow], *, header: bool) -> None:
    writer = csv.DictWriter(file, [field.name for field in fields(BoxRow)], lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
