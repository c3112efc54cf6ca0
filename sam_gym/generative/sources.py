"""Small pictures of cells by class, which diffusion models and classifiers of `sam_gym.generative` learn from.

Each is 32 x 32 RGB, cut around one cell, nucleus or place of a data set's images. The four sets are small records here;
nothing in this file trains.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy
from numpy.typing import NDArray
from PIL import Image

from sam_gym._utils.fetching import atomic_path, cache_dir, sha256_of
from sam_gym._utils.naming import unknown
from sam_gym._utils.progress import progress_bar
from sam_gym.data import load_data, smears, sources, synthetic, wbc
from sam_gym.data.smears import CYTOPLASM, NUCLEI, generate_smear
from sam_gym.data.spec import FileRecord, read_file_list
from sam_gym.data.synthetic import CYTOPLASM as EM_CYTOPLASM
from sam_gym.data.synthetic import MEMBRANE, MITOCHONDRION, generate

SIZE = 32
"""Side of a picture in px."""

FEWEST = 16
"""Pictures of a class without which nothing is trained."""

SPLITS = ("train", "test")

Drawn = tuple[NDArray[np.uint8], int]
"""A picture (32, 32, 3) uint8 RGB, and its class."""


class PicturesError(ValueError):
    """Pictures cannot be had as they were asked for: no such set or class, or too few of a class."""


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures of one split.

    Attributes:
        name: The set, a key of `SETS`.
        split: "train" or "test".
        classes: Names of the classes.
        images: (N, 32, 32, 3) uint8 RGB.
        labels: (N,) int64 indices into `classes`.
    """

    name: str
    split: str
    classes: tuple[str, ...]
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __post_init__(self) -> None:
        if not len(self.images) == len(self.labels):
            raise PicturesError(f"{len(self.images)} pictures and {len(self.labels)} labels of {self.name}: unequal")
        if self.images.shape[1:] != (SIZE, SIZE, 3) or self.images.dtype != np.uint8:
            raise PicturesError(
                f"pictures of {self.name} must be uint8 (N, {SIZE}, {SIZE}, 3), got {self.images.dtype} "
                f"{self.images.shape}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def counts(self) -> dict[str, int]:
        """Pictures by class."""
        return {name: int((self.labels == k).sum()) for k, name in enumerate(self.classes)}

    def check(self, fewest: int = FEWEST) -> None:
        """Raises PicturesError, with the counts, if a class has fewer pictures than training needs."""
        short = {name: count for name, count in self.counts.items() if count < fewest}
        if short:
            listed = ", ".join(f"{name!r} has {count}" for name, count in short.items())
            raise PicturesError(
                f"too few pictures in {self.name} {self.split} to train on: {listed}, and {fewest} of each class are "
                "needed; leave these classes out, or bring more images"
            )

    def half(self, which: int) -> Pictures:
        """Every second picture of each class, beginning with its first (0) or its second (1)."""
        rows = np.concatenate([np.flatnonzero(self.labels == k)[which::2] for k in range(len(self.classes))])
        return dataclasses.replace(self, images=self.images[rows], labels=self.labels[rows])


@dataclass(frozen=True)
class PictureSet:
    """One set: a row of `SETS`.

    Attributes:
        classes: Names of the classes, in order.
        licence: The terms of the pictures.
        count: Split -> how many pictures, for the progress bar.
        draw: Split -> the pictures one by one.
        shown_as: What a class is, for the documentation.
    """

    classes: tuple[str, ...]
    licence: str
    count: Callable[[str], int]
    draw: Callable[[str], Iterator[Drawn]]
    shown_as: str


def load_pictures(name: str, split: str = "train", *, progress: bool = True) -> Pictures:
    """All pictures of a split; they are the same each time, and kept in the cache.

    Args:
        name: "smears", "dsb2018-153", "wbc-cell" or "synthetic-em".
        split: "train" or "test".
        progress: Show a bar.

    Raises:
        PicturesError: No such set or split.
        sam_gym.data.DataUnavailableError: The set is made of real files, which could not be had.
    """
    if name not in SETS:
        raise PicturesError(unknown("set of pictures", name, SETS))
    if split not in SPLITS:
        raise PicturesError(unknown("split", split, SPLITS))
    one = SETS[name]
    file = _cache_file(name, split)
    if file.is_file():
        with np.load(file) as kept:
            return Pictures(name, split, one.classes, kept["images"], kept["labels"])
    images, labels = [], []
    with progress_bar("pictures", one.count(split), "picture", shown=progress) as bar:
        for image, label in one.draw(split):
            images.append(image)
            labels.append(label)
            bar.update()
    pictures = Pictures(name, split, one.classes, np.stack(images), np.array(labels, np.int64))
    with atomic_path(file) as path, path.open("wb") as opened:
        np.savez_compressed(opened, images=pictures.images, labels=pictures.labels)
    return pictures


def _cache_file(name: str, split: str) -> Path:
    """Where the pictures are kept; other code, data or libraries mean another file."""
    code = [sha256_of(str(module.__file__)) for module in (sys.modules[__name__], smears, synthetic)]
    made_of = repr((name, split, code, np.__version__, scipy.__version__))
    key = hashlib.sha256(made_of.encode()).hexdigest()[:16]
    return cache_dir() / "denoise" / name / f"pictures-{split}-{key}.npz"


def cut(image: NDArray[np.uint8], centre: tuple[float, float], side: float) -> NDArray[np.uint8]:
    """The square of an image around (x, y), scaled to 32 x 32; what lies outside mirrors the image.

    Args:
        image: (H, W, 3) uint8.
        centre: x, y in px.
        side: In px.
    """
    x, y = centre
    reach = int(np.ceil(side / 2)) + 2
    padded = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="symmetric")
    box = (x - side / 2 + reach, y - side / 2 + reach, x + side / 2 + reach, y + side / 2 + reach)
    return np.asarray(Image.fromarray(padded).resize((SIZE, SIZE), Image.Resampling.BOX, box=box))


def _around(image: NDArray[np.uint8], box: NDArray[np.floating], scale: float) -> NDArray[np.uint8]:
    """The surroundings of a tight box (x0, y0, x1, y1), `scale` times its longer side."""
    x0, y0, x1, y1 = (float(v) for v in box)
    return cut(image, ((x0 + x1) / 2, (y0 + y1) / 2), scale * max(x1 - x0, y1 - y0))


# ------------------------------------------------------------------------------------------------------------ smears

SMEAR_SIDE = 96  # px; of the generated smear that a picture is cut from
SMEAR_COUNTS = {"train": (1500, 900, 450, 150), "test": (150, 150, 150, 150)}
"""Pictures of each of `NUCLEI`: in training as unequal as in blood, two lobes being the rare class."""
SMEAR_SEEDS = {"train": 10_000, "test": 90_000}
"""Where their seeds begin; those of the splits of `sam_gym.data` are below 100."""


def _smears(split: str) -> Iterator[Drawn]:
    labels = np.repeat(np.arange(len(NUCLEI)), SMEAR_COUNTS[split])
    np.random.default_rng(SMEAR_SEEDS[split]).shuffle(labels)
    for number, label in enumerate(labels):
        smear = generate_smear(SMEAR_SEEDS[split] + number, SMEAR_SIDE, nucleus=NUCLEI[label])
        white = np.where(smear.classes >= CYTOPLASM, smear.cells, 0)
        rows, columns = np.nonzero(white == white[white > 0].min())  # the one in the middle is drawn first
        box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        yield _around(smear.image, box, 1.25), int(label)


# --------------------------------------------------------------------------------------------------------------- DSB

DSB_KINDS = ("fluorescence", "stained tissue", "bright field")


def kind_of_image(image: NDArray[np.uint8]) -> int:
    """Index into `DSB_KINDS` of an image (H, W, 3): coloured, else dark or bright."""
    values = image.astype(np.float32)
    if (values.max(axis=2) - values.min(axis=2)).mean() > 8:
        return 1
    return 0 if values.mean() < 110 else 2


def _dsb_count(split: str) -> int:
    return len(load_data("dsb2018-153", split, "real", min_area=50).objects)


def _dsb(split: str) -> Iterator[Drawn]:
    data = load_data("dsb2018-153", split, "real", min_area=50)
    kinds = [kind_of_image(data.image(i)) for i in range(len(data.image_ids))]
    for index, box in zip(data.objects.image_index, data.objects.box, strict=True):
        yield _around(data.image(int(index)), box, 2.0), kinds[index]


# --------------------------------------------------------------------------------------------------------------- WBC

WBC_TYPES = ("neutrophil", "lymphocyte", "monocyte")
"""The types 1, 2, 3 of the published table. Types 4 (eosinophil) and 5 (basophil) are left out: of these crops 5 and
none are theirs, and none is in the training split."""

WBC_TYPE_FILE: tuple[FileRecord, ...] = read_file_list(
    wbc.FOLDER, "https://raw.githubusercontent.com/zxaoyou/segmentation_WBC/fa9c01622f52bccb9aeb8a6f2628f564e377767d/",
    "wbc-types",
)  # fmt: skip


def wbc_types() -> Mapping[str, int]:
    """Image id -> index into `WBC_TYPES`; crops of other types are not in it."""
    root = sources.locate(dataclasses.replace(wbc.CELL, name="wbc-types", files=WBC_TYPE_FILE))
    with (root / WBC_TYPE_FILE[0].path).open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))[1:]
    return {f"crop-{int(number):03d}": int(kind) - 1 for number, kind in rows if 1 <= int(kind) <= len(WBC_TYPES)}


def _wbc_count(split: str) -> int:
    types = wbc_types()
    return sum(image_id in types for image_id in wbc.CELL.splits[split])


def _wbc(split: str) -> Iterator[Drawn]:
    types, data = wbc_types(), load_data("wbc-cell", split, "real")
    for index, box in zip(data.objects.image_index, data.objects.box, strict=True):
        image_id = data.image_ids[index]
        if image_id in types:
            yield _around(data.image(int(index)), box, 1.25), types[image_id]


# ------------------------------------------------------------------------------------------------------ synthetic EM

EM_PLACES = ("cytoplasm", "membrane", "mitochondrion")
EM_COUNTS = {"train": 1500, "test": 300}  # of each place
EM_SEEDS = {"train": 20_000, "test": 95_000}
EM_SIDE, EM_SECTION, EM_EACH = 48.0, 256, 12
"""Side of the square around the place, side of the section, places of each kind that are taken from a section."""


def _em(split: str) -> Iterator[Drawn]:
    for number in range(EM_COUNTS[split] // EM_EACH):
        seed = EM_SEEDS[split] + number
        # Sections without mitochondria give no place: another is drawn, so that counts are as stated.
        sections = (generate(np.random.default_rng([seed, k]), EM_SECTION) for k in range(100))
        section = next(one for one in sections if all((one.classes == c).any() for c in _EM_CLASSES))
        rng = np.random.default_rng([seed, 100])
        for label, wanted in enumerate(_EM_CLASSES):
            places = np.argwhere(section.classes == wanted)
            for y, x in places[rng.choice(len(places), EM_EACH)]:
                yield cut(section.image, (float(x) + 0.5, float(y) + 0.5), EM_SIDE), label


_EM_CLASSES = (EM_CYTOPLASM, MEMBRANE, MITOCHONDRION)

SETS: Mapping[str, PictureSet] = {
    "smears": PictureSet(
        NUCLEI,
        "as sam_gym itself",
        lambda split: sum(SMEAR_COUNTS[split]),
        _smears,
        "the nucleus of a white cell in a generated smear",
    ),
    "dsb2018-153": PictureSet(DSB_KINDS, "CC0 1.0", _dsb_count, _dsb, "the kind of image that a nucleus is cut from"),
    "wbc-cell": PictureSet(WBC_TYPES, wbc.LICENCE, _wbc_count, _wbc, "the type of a white cell in a real smear"),
    "synthetic-em": PictureSet(
        EM_PLACES,
        "as sam_gym itself",
        lambda split: len(EM_PLACES) * EM_COUNTS[split],
        _em,
        "what lies in the middle of a place in a generated section",
    ),
}
"""Name -> set of pictures."""
