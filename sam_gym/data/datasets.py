"""The table of datasets, and `load_data`: name, split and source -> `SegmentationData`.

Adding a dataset: one small module with its `DatasetSpec`, one row here (and its splits in `splits.json`, its files in
`<folder>.csv`).
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from sam_gym._utils import fetching
from sam_gym._utils.naming import unknown
from sam_gym.data import dsb, folder, isbi, sources, synthetic, synthetic_mitochondria, synthetic_smears, vnc, wbc
from sam_gym.data.mixture import BETWEEN, MixedData
from sam_gym.data.segmentation import MAX_AREA, MIN_AREA, SegmentationData, check_area_limits
from sam_gym.data.sources import DataMismatchError, DataUnavailableError
from sam_gym.data.spec import DatasetSpec

DATASETS: Mapping[str, DatasetSpec] = MappingProxyType(
    {
        spec.name: spec
        for spec in (
            isbi.SPEC,
            vnc.CELLS,
            vnc.MITOCHONDRIA,
            wbc.CELL,
            wbc.NUCLEUS,
            dsb.SPEC,
            dsb.LARGER_SPEC,
            synthetic.SPEC,
            synthetic_mitochondria.SPEC,
            synthetic_smears.CELLS,
            synthetic_smears.NUCLEI,
        )
    }
)

DATA_MODES = ("auto", "real", "synthetic")

NO_FILES = Path()
"""The root of a dataset that is generated."""

_lock = threading.RLock()
_loaded: dict[tuple, SegmentationData] = {}
_mixed: dict[tuple, MixedData] = {}
_unlimited: dict[tuple, SegmentationData] = {}  # objects of any area; the views in `_loaded` share its arrays
_given_up: set[tuple] = set()  # datasets and the folders tried: "auto" neither warns nor waits for a dead network twice


def load_data(
    name: str,
    split: str = "train",
    data: str = "auto",
    min_area: int = MIN_AREA,
    max_area: int = MAX_AREA,
    root: str | Path | None = None,
    shares: Sequence[float] = folder.SHARES,
    window: Sequence[float] | None = None,
) -> SegmentationData:
    """Load one split of one dataset; equal arguments give the same object for as long as the process lives.

    Real files are looked for in $SAM_GYM_DATA, then in the cache folder, then downloaded by their pinned URLs; each is
    checked by sha256.

    Args:
        name: A key of `DATASETS`, for example "isbi2012" or "synthetic-em"; several of them joined by "+", for their
            mixture (`MixedData`); or "folder", for files of your own.
        split: "train", "val" or "test".
        data: "auto" takes the real files where they can be had; else it warns (once per process, dataset and setting
            of the folders) and takes the dataset's stand-in. "real" raises instead. "synthetic" takes the stand-in and
            says nothing. A stand-in has its own images, image ids and number of images, and its `source` is the
            generated dataset's name. A dataset that has none raises where it would be taken. For a generated dataset
            itself all three mean the generator.
        min_area: Objects of fewer px are left out.
        max_area: Objects of more px are left out.
        root: The folder of your own images and masks (`sam_gym.data.folder`), for name "folder" only.
        shares: Its percentages of images in the three splits, likewise.
        window: Of its NIfTI and DICOM files: centre and width of the values that become 0..255, likewise.

    Returns:
        The data; `source` says what the pixels really are.

    Raises:
        ValueError: Unknown name, split or mode; area limits that make no sense or leave no object.
        DataUnavailableError: No source has the files, with data="real" or for a dataset without a stand-in; or there is
            no stand-in with data="synthetic". In modes "auto" and "real", $SAM_GYM_DATA holds a file that is not the
            published one.
    """
    if BETWEEN in name:
        return _mixture(name, split, data, min_area, max_area)
    _one_of(name, (*DATASETS, folder.NAME), "dataset")
    _one_of(split, folder.SPLITS if name == folder.NAME else DATASETS[name].splits, f"split of {name}")
    _one_of(data, DATA_MODES, "data mode")
    check_area_limits(min_area, max_area)
    if root is not None and name == folder.NAME:
        if data == "synthetic":
            raise DataUnavailableError("a folder has no synthetic stand-in: use data='real'")
        with _lock:
            return folder.load_folder(root, split, shares, min_area, max_area, window)
    if root is not None or name == folder.NAME:
        raise ValueError(f"root= is the path of the images and masks of dataset 'folder'; got {name=} and {root=}")
    spec = DATASETS[name]
    with _lock:
        source, files = _source(spec, data)
        key = (name, split, source.name, files, int(min_area), int(max_area))
        if key not in _loaded:
            _loaded[key] = _load(name, split, source, files, int(min_area), int(max_area))
        return _loaded[key]


def _mixture(name: str, split: str, data: str, min_area: int, max_area: int) -> MixedData:
    key = (name, split, data, int(min_area), int(max_area), os.environ.get(sources.ENVIRONMENT_VARIABLE))
    with _lock:
        if key not in _mixed:
            parts = [load_data(part, split, data, min_area, max_area) for part in name.split(BETWEEN)]
            _mixed[key] = MixedData(parts)
        return _mixed[key]


def _source(spec: DatasetSpec, data: str) -> tuple[DatasetSpec, Path]:
    """Which dataset's pixels to take, and the folder of its files."""
    if not spec.files:
        return spec, NO_FILES
    attempt = (spec.name, os.environ.get(sources.ENVIRONMENT_VARIABLE), fetching.cache_dir())
    if data == "real" or (data == "auto" and attempt not in _given_up):
        try:
            root = sources.locate(spec)
            _given_up.discard(attempt)
            return spec, root
        except DataMismatchError:
            raise
        except DataUnavailableError as error:
            if data == "real" or spec.stand_in is None:
                raise
            warnings.warn(
                f"{spec.name}: using the procedural stand-in {spec.stand_in}, NOT the real sections. Results are "
                f"marked {spec.stand_in!r} and do not count as {spec.name}. {error}",
                UserWarning,
                stacklevel=3,
            )
            _given_up.add(attempt)
    if spec.stand_in is None:
        raise DataUnavailableError(f"{spec.name} has no synthetic stand-in: use data='real'")
    return DATASETS[spec.stand_in], NO_FILES


def _load(name: str, split: str, source: DatasetSpec, root: Path, min_area: int, max_area: int) -> SegmentationData:
    key = (source.name, split, root)
    ids = source.splits[split]
    if key not in _unlimited:
        images, labels = zip(*(source.read(root, image_id) for image_id in ids), strict=True)
        _unlimited[key] = SegmentationData(
            source.name, split, source.name, ids, images, labels, min_area=1, max_area=2**31 - 1
        )
    whole = _unlimited[key]
    shared = [whole.image(i) for i in ids], [whole.labels(i) for i in ids]
    return SegmentationData(name, split, source.name, ids, *shared, min_area=min_area, max_area=max_area)


def _one_of(value: str, choices: Iterable[str], what: str) -> str:
    if value in choices:
        return value
    raise ValueError(unknown(what, value, choices))
