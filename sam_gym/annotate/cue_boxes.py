"""Boxes that somebody drew on images of their own, read from a CSV or a COCO file. No image is opened here."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

LARGEST_LABEL = 2**16 - 1
"""A PNG holds no larger integer."""

COLUMNS = ("image", "x0", "y0", "x1", "y1")

FORMATS = "CSV: a header image,x0,y0,x1,y1[,id] and a row a box; COCO: JSON with images and annotations"


@dataclass(frozen=True)
class CueBox:
    """One box of one image.

    Attributes:
        label: 1..65535, unique in its image; the value of its pixels in a label image.
        id: As the file calls it, "" where it says nothing.
        box: x0, y0, x1, y1 in pixels of the image, x1 and y1 exclusive.
    """

    label: int
    id: str
    box: tuple[float, float, float, float]


def read_cue_boxes(file: Path) -> dict[str, list[CueBox]]:
    """The boxes of each image, by the image's path as the file gives it, with forward slashes.

    In a CSV file (separated by commas, semicolons or tabs) `id` is the label, an integer in 1..65535; without that
    column the boxes of an image are 1, 2, ... in the file's order. In a COCO file (`.json`) they always are, and `id`
    is the annotation's. A COCO image without annotations has no boxes and is left out.

    Args:
        file: The file; `.json` is COCO, anything else CSV.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not of that form; the message names the line or the annotation.
    """
    if not file.is_file():
        raise FileNotFoundError(f"there is no file of boxes {file}")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not text: {error}. {FORMATS}") from error
    found = _read_coco(text, file) if file.suffix.lower() == ".json" else _read_csv(text, file)
    if not found:
        raise ValueError(f"{file} holds no box. {FORMATS}")
    for image, boxes in found.items():
        if len(boxes) > LARGEST_LABEL:
            raise ValueError(f"{file}: {image} has {len(boxes)} boxes; a label image holds {LARGEST_LABEL}")
    return found


def _read_csv(text: str, file: Path) -> dict[str, list[CueBox]]:
    lines = text.splitlines()
    header = lines[0] if lines else ""
    reader = csv.reader(lines, delimiter=max(",;\t", key=header.count))
    names = [name.strip() for name in next(reader, [])]
    if missing := [name for name in COLUMNS if name not in names]:
        raise ValueError(f"{file} has no column {missing[0]!r}; its first line is {header!r}. {FORMATS}")
    found: dict[str, list[CueBox]] = {}
    for cells in reader:
        where = f"{file}, line {reader.line_num}"
        if not any(cell.strip() for cell in cells):
            continue
        row = dict(zip(names, (cell.strip() for cell in cells), strict=False))
        if len(cells) < len(names):
            raise ValueError(f"{where}: {len(cells)} cells under a header of {len(names)}")
        boxes = found.setdefault(_image_path(row["image"], where), [])
        label = _label(row["id"], where) if "id" in row else len(boxes) + 1
        if label in (box.label for box in boxes):
            raise ValueError(f"{where}: {row['image']} has two boxes of id {label}")
        boxes.append(CueBox(label, row.get("id", ""), _box((row[name] for name in COLUMNS[1:]), where)))
    return found


def _read_coco(text: str, file: Path) -> dict[str, list[CueBox]]:
    try:
        content = json.loads(text)
        names = {image["id"]: str(image["file_name"]) for image in content["images"]}
        annotations = [(a["image_id"], a["bbox"], a.get("id", "")) for a in content["annotations"]]
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is not a COCO file: {type(error).__name__} {error}. {FORMATS}") from error
    found: dict[str, list[CueBox]] = {}
    for number, (image_id, bbox, annotation_id) in enumerate(annotations, start=1):
        where = f"{file}, annotation {number} (id {annotation_id})"
        if image_id not in names:
            raise ValueError(f"{where}: there is no image of id {image_id}")
        if not isinstance(bbox, list) or len(bbox) != 4:
            raise ValueError(f"{where}: bbox must be [x, y, width, height], got {bbox!r}")
        x, y, width, height = _numbers(bbox, where)
        boxes = found.setdefault(_image_path(names[image_id], where), [])
        boxes.append(CueBox(len(boxes) + 1, str(annotation_id), _box((x, y, x + width, y + height), where)))
    return found


def _image_path(text: str, where: str) -> str:
    """With forward slashes. It names files that are written, too, so it must stay below its folder."""
    path = PurePosixPath(text.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or not path.name:
        raise ValueError(f"{where}: an image is named by its path below the folder of images, got {text!r}")
    return path.as_posix()


def _box(values: Iterable[Any], where: str) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = _numbers(values, where)
    if not (x0 < x1 and y0 < y1):
        raise ValueError(f"{where}: a box needs x0 < x1 and y0 < y1, got {x0:g}, {y0:g}, {x1:g}, {y1:g}")
    return x0, y0, x1, y1


def _numbers(values: Iterable[Any], where: str) -> list[float]:
    numbers = []
    for value in values:
        try:
            number = float(value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: {value!r} is not a number") from error
        if not math.isfinite(number):
            raise ValueError(f"{where}: {value!r} is not finite")
        numbers.append(number)
    return numbers


def _label(text: str, where: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= LARGEST_LABEL:
        raise ValueError(
            f"{where}: id must be an integer in 1..{LARGEST_LABEL}, since it is the pixels' value: {text!r}"
        )
    return int(text)
