"""`sam-gym encode`: embed images ahead of a run. The work is done by a backend of `sam_gym.sam`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from sam_gym._utils.naming import question
from sam_gym._utils.progress import progress_bar
from sam_gym.commands.common import MIB, embedding_root, say
from sam_gym.registration import CLASSES, OBJECTS, REPORTS, env_ids

Image = tuple[str, Callable[[], Any]]
"""What messages call it, and what reads its pixels."""


def encode(
    images: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET|FOLDER")],
    split: Literal["all", "train", "val", "test"] = "all",
    checkpoint: str = "mobile_sam",
    device: str = "auto",
    precision: Literal["auto", "exact", "fast"] = "auto",
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
    """
    root = embedding_root()
    readers = _images_of(images, split)
    from PIL.Image import DecompressionBombError

    from sam_gym.sam.backend import make_backend

    backend = make_backend(checkpoint, device, precision, cache_bytes=1, disk_cache=root)
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
                    say(f"cannot encode {name}: {error}")
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
        say("stopped; the same command goes on from here")
        sys.exit(130)
    if disk.write_error is not None:
        sys.exit(f"error: stopped, since the last embedding could not be stored: {disk.write_error}")
    if failed:
        sys.exit(1)


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
            load = partial(load_windows, side=spec.kwargs.get("window", 0) or None)
    splits = ("train", "val", "test") if split == "all" else (split,)
    return [
        (f"{name} {data.split} {image_id}", partial(data.image, image_id))
        for data in (load(name, each) for each in splits)
        for image_id in data.image_ids
    ]
