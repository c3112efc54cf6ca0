"""COCO's instances: a JSON file with polygons or run lengths, and the images that it names. pycocotools fills polygons.

Crowds, which are no objects, are left out and counted. Keypoints, captions and panoptic files are not read.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sam_gym.data.formats.opening import open_images
from sam_gym.data.formats.source import Images, Labels, MissingExtraError, Source, check_fit

PLACES = ("*.json", "annotations/*.json", "*/*.coco.json")
"""Where the files of a folder are looked for."""

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""Words in the name of a file, or of its folder, and the split that they mean."""

Annotation = Mapping[str, Any]


def coco_files(root: Path) -> dict[Path, dict[str, Any]]:
    """The COCO files of a folder and what is in them; other JSON files are passed over."""
    found = {}
    for path in sorted({path for place in PLACES for path in root.glob(place)}):
        try:
            content = json.loads(path.read_text(encoding="utf-8-sig"))
        except (ValueError, OSError) as error:
            raise ValueError(f"{path} is no JSON: {error}. Mend it, or take it out of the folder") from error
        if isinstance(content, dict) and {"images", "annotations"} <= content.keys():
            found[path] = content
    return found


def coco_sources(root: Path, files: Mapping[Path, Mapping[str, Any]]) -> list[Source]:
    """The annotated images of COCO files, in the order of their paths. Several files have to be named after splits.

    Raises:
        ValueError: A file says nothing of its split where there are several; an image or an annotation lacks something,
            an id is unknown or there twice, or an image file is not there.
    """
    places: dict[str, list[Path]] = {}
    for path in root.rglob("*"):
        places.setdefault(path.name, []).append(path)
    sources = []
    for file, content in files.items():
        split = None if len(files) == 1 else _split(root, file, len(files))
        found, crowds = _annotations(file, content)
        if crowds:
            warnings.warn(f"{file}: {crowds} crowd annotations are left out, since they are no objects", stacklevel=2)
        for info, objects in sorted(found, key=lambda pair: str(pair[0]["file_name"])):
            image = _find(root, file, str(info["file_name"]), places)
            name = str(Path(str(info["file_name"])).with_suffix("").as_posix())
            label = partial(_label, file, info, objects)
            sources.append(Source(name, partial(open_images, image), label, split))
    return sources


def _annotations(file: Path, content: Mapping[str, Any]) -> tuple[list[tuple[Annotation, dict[int, Annotation]]], int]:
    """Images with their annotations, numbered from 1 on in the order of the file; the number of crowds."""
    images: dict[Any, Annotation] = {}
    found: dict[Any, dict[int, Annotation]] = {}
    for number, image in enumerate(content["images"], start=1):
        if not isinstance(image, dict) or not {"id", "file_name"} <= image.keys():
            raise ValueError(f"{file}: image {number} lacks id or file_name")
        if image["id"] in images:
            raise ValueError(f"{file}: two images have the id {image['id']}")
        images[image["id"]], found[image["id"]] = image, {}
    counts = dict.fromkeys(images, 0)
    crowds = 0
    for number, annotation in enumerate(content["annotations"], start=1):
        where = f"{file}, annotation {number} (id {annotation.get('id', 'none')})"
        image_id = annotation.get("image_id")
        if image_id not in images:
            raise ValueError(f"{where}: there is no image of id {image_id}: add it, or take the annotation away")
        counts[image_id] += 1
        if annotation.get("iscrowd"):
            crowds += 1
        elif not annotation.get("segmentation"):
            raise ValueError(
                f"{where} has no segmentation: take it away. Where there are boxes alone, no truth is known, and "
                f"sam-gym segment --boxes {file.name} makes masks"
            )
        else:
            found[image_id][counts[image_id]] = annotation
    return [(images[i], found[i]) for i in images if found[i]], crowds


def _label(file: Path, info: Annotation, annotations: Mapping[int, Annotation], images: Images) -> Labels:
    """The labels of one image: 1, 2, ... in the order of the file; where objects overlap, the smaller one."""
    size = info.get("height", images.size[0]), info.get("width", images.size[1])
    check_fit(f"{file}, image {info['id']}", (1, *size), images)
    masks = {number: _mask(file, annotation, images.size) for number, annotation in annotations.items()}
    labels = np.zeros((1, *images.size), np.int32)
    for number in sorted(masks, key=lambda number: -int(masks[number].sum())):
        labels[0][masks[number]] = number
    return labels


def _mask(file: Path, annotation: Annotation, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    where = f"{file}, annotation of id {annotation.get('id', 'none')}"
    given = annotation["segmentation"]
    if isinstance(given, list):
        if not all(isinstance(p, list) and len(p) >= 6 and len(p) % 2 == 0 for p in given):
            raise ValueError(f"{where}: a polygon is a list of x and y of three corners or more")
        return _filled(file, given, size)
    if not isinstance(given, dict) or not {"size", "counts"} <= given.keys():
        raise ValueError(f"{where}: a segmentation is a list of polygons, or run lengths with size and counts")
    counts = given["counts"] if isinstance(given["counts"], list) else _counts(str(given["counts"]))
    if list(given["size"]) != [*size] or sum(counts) != size[0] * size[1] or min(counts) < 0:
        raise ValueError(
            f"{where}: run lengths of size {given['size']} (height, width) that cover {sum(counts)} px are not those "
            f"of an image of {[*size]}"
        )
    return _drawn(counts, size)


def _filled(file: Path, polygons: list[list[float]], size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """The pixels in polygons, border pixels as COCO counts them."""
    try:
        from pycocotools import mask as runs
    except ImportError as error:
        raise MissingExtraError(file, "a COCO file with polygons", "pycocotools", "coco") from error
    merged = runs.merge(runs.frPyObjects(polygons, *size))
    return _drawn(_counts(merged["counts"].decode()), size)


def _drawn(counts: Sequence[int], size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Run lengths as a mask: outside, inside, outside, ..., down the columns."""
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(size[::-1]).T


def _counts(text: str) -> list[int]:
    """Compressed run lengths as numbers. pycocotools would decode them, but leaves pixels unset where runs are short.

    Five bits a character, lowest first; the sixth says that more follow; the last bit is the sign. From the fourth
    number on they are differences to the last but one.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (bits >> 4 & 1) << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return counts or [-1]


def _split(root: Path, file: Path, n: int) -> str:
    words = re.split(r"[^a-z]+|(?<=[a-z])(?=\d)", str(file.relative_to(root)).lower())
    meant = {SPLITS[word] for word in words if word in SPLITS}
    if len(meant) != 1:
        raise ValueError(
            f"{file} is one of {n} COCO files, and its name says not which split it is: name each after train, val or "
            "test, or leave one of them"
        )
    return meant.pop()


def _find(root: Path, file: Path, name: str, places: Mapping[str, Sequence[Path]]) -> Path:
    """An image of a COCO file: beside it, below the folder, or anywhere in it if only one is called so."""
    for path in (file.parent / name, root / name, root / "images" / name):
        if path.is_file() and root in path.resolve().parents:
            return path
    there = places.get(Path(name).name, [])
    if len(there) != 1:
        what = "is not in the folder" if not there else f"is there {len(there)} times, for one {there[0]}"
        raise ValueError(f"{file} names the image {name}, which {what}: put it at {root / 'images' / name}")
    return there[0]
