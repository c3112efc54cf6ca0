"""Any folder of images and masks as a dataset: pairs found by name, splits that are blocks of the sorted names.

Three layouts are known, and masks of several kinds; `LAYOUTS` and `read_labels` say which. Nothing is fetched, resized
or guessed: what does not fit is refused with the file's name. The dataset is called "folder:<the folder's name>", so
that no result of it can be taken for one of a published dataset.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sam_gym.data.images import SUFFIXES, open_pixels, read_image
from sam_gym.data.segmentation import SegmentationData, number_regions
from sam_gym.data.spec import Sample

NAME = "folder"
"""As `load_data` knows it; the data themselves are called `NAME:<the folder's name>`."""

SPLITS = ("train", "val", "test")
SHARES = (60, 20, 20)
"""Percentages of the images in each split."""

LAYOUTS = """images/NAME.png with masks/NAME.png, masks/NAME_mask.png or a folder masks/NAME of one file an object;
NAME.png with NAME_mask.png beside it; or a folder NAME for each image, with images/ (one file) and masks/ in it"""

Labels = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Pair:
    """An image file and its mask files: one of them holds all objects, several hold one object each."""

    name: str
    image: Path
    masks: tuple[Path, ...]
    single_objects: bool


def load_folder(
    root: str | Path, split: str, shares: Sequence[float], min_area: int, max_area: int
) -> SegmentationData:
    """One split of a folder; equal arguments give the same object for as long as the process lives.

    Args:
        root: The folder.
        split: "train", "val" or "test".
        shares: Percentages of the images in the three splits: contiguous blocks of the sorted names (numbers in names
            by value), since neighbouring slices of a stack look alike. (0, 0, 100) makes all of them the test split.
        min_area: Objects of fewer px are left out.
        max_area: Objects of more px are left out.

    Returns:
        The data; `name` and `source` are "folder:<the folder's name>", image ids the names without suffix.

    Raises:
        ValueError: There is no such folder, or no image in it; an image without mask or a mask without image; a file
            that cannot be read, is no mask, or whose size is not its image's; shares that are no percentages, or leave
            the split without images; no object within the area limits.
    """
    return _load(Path(root).expanduser().resolve(), split, tuple(float(share) for share in shares), min_area, max_area)


@lru_cache(maxsize=64)
def _load(root: Path, split: str, shares: tuple[float, ...], min_area: int, max_area: int) -> SegmentationData:
    everything = find_pairs(root)
    pairs = split_pairs(everything, shares)[split]
    if not pairs:
        raise ValueError(
            f"{root} has {len(everything)} images, of which shares={shares} leave none for split {split!r}: "
            "add images, choose another split, or pass other percentages, such as shares=(0, 0, 100) for all in 'test'"
        )
    images, labels = zip(*(_sample(pair) for pair in pairs), strict=True)
    name, ids = f"{NAME}:{root.name}", [pair.name for pair in pairs]
    return SegmentationData(name, split, name, ids, images, labels, min_area=min_area, max_area=max_area)


# ------------------------------------------------------------------------------------------------------ finding files


def find_pairs(root: Path) -> list[Pair]:
    """All images of a folder with their masks, sorted by name.

    Raises:
        ValueError: As `load_folder`, as far as it can be told from names.
    """
    if not root.is_dir():
        raise ValueError(f"root={str(root)!r} {'is a file' if root.exists() else 'does not exist'}: name a folder")
    if (root / "images").is_dir():
        images = _by_name(_files(root / "images"))
        masks = _by_name([*_files(root / "masks"), *_folders(root / "masks")], images)
    elif folders := [folder for folder in _folders(root) if (folder / "images").is_dir()]:
        images = {folder.name: _only(_files(folder / "images"), folder / "images") for folder in folders}
        masks = {folder.name: folder / "masks" for folder in folders if (folder / "masks").is_dir()}
    else:
        files = _files(root)
        images = _by_name([path for path in files if not path.stem.endswith("_mask")])
        masks = _by_name([path for path in files if path.stem.endswith("_mask")], images)
    if not images:
        raise ValueError(f"{root} has no images ({', '.join(SUFFIXES)}). Known layouts: {LAYOUTS}")
    for what, missing in (
        ("mask", [images[name] for name in images if name not in masks]),
        ("image", [masks[name] for name in masks if name not in images]),
    ):
        if missing:
            raise ValueError(
                f"{missing[0]} has no {what}, one of {len(missing)} such files beside {len(images)} images: add it or "
                f"take the file away. Known layouts: {LAYOUTS}"
            )
    return [_pair(name, images[name], masks[name]) for name in sorted(images, key=_natural)]


def _pair(name: str, image: Path, mask: Path) -> Pair:
    if mask.is_file():
        return Pair(name, image, (mask,), single_objects=False)
    files = sorted(_files(mask), key=lambda path: path.name)
    if not files:
        raise ValueError(f"{mask} holds no mask ({', '.join(SUFFIXES)}) for {image}")
    return Pair(name, image, tuple(files), single_objects=True)


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")]


def _folders(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []


def _by_name(paths: Sequence[Path], images: Collection[str] | None = None) -> dict[str, Path]:
    """Files and folders by name; given the names of `images`, the paths are masks and may end in "_mask"."""
    named: dict[str, Path] = {}
    for path in sorted(paths):
        name = path.name if path.is_dir() else path.stem
        if images is not None and name not in images:
            name = name.removesuffix("_mask")
        if name in named:
            raise ValueError(f"{named[name]} and {path.name} are both called {name!r}: keep one of them")
        named[name] = path
    return named


def _only(files: list[Path], folder: Path) -> Path:
    if len(files) != 1:
        raise ValueError(f"{folder} holds {len(files)} image files ({', '.join(SUFFIXES)}); one is needed")
    return files[0]


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts "slice-9" before "slice-10"."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def split_pairs(pairs: Sequence[Pair], shares: Sequence[float]) -> dict[str, list[Pair]]:
    """Contiguous blocks of `pairs`, by percentages that add up to 100.

    Raises:
        ValueError: They do not.
    """
    if len(shares) != len(SPLITS) or min(shares) < 0 or abs(sum(shares) - 100) > 1e-6:
        raise ValueError(f"shares are percentages of {', '.join(SPLITS)} that add up to 100, got {shares}")
    edges = [0, *(round(float(edge)) for edge in np.cumsum(shares) / 100 * len(pairs))]
    return {name: list(pairs[a:b]) for name, a, b in zip(SPLITS, edges[:-1], edges[1:], strict=True)}


# ------------------------------------------------------------------------------------------------------ reading files


def _sample(pair: Pair) -> Sample:
    image = read_image(pair.image)
    labels: Labels = np.zeros(image.shape[:2], np.int32)
    for object_id, path in enumerate(pair.masks, start=1):
        mask: npt.NDArray = read_mask(path) if pair.single_objects else read_labels(path)
        if mask.shape != labels.shape:
            sizes = [" x ".join(map(str, shape[::-1])) for shape in (mask.shape, labels.shape)]
            raise ValueError(
                f"{path} is {sizes[0]} px (width x height) and its image {pair.image} {sizes[1]}: save the mask at the "
                "size of its image"
            )
        labels[mask > 0] = object_id if pair.single_objects else mask[mask > 0]  # later files win
    return image, labels


def read_labels(path: Path) -> Labels:
    """A mask file that holds all objects of an image, as int32 (H, W), 0 = none.

    With one value beside 0 it is a binary mask, whose connected regions are numbered; with several it holds an integer
    for each object (grey, 16-bit, or indices of a palette). A JPEG cannot hold integers: it is binary, cut at 127.

    Raises:
        ValueError: The file cannot be read, or is no such mask; the message says what to do.
    """
    values = _integers(path)
    if _is_jpeg(path) or _is_binary(values):
        return number_regions(values > (127 if _is_jpeg(path) else 0))
    between = values[(values > 0) & (values < 255)]
    if values.max() == 255 and len(between) < np.count_nonzero(values == 255) / 2 and len(np.unique(between)) > 3:
        raise ValueError(
            f"{path} looks like a binary mask with soft edges: {len(between)} pixels are neither 0 nor 255. Save "
            "it with two values; if it holds objects as integers, then with other numbers than 255"
        )
    return values.astype(np.int32)


def read_mask(path: Path) -> npt.NDArray[np.bool_]:
    """A mask file of one object, bool (H, W): above 127 where it has more than one value beside 0, else above 0.

    Raises:
        ValueError: The file cannot be read, or is no such mask.
    """
    values = _integers(path)
    if _is_binary(values):
        return values > 0
    if values.max() <= 127:
        raise ValueError(f"{path} holds several values, up to {values.max()}: a mask of one object has 0 and one other")
    return values > 127


def _is_binary(values: npt.NDArray) -> bool:
    """Whether there is at most one value beside 0."""
    return bool(((values == 0) | (values == values.max())).all())


def _is_jpeg(path: Path) -> bool:
    return path.suffix.lower() in (".jpg", ".jpeg")


def _integers(path: Path) -> npt.NDArray:
    values: npt.NDArray = open_pixels(path, indices=True)
    if values.ndim == 3:
        colours = values[:, :, :3]  # alpha says nothing
        if (colours != colours[:, :, :1]).any():
            raise ValueError(
                f"{path} is a colour image, a mask has one channel: save labels as grey or 16-bit integers"
            )
        values = colours[:, :, 0]
    if values.dtype.kind == "f" and np.isfinite(values).all() and (values == np.rint(values)).all():
        values = values.astype(np.int64)
    if values.dtype == np.bool_:
        values = values.astype(np.uint8)
    low, high = values.min(), values.max()
    if values.dtype.kind not in "ui" or low < 0 or high > np.iinfo(np.int32).max:
        raise ValueError(f"{path} holds {values.dtype} from {low} to {high}: a mask holds integers from 0 to 2**31 - 1")
    return values
