"""`sam-gym encode`: embed images ahead of a run. The work is done by a backend of `sam_gym.sam`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, as_completed, wait
from contextlib import nullcontext
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import tyro

from sam_gym._utils.naming import question
from sam_gym._utils.progress import progress_bar
from sam_gym.commands.common import MIB, embedding_root, say
from sam_gym.registration import CLASSES, OBJECTS, REPORTS, env_ids

if TYPE_CHECKING:
    from sam_gym.sam.interface import Backend

Image = tuple[str, Callable[[], Any]]
"""What messages call it, and what reads its pixels."""


def encode(
    images: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET|FOLDER")],
    split: Literal["all", "train", "val", "test"] = "all",
    checkpoint: str = "mobile_sam",
    device: str = "auto",
    precision: Literal["auto", "exact", "fast"] = "auto",
    workers: int = 1,
) -> None:
    """Embed images ahead of a run, so that no environment waits for SAM's encoder.

    For example:

        sam-gym encode SamPrompt-ISBI-v0
        sam-gym encode photos --checkpoint vit_b

    Images whose embedding is there already are checked and skipped, so the same command goes on after an interruption.

    Args:
        images: A dataset (isbi2012, synthetic-em), an environment id, or a folder: all its images, those
            of its subfolders included (docs/data.md says of which kinds).
        split: Images of one split of a dataset, or all.
        checkpoint: SAM weights: a name or a file.
        device: Where the encoder runs: auto, cpu, cuda.
        precision: Environments find only what was encoded in their own precision. exact: float32, 4 MiB an image with
            MobileSAM; the default of gymnasium.make. fast: float16, 2 MiB. auto: fast where the hardware has bfloat16,
            else exact; the default of training.
        workers: Processes that share the images, a core or more each, with a SAM of its own each.
    """
    root = embedding_root()
    readers = _images_of(images, split)
    from sam_gym.evaluation.parallel import processes

    which = checkpoint, device, precision, root
    backend = _backend_of(which)  # with --workers too: what is wrong with the checkpoint is said once, and here
    assert backend.disk_cache is not None, "a folder was given"
    started = time.perf_counter()
    done: list[_Done] = []
    interrupted = False
    with (
        progress_bar("encode", len(readers), "image") as bar,
        nullcontext() if workers == 1 else processes(workers) as executor,
    ):
        try:
            for one in _each(executor, workers, which, backend, readers):
                if one.error is not None:
                    say(f"cannot encode {one.name}: {one.error}")
                done.append(one)
                bar.update()
                if one.unwritten is not None:
                    break
        except KeyboardInterrupt:
            interrupted = True
    encoded, failed = sum(one.encoded for one in done), sum(one.error is not None for one in done)
    found = len(done) - encoded - failed
    paths = {one.path for one in done if one.path is not None}
    unwritten = next((one.unwritten for one in done if one.unwritten is not None), None)
    size = sum(path.stat().st_size for path in paths if path.exists()) / MIB
    print(
        f"{len(done)} of {len(readers)} images: {encoded} encoded, {found} found, {failed} failed; "
        f"{size:.1f} MiB, {time.perf_counter() - started:.1f} s, {root / backend.disk_cache.namespace}"
    )
    if interrupted:
        say("stopped; the same command goes on from here")
        sys.exit(130)
    if unwritten is not None:
        sys.exit(f"error: stopped, since the last embedding could not be stored: {unwritten}")
    if failed:
        sys.exit(1)


class _Done(NamedTuple):
    """What became of an image: its entry, whether it was encoded now, why not, and why it could not be stored."""

    name: str
    path: Path | None = None
    encoded: int = 0
    error: str | None = None
    unwritten: str | None = None


Which = tuple[str, str, str, Path]
"""Checkpoint, device, precision and folder of a backend."""


def _each(
    executor: Executor | None, workers: int, which: Which, backend: Backend, images: list[Image]
) -> Iterator[_Done]:
    """Embed all images, by an executor's processes or, without one, here; in the order in which they are done.

    This process reads them, since data sets are here already, and only a few ahead: they need not all fit in memory.
    """
    waiting: set[Future[_Done]] = set()
    for name, read in images:
        try:
            pixels = read()
        except _unreadable() as error:
            yield _Done(name, error=str(error))
            continue
        if executor is None:
            yield _encode(backend, name, pixels)
            continue
        waiting.add(executor.submit(_encode_there, which, name, pixels))
        if len(waiting) >= 2 * workers:
            finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in finished)
    yield from (future.result() for future in as_completed(waiting))


def _encode(backend: Backend, name: str, pixels: Any) -> _Done:
    disk = backend.disk_cache
    assert disk is not None, "a folder was given"
    before = backend.encoder_calls
    try:
        path = disk.path(backend.encode([pixels])[0].key)
    except _unreadable() as error:
        return _Done(name, error=str(error))
    unwritten = None if disk.write_error is None else str(disk.write_error)
    return _Done(name, path, backend.encoder_calls - before, unwritten=unwritten)


def _unreadable() -> tuple[type[Exception], ...]:
    """Errors that tell what is wrong with an image."""
    from PIL.Image import DecompressionBombError

    return ValueError, OSError, DecompressionBombError


def _encode_there(which: Which, name: str, pixels: Any) -> _Done:
    return _encode(_backend_there(which), name, pixels)


@lru_cache(maxsize=1)
def _backend_there(which: Which) -> Backend:
    """The backend of another process."""
    return _backend_of(which)


def _backend_of(which: Which) -> Backend:
    from sam_gym.sam.backend import make_backend

    checkpoint, device, precision, root = which
    return make_backend(checkpoint, device, precision, cache_bytes=1, disk_cache=root)


def _images_of(what: str, split: str) -> list[Image]:
    """The images of a dataset, an environment id or a folder."""
    known = [*dict.fromkeys([*OBJECTS.values(), *CLASSES.values(), *REPORTS.values()]), *env_ids()]
    if what in known:
        return _images_of_dataset(what, split)
    folder = Path(what).expanduser()
    if not folder.is_dir():
        kind = "is a file; name its folder" if folder.exists() else "is no dataset, environment id or folder"
        known_names = f"Known names: {', '.join(known)}; or the path of a folder of images"
        raise ValueError(f"{what!r} {kind}.{question(what, known)} {known_names}")
    if split != "all":
        raise ValueError(f"a folder has no splits: leave out --split {split}, or name the subfolder")
    from sam_gym.data.formats import find_pictures

    return [(str(folder / name), read) for name, read in find_pictures(folder).items()]


def _images_of_dataset(what: str, split: str) -> list[Image]:
    import gymnasium
    from gymnasium.envs.registration import load_env_creator

    from sam_gym.data import load_data, load_whole_class
    from sam_gym.data.windows import load_windows

    load: Callable[..., Any] = load_data
    name = what
    if what in env_ids():
        spec = gymnasium.spec(what)
        name = str(spec.kwargs["dataset"])
        made: Any = load_env_creator(str(spec.entry_point))
        if made.settings_class.whole_class:  # its images may be tiles
            load = load_whole_class
        if made.settings_class.describes:
            load = partial(load_windows, side=spec.kwargs.get("window_side", 0) or None)
    splits = ("train", "val", "test") if split == "all" else (split,)
    return [
        (f"{name} {data.split} {image_id}", partial(data.image, image_id))
        for data in (load(name, each) for each in splits)
        for image_id in data.image_ids
    ]
