"""Any folder of labelled images as a dataset: what it holds is found by names, splits are blocks of the sorted names.

Which files are known, and how they are read, `sam_gym.data.formats` says. Nothing is fetched, resized or guessed: what
does not fit is refused with the file's name. The dataset is called "folder:<the folder's name>", so that no result of
it can be taken for one of a published dataset.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from sam_gym._utils.progress import progress_bar
from sam_gym.data.formats.arrays import SUFFIX as NPZ
from sam_gym.data.formats.arrays import npz_sources
from sam_gym.data.formats.coco import coco_files, coco_sources
from sam_gym.data.formats.pairs import MASKS, pair_sources
from sam_gym.data.formats.source import Source
from sam_gym.data.segmentation import SegmentationData

NAME = "folder"
"""As `load_data` knows it; the data themselves are called `NAME:<the folder's name>`."""

SPLITS = ("train", "val", "test")
SHARES = (60, 20, 20)
"""Percentages of the images in each split."""

PATIENCE = 2.0
"""Seconds of reading without a progress bar."""

ALL = slice(None)
Block = tuple[Source, slice]
"""Some of a source's images that lie one behind the other."""

Window = tuple[float, ...]


def load_folder(
    root: str | Path,
    split: str,
    shares: Sequence[float],
    min_area: int,
    max_area: int,
    window: Sequence[float] | None = None,
) -> SegmentationData:
    """One split of a folder; equal arguments give the same object for as long as the process lives.

    Args:
        root: The folder.
        split: "train", "val" or "test".
        shares: Percentages of the images in the three splits: contiguous blocks of the sorted names (numbers in names
            by value), since neighbouring slices of a stack look alike. (0, 0, 100) makes all of them the test split.
            A stack or a volume counts as one image; a stack that is alone is cut into blocks of slices, a volume never
            is. Folders with splits of their own keep those.
        min_area: Objects of fewer px are left out.
        max_area: Objects of more px are left out.
        window: Of NIfTI and DICOM: centre and width of the values that become 0..255; None takes the file's own.

    Returns:
        The data; `name` and `source` are "folder:<the folder's name>", image ids the names without suffix, with the
        number of the slice from 0 on where there are several ("stack/07"). Images in which nothing is labelled are left
        out.

    Raises:
        ValueError: There is no such folder, or no image in it; an image without mask or a mask without image; a file
            that cannot be read, is no mask, or whose size is not its image's; shares that are no percentages, or leave
            the split without images; no object within the area limits; a package that is missing.
    """
    numbers = tuple(float(share) for share in shares)
    limits = None if window is None else tuple(float(value) for value in window)
    return _load(Path(root).expanduser().resolve(), split, numbers, min_area, max_area, limits)


@lru_cache(maxsize=64)
def _load(
    root: Path, split: str, shares: tuple[float, ...], min_area: int, max_area: int, window: Window | None
) -> SegmentationData:
    sources = find_sources(root, window)
    blocks = split_sources(sources, shares)
    chosen = blocks[split]
    if not chosen:
        if sources[0].split is not None:
            there = ", ".join(name for name, block in blocks.items() if block)
            raise ValueError(f"{root} has splits of its own, and none of them is {split!r}: there are {there}")
        n = sum(1 if part == ALL else part.stop - part.start for block in blocks.values() for _, part in block)
        counted = "" if all(source.divisible for source in sources) else " (a volume counts as one)"
        raise ValueError(
            f"{root} has {n} images{counted}, of which shares={shares} leave none for split {split!r}: "
            "add images, choose another split, or pass other percentages, such as shares=(0, 0, 100) for all in 'test'"
        )
    ids, images, labels = [], [], []
    with progress_bar("read", len(chosen), "file", patience=PATIENCE) as bar:
        for source, part in chosen:
            opened = source.open()
            labelled = source.label(opened)
            for i in range(len(opened.names))[part]:
                if labelled[i].any():
                    ids.append(opened.ids(source.name)[i])
                    images.append(opened.read(i))
                    labels.append(np.array(labelled[i]))
            bar.update()
    if not ids:
        raise ValueError(f"nothing is labelled in split {split!r} of {root}: choose another split, or other shares")
    name = f"{NAME}:{root.name}"
    return SegmentationData(name, split, name, ids, images, labels, min_area=min_area, max_area=max_area)


def find_sources(root: Path, window: Window | None = None) -> list[Source]:
    """What a folder holds, sorted by name.

    Raises:
        ValueError: As `load_folder`, as far as it can be told without reading images.
    """
    if not root.is_dir():
        raise ValueError(f"root={str(root)!r} {'is a file' if root.exists() else 'does not exist'}: name a folder")
    arrays, coco = sorted(root.glob(f"*{NPZ}")), coco_files(root)
    masks = [root / name for name in MASKS if (root / name).is_dir()]
    kinds = [str(files[0]) for files in (arrays, list(coco), masks) if files]
    if len(kinds) > 1:
        raise ValueError(f"{root} holds labels of two kinds, {kinds[0]} and {kinds[1]}: keep one of them")
    if len(arrays) > 1:
        raise ValueError(f"{root} holds {len(arrays)} {NPZ} files, for one {arrays[0]}: give each a folder of its own")
    if window is not None and (arrays or coco):
        raise ValueError(f"a window is for NIfTI and DICOM, and {root} holds {kinds[0]}: leave it out")
    if arrays:
        return npz_sources(arrays[0])
    return coco_sources(root, coco) if coco else pair_sources(root, window)


def split_sources(sources: Sequence[Source], shares: Sequence[float]) -> dict[str, list[Block]]:
    """Sources by their own splits; else contiguous blocks of them, by percentages that add up to 100.

    A source that is alone is cut into blocks itself, if it is divisible.

    Raises:
        ValueError: They do not; or others than usual are given where there are splits already.
    """
    if len(shares) != len(SPLITS) or min(shares) < 0 or abs(sum(shares) - 100) > 1e-6:
        raise ValueError(f"shares are percentages of {', '.join(SPLITS)} that add up to 100, got {shares}")
    if sources[0].split is not None:
        if tuple(shares) != SHARES:
            raise ValueError(f"the folder has splits of its own, which are kept: leave out shares={shares}")
        return {name: [(source, ALL) for source in sources if source.split == name] for name in SPLITS}
    alone = sources[0] if len(sources) == 1 and sources[0].divisible else None
    n = len(sources) if alone is None else len(alone.open().names)
    edges = [0, *(round(float(edge)) for edge in np.cumsum(shares) / 100 * n)]
    bounds = dict(zip(SPLITS, zip(edges[:-1], edges[1:], strict=True), strict=True))
    if alone is not None:
        return {name: [(alone, slice(a, b))] if b > a else [] for name, (a, b) in bounds.items()}
    return {name: [(source, ALL) for source in sources[a:b]] for name, (a, b) in bounds.items()}
