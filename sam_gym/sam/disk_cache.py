"""The disk tier of the embedding cache: one safetensors file per image, checked to the last bit before it is used.

An entry that is truncated, damaged, or made by another encoder is reported and never used; a disk that cannot be
written to is reported once and otherwise does no harm. This file does not know when to encode (`SamBackend` does),
keeps nothing in memory (`sam_gym.sam.cache` does), and never removes an entry (`sam_gym.sam.embedding_folder` does).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import safe_open
from segment_anything.modeling import Sam
from torch import Tensor

from sam_gym._utils.fetching import atomic_path
from sam_gym._utils.naming import first_line
from sam_gym.sam.embedding_folder import entry_path
from sam_gym.sam.weights_files import pack_notes, unpack_notes

PREPROCESSING_VERSION = 1
"""Grows when the same weights give another embedding of the same pixels: another resizing, padding or encoder code."""

FORMAT = 1
"""Version of the files' layout."""


class EntryError(ValueError):
    """A file of the cache must not be used; the message names it and says why."""


def encoder_id(sam: Sam) -> str:
    """Twelve hexadecimal digits that name an image encoder: equal for two models exactly if their embeddings are.

    A sha256 over names, dtypes, shapes and bytes of the encoder's weights, the pixel mean and deviation, and the side
    of its input. Prompt encoder and mask decoder do not count, so that fine-tuned decoders share embeddings.
    """
    pixels = {"pixel_mean": sam.pixel_mean, "pixel_std": sam.pixel_std}
    return weights_id(f"side {sam.image_encoder.img_size}", pixels | sam.image_encoder.state_dict())


def weights_id(about: str, tensors: Mapping[str, Tensor]) -> str:
    """Twelve hexadecimal digits of a sha256 over a text and over names, dtypes, shapes and bytes of tensors."""
    digest = hashlib.sha256(about.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()[:12]


def namespace_of(encoder: Sam | str, dtype: torch.dtype) -> str:
    """Name of the folder for embeddings of one encoder (a `Sam`, or its identity) in one dtype, float16 or float32."""
    identity = encoder if isinstance(encoder, str) else encoder_id(encoder)
    return f"{identity}-p{PREPROCESSING_VERSION}-{_name(dtype)}"


class DiskCache:
    """Embeddings of one encoder in a folder that any number of processes may read and fill at once.

    Args:
        root: Folder of the whole cache; it is made when the first entry is written.
        namespace: Encoder and dtype, as `namespace_of` names them.

    Attributes:
        root, namespace: As given.
        write_error: Why entries cannot be written, or None. After the first failure no other write is tried.

    Raises:
        ValueError: `root` is a file.
    """

    def __init__(self, root: Path, namespace: str) -> None:
        if root.is_file():
            raise ValueError(f"the folder of image embeddings, {root}, is a file; name a folder in SAM_GYM_EMBEDDINGS")
        self.root = root
        self.namespace = namespace
        self.write_error: OSError | None = None

    def path(self, key: str) -> Path:
        """The file of an image, whether it is there or not."""
        return entry_path(self.root, self.namespace, key)

    def get(self, key: str) -> Tensor | None:
        """Read and check an entry.

        Args:
            key: Content hash of the image.

        Returns:
            (C, h, w) on the CPU, channels last, in memory of its own; None if there is no entry that can be used.

        Warns:
            UserWarning: There is one, but it is damaged or foreign; the warning names the file and the cause.
        """
        path = self.path(key)
        try:
            features = read_entry(path)
        except FileNotFoundError:
            return None
        except EntryError as error:
            warnings.warn(f"{error}. It is not used; the image is encoded anew.", stacklevel=2)
            return None
        # The time of use is a hint for `prune`. A folder that others may only read from serves its embeddings all the
        # same, and a file that has just been pruned was read before it went.
        with contextlib.suppress(OSError):
            os.utime(path)
        return features.permute(2, 0, 1)

    def put(self, key: str, features: Tensor, image_size: tuple[int, int]) -> None:
        """Write an entry, in place of any other of this key; readers see the whole of it or nothing.

        Args:
            key: Content hash of the image.
            features: (C, h, w) of this cache's dtype, on any device; quickest in channels last.
            image_size: (H, W) of the image in pixels, for the record.

        Raises:
            ValueError: The features have another dtype.

        Warns:
            UserWarning: The file cannot be written. Said once; later calls do nothing.
        """
        if _name(features.dtype) != _dtype_of(self.namespace):
            raise ValueError(f"{self.namespace} takes {_dtype_of(self.namespace)} features, got {features.dtype}")
        if self.write_error is not None:
            return
        tensor = features.permute(1, 2, 0).cpu().contiguous()
        record = _record(self.namespace, key, tensor, image_size)
        metadata = pack_notes(record | {"sha256": _digest(record, tensor)})
        try:
            with atomic_path(self.path(key)) as temporary:
                temporary.write_bytes(safetensors.torch.save({"embedding": tensor}, metadata))
        except OSError as error:
            self.write_error = error
            warnings.warn(
                f"image embeddings cannot be stored in {self.root}: {error}. They are kept in memory only, and other "
                "processes encode the same images again. Ways out: free space on that disk; `sam-gym cache prune "
                "--max-gib 1` drops the embeddings used least recently; the environment variable SAM_GYM_EMBEDDINGS "
                "names another folder, or `off` for none.",
                stacklevel=2,
            )


def read_entry(path: Path) -> Tensor:
    """Read an entry and check it against its place: its own name is the key, the folder's the namespace.

    Args:
        path: `<root>/<namespace>/<first two digits of key>/<key>.safetensors`.

    Returns:
        (h, w, C), on the CPU, in memory of its own: what was checked stays as it is whatever becomes of the file.

    Raises:
        FileNotFoundError: There is none.
        EntryError: It cannot be read, is damaged, or is the entry of another image, encoder or dtype.
    """
    try:
        with safe_open(path, framework="pt") as file:  # maps the file into memory
            found = unpack_notes(file.metadata())
            # Copied, because a mapping changes with the file, or ends the process if the file is cut short.
            tensor = file.get_tensor("embedding").clone()
            expected = _record(path.parent.parent.name, path.stem, tensor, found["image_size"])
            expected["sha256"] = _digest(expected, tensor)
    except FileNotFoundError:
        raise
    except Exception as error:  # safetensors, torch, json and the file system each have their own
        raise EntryError(
            f"{path} cannot be read as an image embedding of sam_gym: {type(error).__name__}: {first_line(error)}"
        ) from error
    checks = {what: (found.get(what), wanted) for what, wanted in expected.items()}
    checks["dtype of tensor"] = expected["dtype"], _dtype_of(path.parent.parent.name)
    checks["folder"] = path.parent.name, path.stem[:2]
    for what, (actual, wanted) in checks.items():
        if actual != wanted:
            raise EntryError(f"{path} is damaged or belongs elsewhere: its {what} is {actual!r}, expected {wanted!r}")
    return tensor


def _record(namespace: str, key: str, tensor: Tensor, image_size: tuple[int, int] | list[int]) -> dict[str, Any]:
    """What an entry says of itself, in the order in which it is checked."""
    return {
        "format": FORMAT,
        "key": key,
        "namespace": namespace,
        "dtype": _name(tensor.dtype),
        "shape": list(tensor.shape),
        "image_size": list(image_size),
    }


def _digest(record: dict[str, Any], tensor: Tensor) -> str:
    """Sha256 of the record and the tensor's bytes together, so that neither changes unnoticed."""
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode())
    digest.update(tensor.numpy().data)
    return digest.hexdigest()


def _dtype_of(namespace: str) -> str:
    return namespace.rpartition("-")[2]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
