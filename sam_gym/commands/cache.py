"""`sam-gym cache`: look after the embedding cache. The work is done by `sam_gym.sam.embedding_folder`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated

import tyro

from sam_gym._utils.fetching import cache_dir
from sam_gym._utils.progress import progress_bar
from sam_gym.commands.common import MIB, console, embedding_root, say

if TYPE_CHECKING:
    from sam_gym.sam import embedding_folder

GIB, DAY = 2**30, 86_400


def info() -> None:
    """Show what the cache holds and where it lies."""
    from rich import box
    from rich.table import Table

    from sam_gym.sam import embedding_folder

    root = embedding_root()
    namespaces: dict[str, list[embedding_folder.CacheFile]] = {}
    for entry in embedding_folder.entries(root):
        namespaces.setdefault(entry.namespace, []).append(entry)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    table.add_column("encoder", no_wrap=True)
    for column in ("entries", "MiB", "oldest use", "newest use"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, files in sorted(namespaces.items()):
        uses = [time.strftime("%Y-%m-%d %H:%M", time.localtime(files[i].used)) for i in (0, -1)]
        table.add_row(name, str(len(files)), _mib(files), *uses)
    if namespaces:
        console().print(table)
    everything = [file for files in namespaces.values() for file in files]
    stale = embedding_folder.leftovers(root)
    print(f"embeddings   {_mib(everything):>9} MiB, {len(everything)} entries, {len(stale)} leftovers   {root}")
    for name in ("checkpoints", "data"):
        folder = cache_dir() / name
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / MIB
        print(f"{name:<12} {size:>9.1f} MiB   {folder}")


def verify(delete: bool = False) -> None:
    """Check every entry to the last bit; exit status 1 if one is damaged or does not belong where it lies.

    Args:
        delete: Remove such entries. (A run that meets one encodes its image anew and replaces it, so nothing has to.)
    """
    from sam_gym.sam import embedding_folder
    from sam_gym.sam.disk_cache import EntryError, read_entry

    root = embedding_root()
    entries = embedding_folder.entries(root)

    bad = 0
    with progress_bar("verify", len(entries), "entry") as bar:
        for entry in entries:
            try:
                read_entry(entry.path)
            except FileNotFoundError:  # pruned since it was listed
                continue
            except EntryError as error:
                bad += 1
                say(str(error))
                if delete:
                    entry.path.unlink(missing_ok=True)
            bar.update()
    fate = "" if not bad else ", removed" if delete else "; --delete removes them, and using one replaces it"
    print(f"{len(entries)} entries, {bad} damaged or foreign{fate}: {root}")
    if bad:
        sys.exit(1)


def prune(
    max_gib: Annotated[float | None, tyro.conf.arg(metavar="GIB")] = None,
    unused_days: Annotated[float | None, tyro.conf.arg(metavar="DAYS")] = None,
) -> None:
    """Remove what killed processes left, then the least recently used entries until the limits hold.

    Args:
        max_gib: Entries of all encoders together may take so many GiB.
        unused_days: Entries not used for longer than this go.
    """
    root = embedding_root()
    for option, value in (("--max-gib", max_gib), ("--unused-days", unused_days)):
        if value is not None and not value >= 0:
            raise ValueError(f"{option} must be at least 0, got {value}")
    from sam_gym.sam import embedding_folder

    stale, removed = embedding_folder.prune(
        root,
        max_bytes=None if max_gib is None else max_gib * GIB,
        unused_seconds=None if unused_days is None else unused_days * DAY,
    )
    for file in (*stale, *removed):
        print(f"removed {file.path}")
    if max_gib is None and unused_days is None:
        print("only leftovers of killed processes were looked for; --max-gib and --unused-days drop entries")
    kept = embedding_folder.entries(root)
    print(
        f"removed {len(stale)} leftovers ({_mib(stale)} MiB) and {len(removed)} entries ({_mib(removed)} MiB); "
        f"{len(kept)} entries ({_mib(kept)} MiB) stay in {root}"
    )


COMMANDS: dict[str, Callable[..., None]] = {"info": info, "verify": verify, "prune": prune}


def _mib(files: Sequence[embedding_folder.CacheFile]) -> str:
    return f"{sum(file.bytes for file in files) / MIB:.1f}"
