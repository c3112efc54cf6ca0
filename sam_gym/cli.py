"""The command `sam-gym`: fill the embedding cache ahead of a run, and look after it.

Arguments, messages and exit statuses only; the work is done by `SamBackend` and `sam_gym.embedding_folder`. Whatever is
slow to import is imported by the command that needs it.
"""

from __future__ import annotations

import difflib
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from sam_gym import embedding_folder
from sam_gym.fetching import cache_dir, embeddings_dir
from sam_gym.progress import progress_bar
from sam_gym.registration import DATASETS, env_ids

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")

MIB, GIB, DAY = 2**20, 2**30, 86_400

DESCRIPTION = """Fill the cache of image embeddings ahead of a run, and look after it.

    sam-gym encode SamPrompt-ISBI-v0    embed a dataset's images, or those of a folder
    sam-gym cache info                  what is there, and where
    sam-gym cache verify                check every entry
    sam-gym cache prune --max-gib 5     drop what was used least recently

The cache is the folder $SAM_GYM_EMBEDDINGS, else "embeddings" in $SAM_GYM_CACHE, else that in the user's cache folder.
"""

app = tyro.extras.SubcommandApp()
cache = tyro.extras.SubcommandApp()
app.command(cache, name="cache", help="Look after the embedding cache: info, verify, prune.")

Image = tuple[str, Callable[[], Any]]
"""What messages call it, and what reads its pixels."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; errors go to stderr without a traceback, with exit status 1 (130 after Ctrl-C)."""
    # Before torch is loaded: compute threads that wait by spinning take the cores from whoever else has work.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with warnings.catch_warnings():  # restores showwarning
        warnings.showwarning = lambda message, *_: _say(f"warning: {message}")
        try:
            app.cli(prog="sam-gym", description=DESCRIPTION, args=arguments)
        except (ValueError, RuntimeError, OSError) as error:
            sys.exit(f"error: {error}")
        except KeyboardInterrupt:
            _say("stopped")
            sys.exit(130)


# ---------------------------------------------------------------------------------------------------------- encode


@app.command
def encode(
    images: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET|FOLDER")],
    split: Literal["all", "train", "val", "test"] = "all",
    checkpoint: str = "mobile_sam",
    device: str = "auto",
    precision: Literal["auto", "exact", "fast"] = "auto",
) -> None:
    """Embed images ahead of a run, so that no environment waits for SAM's encoder.

    Images whose embedding is there already are checked and skipped, so the same command goes on after an interruption.

    Args:
        images: A dataset (isbi2012, synthetic-em), an environment id, or a folder: all its PNG, JPEG, TIFF and BMP
            files, those of its subfolders included.
        split: Images of one split of a dataset, or all.
        checkpoint: SAM weights: a name or a file.
        device: Where the encoder runs: auto, cpu, cuda.
        precision: Environments find only what was encoded in their own precision. exact: float32, 4 MiB an image with
            MobileSAM; the default of gymnasium.make. fast: float16, 2 MiB. auto: fast where the hardware has bfloat16,
            else exact; the default of agents/*.py.
    """
    root = _root()
    readers = _images_of(images, split)
    from PIL.Image import DecompressionBombError

    from sam_gym.sam import SamBackend

    backend = SamBackend(checkpoint, device, precision, cache_bytes=1, disk_cache=root)
    disk = backend.disk_cache
    assert disk is not None, "a folder was given"
    paths: set[Path] = set()
    encoded = found = failed = 0
    interrupted = False
    started = time.perf_counter()
    with progress_bar("encode", len(readers), "image") as bar:
        try:
            for name, read in readers:
                before = backend.encoder_calls
                try:
                    paths.add(disk.path(backend.encode([read()])[0].key))
                except (ValueError, OSError, DecompressionBombError) as error:
                    _say(f"cannot encode {name}: {error}")
                    failed += 1
                else:
                    new = backend.encoder_calls - before
                    encoded, found = encoded + new, found + 1 - new
                bar.update()
                if disk.write_error is not None:
                    break
        except KeyboardInterrupt:
            interrupted = True
    size = sum(path.stat().st_size for path in paths if path.exists()) / MIB
    print(
        f"{encoded + found + failed} of {len(readers)} images: {encoded} encoded, {found} found, {failed} failed; "
        f"{size:.1f} MiB, {time.perf_counter() - started:.1f} s, {disk.root / disk.namespace}"
    )
    if interrupted:
        _say("stopped; the same command goes on from here")
        sys.exit(130)
    if disk.write_error is not None:
        sys.exit(f"error: stopped, since the last embedding could not be stored: {disk.write_error}")
    if failed:
        sys.exit(1)


def _images_of(what: str, split: str) -> list[Image]:
    """The images of a dataset, an environment id or a folder."""
    known = [*DATASETS.values(), *env_ids()]
    if what in known:
        return _images_of_dataset(what, split)
    folder = Path(what).expanduser()
    if not folder.is_dir():
        near = difflib.get_close_matches(what, known, n=2, cutoff=0.5)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        kind = "is a file; name its folder" if folder.exists() else "is no dataset, environment id or folder"
        raise ValueError(f"{what!r} {kind}.{hint} Known names: {', '.join(known)}; or the path of a folder of images")
    if split != "all":
        raise ValueError(f"a folder has no splits: leave out --split {split}, or name the subfolder")
    from sam_gym.data import read_image

    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not files:
        raise ValueError(f"{folder} and its subfolders hold no image file ({', '.join(SUFFIXES)})")
    return [(str(path), partial(read_image, path)) for path in files]


def _images_of_dataset(what: str, split: str) -> list[Image]:
    import gymnasium

    from sam_gym.data import load_data

    name = str(gymnasium.spec(what).kwargs["dataset"]) if what in env_ids() else what
    splits = ("train", "val", "test") if split == "all" else (split,)
    return [
        (f"{name} {data.split} {image_id}", partial(data.image, image_id))
        for data in (load_data(name, each) for each in splits)
        for image_id in data.image_ids
    ]


# ----------------------------------------------------------------------------------------------------------- cache


@cache.command
def info() -> None:
    """Show what the cache holds and where it lies."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    root = _root()
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
        Console(width=max(80, Console().width if sys.stdout.isatty() else 120)).print(table)
    everything = [file for files in namespaces.values() for file in files]
    stale = embedding_folder.leftovers(root)
    print(f"embeddings   {_mib(everything):>9} MiB, {len(everything)} entries, {len(stale)} leftovers   {root}")
    for name in ("checkpoints", "data"):
        folder = cache_dir() / name
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / MIB
        print(f"{name:<12} {size:>9.1f} MiB   {folder}")


@cache.command
def verify(delete: bool = False) -> None:
    """Check every entry to the last bit; exit status 1 if one is damaged or does not belong where it lies.

    Args:
        delete: Remove such entries. (A run that meets one encodes its image anew and replaces it, so nothing has to.)
    """
    root = _root()
    entries = embedding_folder.entries(root)
    from sam_gym.sam.disk_cache import EntryError, read_entry

    bad = 0
    with progress_bar("verify", len(entries), "entry") as bar:
        for entry in entries:
            try:
                read_entry(entry.path)
            except FileNotFoundError:  # pruned since it was listed
                continue
            except EntryError as error:
                bad += 1
                _say(str(error))
                if delete:
                    entry.path.unlink(missing_ok=True)
            bar.update()
    fate = "" if not bad else ", removed" if delete else "; --delete removes them, and using one replaces it"
    print(f"{len(entries)} entries, {bad} damaged or foreign{fate}: {root}")
    if bad:
        sys.exit(1)


@cache.command
def prune(
    max_gib: Annotated[float | None, tyro.conf.arg(metavar="GIB")] = None,
    unused_days: Annotated[float | None, tyro.conf.arg(metavar="DAYS")] = None,
) -> None:
    """Remove what killed processes left, then the least recently used entries until the limits hold.

    Args:
        max_gib: Entries of all encoders together may take so many GiB.
        unused_days: Entries not used for longer than this go.
    """
    root = _root()
    for option, value in (("--max-gib", max_gib), ("--unused-days", unused_days)):
        if value is not None and not value >= 0:
            raise ValueError(f"{option} must be at least 0, got {value}")
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


# --------------------------------------------------------------------------------------------------------- helpers


def _root() -> Path:
    root = embeddings_dir()
    if root is None:
        raise ValueError("SAM_GYM_EMBEDDINGS=off: there is no embedding cache; unset it, or name a folder in it")
    return root


def _mib(files: Sequence[embedding_folder.CacheFile]) -> str:
    return f"{sum(file.bytes for file in files) / MIB:.1f}"


def _say(message: str) -> None:
    from tqdm import tqdm

    tqdm.write(message, file=sys.stderr)  # above the bar, where there is one
