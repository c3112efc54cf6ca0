"""The folder of the embedding cache as files: where an entry lies, what there is, what may go. No torch here.

What an entry holds, and how it is read, written and checked, is the business of `sam_gym.sam.disk_cache`; where the
folder lies is that of `sam_gym._utils.fetching.embeddings_dir`.

    <root>/<namespace>/<first two digits of key>/<key>.safetensors

A namespace is one encoder in one precision, a key the content hash of one image. Writers that were killed leave
temporary files beside their entry, whose names begin with a dot.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

NAMESPACE = re.compile(r"[0-9a-f]{12}-p\d+-float(16|32)")
"""Only folders of such a name are looked into, so that a root that holds other things too loses none of them."""

STALE_SECONDS = 3600.0
"""A temporary file of this age belongs to nobody any more: writing an entry takes milliseconds."""


@dataclass(frozen=True)
class CacheFile:
    """One file of the cache.

    Attributes:
        path: Where it lies.
        bytes: Its size.
        used: When it was last read or written, in seconds since the epoch.
    """

    path: Path
    bytes: int
    used: float

    @property
    def namespace(self) -> str:
        """The encoder and precision it belongs to."""
        return self.path.parent.parent.name


def entry_path(root: Path, namespace: str, key: str) -> Path:
    """Where the entry of an image lies, whether it is there or not."""
    return root / namespace / key[:2] / f"{key}.safetensors"


def entries(root: Path) -> list[CacheFile]:
    """All entries of all namespaces, the least recently used first; whether they are whole is not looked at."""
    return _files(root, "[!.]*.safetensors")


def leftovers(root: Path) -> list[CacheFile]:
    """Temporary files that killed writers left, older than `STALE_SECONDS`."""
    before = time.time() - STALE_SECONDS
    return [file for file in _files(root, ".*.safetensors.*") if file.used < before]


def prune(
    root: Path, *, max_bytes: float | None = None, unused_seconds: float | None = None
) -> tuple[list[CacheFile], list[CacheFile]]:
    """Remove leftovers, then the least recently used entries until the limits hold.

    An entry that another process has open stays readable for it. Empty folders stay, since a writer may be about to
    use them.

    Args:
        root: The cache folder.
        max_bytes: Limit of all entries together; None for none.
        unused_seconds: Entries not used for longer than this go; None for any age.

    Returns:
        The leftovers and the entries that were removed.

    Raises:
        OSError: A file cannot be removed; those before it are gone.
    """
    stale, kept = leftovers(root), entries(root)
    total, now = sum(file.bytes for file in kept), time.time()
    removed = []
    for file in kept:
        too_old = unused_seconds is not None and now - file.used > unused_seconds
        too_much = max_bytes is not None and total > max_bytes
        if not (too_old or too_much):
            break  # all others were used later
        removed.append(file)
        total -= file.bytes
    for file in (*stale, *removed):
        file.path.unlink(missing_ok=True)
    return stale, removed


def _files(root: Path, pattern: str) -> list[CacheFile]:
    return sorted(_existing(root, pattern), key=lambda file: (file.used, file.path))


def _existing(root: Path, pattern: str) -> Iterator[CacheFile]:
    for path in root.glob(f"*/??/{pattern}"):
        if not NAMESPACE.fullmatch(path.parent.parent.name):
            continue
        try:
            status = path.stat()
        except FileNotFoundError:  # another process has just removed or renamed it
            continue
        yield CacheFile(path, status.st_size, status.st_mtime)
