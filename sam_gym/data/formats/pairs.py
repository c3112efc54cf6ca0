"""Images and masks as files of their own, paired by their names: pictures, stacks and volumes.

`LAYOUTS` says where they are looked for, `ENDINGS` by what names. What does not fit is refused with the file's name.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from sam_gym.data.formats import dicom
from sam_gym.data.formats.labels import Array, to_labels, to_mask
from sam_gym.data.formats.opening import VOLUME_SUFFIXES, is_volume, open_images, open_volume
from sam_gym.data.formats.pages import open_pages
from sam_gym.data.formats.source import Images, Labels, Source, check_fit
from sam_gym.data.formats.volumes import Window, aligned_labels
from sam_gym.data.images import SUFFIXES

IMAGES, MASKS = ("images", "imagesTr"), ("masks", "labels", "labelsTr")
"""Names of folders."""

ENDINGS = ("_cp_masks", "_masks", "_mask", "_labels", "_label", "_seg")
"""What may follow an image's name in that of its mask."""

BY_PRODUCTS = ("_flows", "_cp_output", "_outlines_cp_masks", "_flows_cp_masks", "_dP_cp_masks")
"""What follows an image's name in files that Cellpose writes and nobody needs here."""

LAYOUTS = """images/NAME.png with masks/NAME.png, masks/NAME_mask.png or a folder masks/NAME of one file an object;
NAME.png with NAME_mask.png beside it; or a folder NAME for each image, with images/ (one file) and masks/ in it.
masks/ may be labels/, and _mask _masks, _cp_masks, _label, _labels or _seg. A DICOM series is a folder in
the place of a file"""

FILES = (*SUFFIXES, *VOLUME_SUFFIXES)


@dataclass(frozen=True)
class Pair:
    """An image file and its mask files: one of them holds all objects, several hold one object each."""

    name: str
    image: Path
    masks: tuple[Path, ...]
    single_objects: bool


def pair_sources(root: Path, window: Window | None = None) -> list[Source]:
    """The pairs of a folder as sources; raises as `find_pairs`."""
    return [
        Source(
            pair.name, partial(open_images, pair.image, window), partial(_label, pair),
            divisible=not is_volume(pair.image),
        )
        for pair in find_pairs(root)
    ]  # fmt: skip


def find_pairs(root: Path) -> list[Pair]:
    """All images of a folder with their masks, sorted by name, numbers in it by value.

    Raises:
        ValueError: There is no image; an image without mask or a mask without image; two of one name.
    """
    if pictures := _below(root, IMAGES):
        images = {root.name: pictures} if is_volume(pictures) else _by_name(_entries(pictures))
        there = _below(root, MASKS)
        if is_volume(pictures):
            masks = {} if there is None else {root.name: there}
        else:
            masks = {} if there is None else _by_name([*_files(there), *_folders(there)], images)
    elif folders := [folder for folder in _folders(root) if _below(folder, IMAGES)]:
        images = {folder.name: _only(folder) for folder in folders}
        masks = {folder.name: there for folder in folders if (there := _below(folder, MASKS))}
    else:
        files = _entries(root)
        images = _by_name([path for path in files if not _is_mask(path)])
        masks = _by_name([path for path in files if _is_mask(path)], images)
    if not images:
        raise ValueError(f"{root} has no images ({', '.join(FILES)}). Known layouts: {LAYOUTS}")
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
    if mask.is_file() or is_volume(mask):
        return Pair(name, image, (mask,), single_objects=False)
    files = sorted(_files(mask), key=lambda path: path.name)
    if not files:
        raise ValueError(f"{mask} holds no mask ({', '.join(FILES)}) for {image}")
    return Pair(name, image, tuple(files), single_objects=len(files) > 1 or not is_volume(image))


def _files(folder: Path) -> list[Path]:
    """Its image files; by-products of those in it are passed over."""
    files = [p for p in folder.iterdir() if p.name.lower().endswith(FILES) and p.is_file() and p.name[0] != "."]
    stems = {_stem(path) for path in files}
    return [path for path in files if not any(_stem(path).removesuffix(end) in stems for end in BY_PRODUCTS
                                              if _stem(path).endswith(end))]  # fmt: skip


def _folders(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir()]


def _entries(folder: Path) -> list[Path]:
    return [*_files(folder), *(path for path in _folders(folder) if dicom.is_series(path))]


def _below(root: Path, names: Sequence[str]) -> Path | None:
    """The one folder in another that has one of these names, if there is any."""
    there = [root / name for name in names if (root / name).is_dir()]
    if len(there) > 1:
        raise ValueError(f"{root} holds {there[0].name} and {there[1].name}: keep one of them")
    return there[0] if there else None


def _stem(path: Path) -> str:
    return path.name if path.is_dir() else re.sub(r"(?i)\.nii\.gz$|\.[^.]*$", "", path.name)


def _is_mask(path: Path) -> bool:
    return _stem(path).endswith(ENDINGS)


def _by_name(paths: Sequence[Path], images: Collection[str] | None = None) -> dict[str, Path]:
    """Files and folders by name; given the names of `images`, the paths are masks and may end in one of `ENDINGS`."""
    named: dict[str, Path] = {}
    for path in sorted(paths, key=lambda path: (path.name.endswith("_seg.npy"), path)):
        name = _stem(path)
        if images is not None and name not in images:
            name = next((name.removesuffix(ending) for ending in ENDINGS if name.endswith(ending)), name)
        if name in named:
            if path.name.endswith("_seg.npy"):  # Cellpose's own file, beside the masks that were saved from it
                continue
            raise ValueError(f"{named[name]} and {path.name} are both called {name!r}: keep one of them")
        named[name] = path
    return named


def _only(folder: Path) -> Path:
    """The image in a folder of one image."""
    pictures = _below(folder, IMAGES)
    assert pictures is not None, "that is how such folders are found"
    if is_volume(pictures):
        return pictures
    files = _files(pictures)
    if len(files) != 1:
        raise ValueError(
            f"{pictures} holds {len(files)} image files ({', '.join(FILES)}); one is needed. If {folder.name} is a "
            "data set of its own, name it as the root"
        )
    return files[0]


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts "slice-9" before "slice-10"."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


# ------------------------------------------------------------------------------------------------------ reading files


def _label(pair: Pair, images: Images) -> Labels:
    """The labels of a pair; where files of one object each overlap, the later one wins."""
    labels = np.zeros((len(images.names), *images.size), np.int32)
    for object_id, path in enumerate(pair.masks, start=1):
        values = _values(path, images)
        check_fit(path, values.shape[:3], images)
        if pair.single_objects:
            labels[to_mask(values, path)] = object_id
        else:
            labels = to_labels(values, path)
    return labels


def _values(path: Path, images: Images) -> Array:
    if is_volume(path) != (images.volume is not None):
        raise ValueError(
            f"of {path} and its image {images.path} one is a volume (NIfTI, or a folder of DICOM files) and the other "
            "is not, so nobody knows how they lie on each other: save the mask as NIfTI on the grid of its image"
        )
    return aligned_labels(open_volume(path), images) if is_volume(path) else np.stack(open_pages(path, indices=True))
