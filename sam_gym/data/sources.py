"""Where a dataset's files are: $SAM_GYM_DATA, the cache folder, or their pinned URLs, in this order.

Every file is checked by sha256, once per process and folder. Nothing here reads an image.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path

from sam_gym._utils import fetching
from sam_gym._utils.fetching import FetchError
from sam_gym.data.spec import DatasetSpec, FileRecord

ENVIRONMENT_VARIABLE = "SAM_GYM_DATA"

_CONNECTIONS = 8  # dsb2018 is 2,220 small files, which one after the other take minutes
_verified: set[tuple[str, Path]] = set()  # (dataset, root): hashed in this process


class DataUnavailableError(FetchError):
    """A dataset's real files could not be had, or are not what they should be.

    Attributes:
        reasons: One line for each source that was tried.
    """

    def __init__(self, message: str, reasons: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.reasons = reasons


class DataMismatchError(DataUnavailableError):
    """$SAM_GYM_DATA holds a file that is not the published one."""


def locate(spec: DatasetSpec) -> Path:
    """Find, else download, all files of a dataset.

    Args:
        spec: A dataset with files.

    Returns:
        The folder below which every `FileRecord.path` of the dataset lies, with the right sha256.

    Raises:
        DataMismatchError: $SAM_GYM_DATA holds a file with another hash. No other source is tried then, since whoever
            set the variable means those files.
        DataUnavailableError: No source has them.
    """
    reasons = []
    chosen = os.environ.get(ENVIRONMENT_VARIABLE)
    if not chosen:
        reasons.append(f"${ENVIRONMENT_VARIABLE} is not set")
    else:
        root = Path(chosen).expanduser().resolve()
        if reason := _missing(spec, root):
            reasons.append(f"${ENVIRONMENT_VARIABLE}: {reason}")
        elif wrong := _mismatches(spec, root):
            raise DataMismatchError(
                f"{len(wrong)} of {len(spec.files)} files of {spec.name} in ${ENVIRONMENT_VARIABLE} are not the"
                f" published ones:\n  {wrong[0]}\n"
                f"Replace them (this one from {wrong[0].record.url}), or unset the variable.",
                tuple(str(line) for line in wrong),
            )
        else:
            return root

    root = data_cache()
    reason = _missing(spec, root)
    if not reason and not _mismatches(spec, root):
        return root
    reasons.append(f"cache: {reason or 'files with a wrong sha256'}")
    try:
        download(spec, root)
    except (FetchError, OSError) as error:
        reasons.append(f"download: {error}")
        raise DataUnavailableError(_instructions(spec, reasons), tuple(reasons)) from error
    _verified.add((spec.name, root))
    return root


def folder_of(spec: DatasetSpec) -> Path | None:
    """Where `locate` would look first and find a file of every name; what is in them is not looked at."""
    chosen = os.environ.get(ENVIRONMENT_VARIABLE)
    roots = [*([Path(chosen).expanduser().resolve()] if chosen else []), data_cache()]
    return next((root for root in roots if not _missing(spec, root)), None)


def data_cache() -> Path:
    """Folder into which datasets are downloaded."""
    return fetching.cache_dir() / "data"


class _Mismatch:
    """A file whose sha256 is not the published one."""

    def __init__(self, record: FileRecord, path: Path, actual: str) -> None:
        self.record, self.path, self.actual = record, path, actual

    def __str__(self) -> str:
        size = self.path.stat().st_size
        return (
            f"{self.path}: sha256 {self.actual}, expected {self.record.sha256}"
            f" ({size} bytes, expected {self.record.bytes})"
        )


def _missing(spec: DatasetSpec, root: Path) -> str | None:
    """Why the folder cannot be used, or None if every file is there."""
    absent = [record.path for record in spec.files if not (root / record.path).is_file()]
    if not absent:
        return None
    if not root.is_dir():
        return f"there is no folder {root}"
    return f"{root} lacks {len(absent)} of the {len(spec.files)} files, for one {absent[0]}"


def _mismatches(spec: DatasetSpec, root: Path) -> list[_Mismatch]:
    """The files with a wrong hash; a folder without any is not hashed again in this process."""
    if (spec.name, root) in _verified:
        return []
    hashes = [(record, root / record.path, fetching.sha256_of(root / record.path)) for record in spec.files]
    wrong = [_Mismatch(record, path, actual) for record, path, actual in hashes if actual != record.sha256]
    if not wrong:
        _verified.add((spec.name, root))
    return wrong


def download(spec: DatasetSpec, root: Path, timeout: float = 30) -> None:
    """Download what is not there yet below `root`, one bar over all files. The first file that fails ends it.

    Args:
        spec: A dataset with files.
        root: The folder below which every `FileRecord.path` will lie.
        timeout: Seconds that a server may be silent.

    Raises:
        FetchError: A file cannot be had, or has another hash. Those that came before it are kept.
    """
    from tqdm import tqdm

    def get(record: FileRecord) -> None:
        try:
            fetching.download(record.url, root / record.path, record.sha256, progress=False, timeout=timeout)
        except FetchError as error:
            raise FetchError(
                f"{record.path} from {record.url}: {str(error).removeprefix(f'{record.url}: ')}"
            ) from error

    print(f"sam_gym: downloading {spec.title}\n  licence: {spec.licence}\n  cite: {spec.citation}", file=sys.stderr)
    first, *others = spec.files
    with tqdm(total=len(spec.files), desc=spec.name, unit="file", file=sys.stderr) as bar:
        get(first)  # alone: without a network one request says so
        bar.update()
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            try:
                for _ in pool.map(get, others):
                    bar.update()
            finally:
                pool.shutdown(cancel_futures=True)


def _instructions(spec: DatasetSpec, reasons: list[str]) -> str:
    table = resources.files("sam_gym.data").joinpath(f"{spec.folder}.csv")
    tried = "\n".join(f"  - {reason}" for reason in reasons)
    ways = [
        f'with a network, once: `python -c "from sam_gym.data import load_data; '
        f"load_data('{spec.name}', data='real')\"` downloads {_megabytes(spec)} MB into {data_cache()}"
        " (what is there already is kept); that folder can be copied to another machine",
        f"by hand: {table} lists path and sha256 of each file, and their URLs end in the same paths: put"
        f" {spec.files[0].url} below a folder of yours as <folder>/{spec.files[0].path}, the others likewise, and set"
        f" ${ENVIRONMENT_VARIABLE}=<folder>",
    ]
    if spec.stand_in:
        ways.append(f"without the real files: data='synthetic' takes {spec.stand_in} instead, and says so in `source`")
    ways_out = "\n".join(f"  - {way}" for way in ways)
    return f"The real files of {spec.name} could not be had:\n{tried}\nWays out:\n{ways_out}"


def _megabytes(spec: DatasetSpec) -> str:
    return f"{sum(record.bytes for record in spec.files) / 1e6:.1f}"
