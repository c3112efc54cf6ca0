"""Boxes for a folder of images, from a text: what `sam_gym.semantics.proposals` proposes, as a file of boxes.

The file is what `read_cue_boxes` reads, so that it can be looked at and corrected by hand before anything is segmented.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sam_gym._utils.fetching import atomic_path
from sam_gym._utils.progress import progress_bar
from sam_gym.annotate.cue_boxes import COLUMNS
from sam_gym.semantics.proposals import Proposal, Proposer

NAME = "proposals.csv"
NOTHING = "nothing-found"
"""Folder of maps, below that of the masks."""

HEADER = (*COLUMNS, "x", "y", "confidence", "asked")
"""Box, then a point deep inside, in pixels of the image; the confidence; what was asked for."""


def propose_boxes(
    proposer: Proposer, pictures: Mapping[str, Callable[[], NDArray[np.uint8]]], out: Path, what: str, *,
    overwrite: bool = False,
) -> Iterator[tuple[str, str]]:  # fmt: skip
    """Write `proposals.csv` into a folder, unless it is there.

    Args:
        proposer: Proposes.
        pictures: The images by their paths below their folder, and what reads each.
        out: Where to write; made if it is not there.
        what: What was asked for, in words.
        overwrite: Write it anew.

    Yields:
        The path of an image below its folder, and why it has no box. Where nothing in it looked like the text, the
        map that says how much each place does is saved as a picture in the folder `NOTHING`.

    Raises:
        ValueError: No image has any; or the file is there and is of something else.
    """
    file = out / NAME
    if file.is_file() and not overwrite:
        with open(file, newline="", encoding="utf-8") as opened:
            asked = {row.get("asked") for row in csv.DictReader(opened)}
        if asked != {what}:
            others = ", ".join(map(str, asked))
            raise ValueError(f"{file} has proposals for {others}, not for {what}: take another --out, or --overwrite")
        return
    found: dict[str, list[Proposal]] = {}
    with progress_bar("propose", len(pictures), "image") as bar:
        for name, read in pictures.items():
            try:
                image = read()
                found[name] = proposer(image)
            except (ValueError, OSError) as error:
                found[name] = []
                yield name, " ".join(str(error).split())
            else:
                if not found[name]:
                    saved = _save_map(proposer, image, out / NOTHING / f"{name}.png")
                    yield name, f"no part of it looks like the text; how much each place does: {saved}"
            bar.update()
    if not any(found.values()):
        raise ValueError(
            f"no box was proposed for {what} in {len(pictures)} images: try another --way, or draw --boxes"
        )
    out.mkdir(parents=True, exist_ok=True)
    with atomic_path(file) as temporary, open(temporary, "w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        writer.writerow(HEADER)
        for name, proposals in found.items():
            for one in proposals:
                numbers = [f"{value:.1f}" for value in (*one.box, *one.point)]
                writer.writerow([name, *numbers, f"{one.confidence:.3f}", what])


def _save_map(proposer: Proposer, image: NDArray[np.uint8], file: Path) -> Path:
    """An image and its map side by side, bright where the text applies the most; the file."""
    heat = np.rint(255 * proposer.heat(image)).astype(np.uint8)
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(file) as path:
        Image.fromarray(np.concatenate([image, np.repeat(heat[..., None], 3, axis=2)], axis=1)).save(path, "PNG")
    return file
