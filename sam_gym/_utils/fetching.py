"""Downloads and the cache folders: the one place where sam_gym reaches the network.

A file is fetched into a temporary name beside its destination, checked by its hash and renamed, so that an
interrupted or corrupted download leaves nothing that a later run could mistake for the real thing. What to
fetch and from where is the business of `sam_gym.sam.checkpoints` and `sam_gym.data`.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sam_gym._utils.naming import first_line


class FetchError(RuntimeError):
    """A file could not be had; the message says from where and why."""


def cache_dir() -> Path:
    """Folder for downloads and converted weights: `$SAM_GYM_CACHE`, else the user's cache folder."""
    if chosen := os.environ.get("SAM_GYM_CACHE"):
        return Path(chosen).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("sam_gym", appauthor=False))


def embeddings_dir() -> Path | None:
    """Folder for image embeddings: `$SAM_GYM_EMBEDDINGS` ("off": None), else `cache_dir()/embeddings`."""
    chosen = os.environ.get("SAM_GYM_EMBEDDINGS")
    if not chosen:
        return cache_dir() / "embeddings"
    return None if chosen == "off" else Path(chosen).expanduser()


def sha256_of(path: Path | str) -> str:
    """Sha256 of a file as a hexadecimal string."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_hash(path: Path, expected: str) -> None:
    """Raise `FetchError` unless a file has the hash `expected`: a sha256, or "ALGORITHM:HASH" as pooch has it."""
    algorithm, _, digest = expected.rpartition(":")
    actual = _hash_of(path, algorithm)
    if actual != digest:
        raise FetchError(
            f"{path} has {algorithm or 'sha256'} {actual}, expected {digest}: the file is truncated, corrupted or "
            "another version"
        )


def _hash_of(path: Path, algorithm: str) -> str:
    """A file's hash, hexadecimal, by one of pooch's algorithms; "" is sha256."""
    if not algorithm:
        return sha256_of(path)
    import pooch

    return pooch.file_hash(str(path), alg=algorithm)


@contextmanager
def atomic_path(destination: Path) -> Iterator[Path]:
    """A temporary path beside `destination` that becomes it when the block ends well, and vanishes otherwise."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{destination.name}.", dir=destination.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)  # mkstemp's 0600 would keep a shared cache from its other users
        os.replace(temporary, destination)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON so that a reader never sees half of it."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def download(url: str, destination: Path, expected: str, *, progress: bool = True, timeout: float = 30) -> Path:
    """Download `url` to `destination`, with a progress bar, and check its hash.

    Args:
        url: An http(s) or file URL.
        destination: Where the file shall lie; it is returned untouched if it is there already with the right hash.
        expected: Its hash, as for `check_hash`.
        progress: Show a bar for this file.
        timeout: Seconds that the server may take to answer, and then between two blocks, before it counts as
            unreachable. Keep it short where there is another source to go on to.

    Returns:
        `destination`.

    Raises:
        FetchError: The source cannot be reached, or what it sent has another hash. Nothing is left behind.
    """
    import pooch

    algorithm, _, digest = expected.rpartition(":")
    if destination.is_file() and _hash_of(destination, algorithm) == digest:
        return destination
    pooch.get_logger().setLevel("WARNING")
    with atomic_path(destination) as temporary:
        try:
            if url.startswith("file:"):
                from urllib.request import urlretrieve

                urlretrieve(url, temporary)
            else:
                pooch.HTTPDownloader(progressbar=progress, timeout=timeout)(url, str(temporary), None)
        except Exception as error:
            raise FetchError(f"{url}: {type(error).__name__}: {first_line(error)}") from error
        check_hash(temporary, expected)
    return destination
