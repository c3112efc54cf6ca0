"""Files of weights: how tensors are read out of a file and written into one, and the hash by which a file is known.

Files of others come in several wrappings, which are taken off here. This file knows neither names, downloads nor the
cache (`sam_gym.sam.sources`), nor what belongs to a model (`sam_gym.sam.architectures`).
"""

from __future__ import annotations

import functools
import json
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from sam_gym._utils.fetching import sha256_of
from sam_gym._utils.naming import first_line
from sam_gym.sam.architectures import recognise
from sam_gym.sam.tiny_vit import rename_official

State = dict[str, torch.Tensor]

WRAPPERS = ("model", "state_dict", "model_state_dict", "model_state")
"""Keys under which training scripts put the weights beside other things: MedSAM's, Lightning's, torch's tutorials',
torch_em's."""

_PARTS = re.compile(r"((?:.*?\.)??)(?:image_encoder|prompt_encoder|mask_decoder)\.")
_NOTES = "sam_gym"  # key of a safetensors file's metadata


class CheckpointError(RuntimeError):
    """Weights could not be had, read or recognised; the message says why and what to do."""


def _read_pickle(path: Path) -> Any:
    # Mapped, a file of 2.5 GB is not in memory twice while it is copied into a model, and its shapes cost nothing.
    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


_READERS: dict[str, Callable[[Path], Any]] = {
    ".pt": _read_pickle,
    ".pth": _read_pickle,
    ".safetensors": safetensors.torch.load_file,
}

SUFFIXES = tuple(_READERS)
"""How the names of files of weights end."""


def check_is_file(path: Path) -> None:
    """Raise `CheckpointError` unless `path` is an existing file of a known kind."""
    if path.suffix not in SUFFIXES:
        raise CheckpointError(f"{path}: a checkpoint is a file that ends in {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file")


def sha256_once(path: Path) -> str:
    """Sha256 of a file, computed once in a process as long as the file stays as it is; 2.5 GB take seconds."""
    stat = path.stat()
    return _sha256(path.resolve(), (stat.st_ino, stat.st_size, stat.st_mtime_ns))


@functools.lru_cache(maxsize=64)
def _sha256(path: Path, identity: tuple[int, ...]) -> str:
    return sha256_of(path)


def read(path: Path) -> State:
    """The tensors of a file, by the names that they have in a `Sam`.

    A state dict may lie under one of the keys `WRAPPERS`, and all its names may have a prefix in front of
    `image_encoder`, `prompt_encoder` or `mask_decoder` (`module.`, `sam.`, ...); both are taken off. MobileSAM's
    official names are translated.

    Args:
        path: A `.pt`, `.pth` or `.safetensors` file.

    Returns:
        Tensors on the CPU, of the dtypes of the file. They may be mapped from it: copy them before it changes.

    Raises:
        CheckpointError: There is no such file, it is damaged, or holds something else.
    """
    check_is_file(path)
    try:
        content = _READERS[path.suffix](path)
    except Exception as error:  # pickle, zip and safetensors each have their own
        raise _unreadable(path, error) from error
    if isinstance(content, Mapping):
        content = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), content)
    if not (isinstance(content, Mapping) and all(isinstance(value, torch.Tensor) for value in content.values())):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__} that is not a plain dict of tensors, nor has one under "
            f"{', '.join(map(repr, WRAPPERS))}; save it anew with torch.save(model.state_dict(), path)."
        )
    return rename_official(_without_prefix(content))


def _without_prefix(state: Mapping[str, torch.Tensor]) -> State:
    prefixes = {match[1] if (match := _PARTS.match(name)) else "" for name in state}
    prefix = prefixes.pop() if len(prefixes) == 1 else ""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}


def read_sam(path: Path) -> tuple[State, str]:
    """The state dict of a whole SAM and its architecture.

    Args:
        path: As for `read`.

    Raises:
        CheckpointError: As `read`; or the file holds a decoder alone, or no architecture that is known.
    """
    state = read(path)
    parts = {name.split(".")[0] for name in state}
    if any(name.startswith("image_encoder.trunk.") for name in state):
        raise CheckpointError(
            f"{path} is a SAM 2 in Meta's form, which is not read here. Convert it to a folder with transformers' own "
            "script (docs/backends.md, 'SAM 2', names it), and pass the path of that folder"
        )
    if "mask_decoder" in parts and "image_encoder" not in parts:
        raise CheckpointError(
            f"{path} holds a mask decoder without an image encoder. Say which checkpoint it belongs on: "
            f"'BASE+FILE', as in 'vit_b+{path}', where BASE is the name of a checkpoint or the path of a whole SAM."
        )
    try:
        return state, recognise(state)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def pack_notes(notes: Mapping[str, Any]) -> dict[str, str]:
    """JSON-able notes as the metadata of a safetensors file."""
    # All under one key, since safetensors writes several in an order that changes from process to process.
    return {_NOTES: json.dumps(dict(notes), sort_keys=True)}


def unpack_notes(metadata: Mapping[str, str] | None) -> dict[str, Any]:
    """The notes in the metadata of a safetensors file; nothing where somebody else wrote it."""
    return json.loads((metadata or {}).get(_NOTES, "{}"))


def write(path: Path, state: Mapping[str, torch.Tensor], notes: Mapping[str, str]) -> None:
    """Write a safetensors file; equal tensors and notes make equal files, bit by bit.

    Args:
        path: The file, replaced if it is there.
        state: The tensors, from any device.
        notes: What shall stand beside them; `read_notes` gives it back.

    Raises:
        OSError: The file cannot be written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    try:
        safetensors.torch.save_file(tensors, path, pack_notes(notes))
    except safetensors.SafetensorError as error:  # what it makes of a full disk or a missing folder
        raise OSError(str(error)) from error


def read_notes(path: Path) -> dict[str, str]:
    """What `write` noted in a file; nothing for files that were written otherwise.

    Args:
        path: An existing file of weights; its tensors are not read.

    Raises:
        CheckpointError: It is a safetensors file, and damaged.
    """
    if path.suffix != ".safetensors":
        return {}
    try:
        with safetensors.safe_open(path, "pt") as file:
            return unpack_notes(file.metadata())
    except Exception as error:  # safetensors' own, OSError or bad JSON
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path} ({path.stat().st_size:,} bytes) cannot be read as a {path.suffix} file of tensors: "
        f"{type(error).__name__}: {first_line(error)} It is probably truncated or not a checkpoint: fetch it again, or "
        "save it anew with torch.save(model.state_dict(), path)."
    )
