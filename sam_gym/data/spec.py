"""What a dataset is: its name, its terms, its files, its splits, and how one image of it is read.

Plain records and the readers of the two packaged tables (file lists and splits). Where files are found is the business
of `sam_gym.data.sources`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

# An image that `to_rgb_uint8` takes, and integer labels (H, W) with 0 = none.
Sample = tuple[npt.NDArray[np.generic], npt.NDArray[np.generic]]


@dataclass(frozen=True)
class FileRecord:
    """One published file: its path below the data folder, its size in bytes, its sha256 and its pinned URL."""

    path: str
    bytes: int
    sha256: str
    url: str


@dataclass(frozen=True)
class DatasetSpec:
    """One dataset, as a row of `sam_gym.data.DATASETS`.

    Attributes:
        name: Short name, for example "isbi2012".
        title: One line that says what it shows and what its objects are.
        licence: The terms of the files.
        citation: Who is to be cited.
        splits: Split name -> image ids, in order. Fixed and versioned (`splits.json`), never drawn at random.
        read: `read(root, image_id)` gives the image and its labels; `root` is the folder that holds all of `files`; a
            generated dataset leaves it alone.
        text: What its objects are, in the words of region-text scores.
        folder: The folder of its files, and the name of their packaged list, `<folder>.csv`; "" if it is generated.
            Two datasets that read the same images share it.
        files: Every file it needs; empty if it is generated.
        stand_in: Name of the generated dataset that takes its place where its files cannot be had, or None.
        tile: Side in px of the tiles into which images are cut where all objects of one are the target together
            (`load_whole_class`); None leaves them whole.
    """

    name: str
    title: str
    licence: str
    citation: str
    splits: Mapping[str, tuple[str, ...]]
    read: Callable[[Path, str], Sample]
    text: str
    folder: str = ""
    files: tuple[FileRecord, ...] = ()
    stand_in: str | None = None
    tile: int | None = None

    @property
    def may_be_shown(self) -> bool:
        """Whether everybody may republish its pixels: they are generated, or in the public domain."""
        return not self.files or self.licence.startswith("CC0")


def read_file_list(folder: str, base_url: str, listed: str = "") -> tuple[FileRecord, ...]:
    """The packaged list of the files in a folder, `sam_gym/data/<folder>.csv`.

    Args:
        folder: Name of the folder; each path in the list begins with it.
        base_url: What the URLs of all files have in common, up to a slash. The path within the folder follows it.
        listed: Name of the list, where it is not the folder's.

    Returns:
        One record a file, in the list's order.
    """
    text = resources.files("sam_gym.data").joinpath(f"{listed or folder}.csv").read_text(encoding="utf-8")
    _header, *rows = csv.reader(text.splitlines())
    return tuple(
        FileRecord(path, int(size), sha256, base_url + quote(path.removeprefix(f"{folder}/")))
        for path, size, sha256 in rows
    )


def read_splits(name: str) -> Mapping[str, tuple[str, ...]]:
    """Packaged splits, from `sam_gym/data/splits.json`: split name -> image ids.

    `name` is a dataset's name, or that of the folder whose images several datasets share.
    """
    tables = json.loads(resources.files("sam_gym.data").joinpath("splits.json").read_text(encoding="utf-8"))
    return MappingProxyType({split: tuple(ids) for split, ids in tables["datasets"][name].items()})


def read_object_counts(name: str, counted: str = "objects") -> dict[str, int]:
    """Packaged numbers of objects, from `sam_gym/data/objects.json`: split name -> objects; so no image has to be read.

    They hold for the dataset's environments (area limits: `sam_gym.registration.SETTINGS`). Where the target is a whole
    class, `counted` is "classes": an image, or a tile of one, holds one object. Where images are described, it is
    "windows". A name that is not in the table has none.
    """
    tables = json.loads(resources.files("sam_gym.data").joinpath("objects.json").read_text(encoding="utf-8"))
    return dict(tables[counted].get(name, {}))
