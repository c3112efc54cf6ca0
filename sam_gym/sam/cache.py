"""Image embeddings in memory, least recently used first out, limited by bytes; and the key of an image.

The tier beneath it is `sam_gym.sam.disk_cache`. Neither knows of the other: a `Backend` asks one after the other.
"""

from __future__ import annotations

import hashlib
import weakref
from collections import OrderedDict

import numpy as np
import torch
from numpy.typing import NDArray

_known: dict[int, tuple[weakref.ref[NDArray[np.uint8]], str]] = {}
"""Keys of read-only arrays by `id`; an array that goes takes its entry along."""


def content_key(image: NDArray[np.uint8]) -> str:
    """Sha256 of an image's shape and pixels: equal images share one embedding whatever they are called.

    The key of an array that is read-only and owns its pixels, as those of a data set do, is remembered: episodes begin
    on the same arrays again and again.
    """
    entry = _known.get(id(image))
    if entry is not None and entry[0]() is image and not image.flags.writeable:
        return entry[1]
    digest = hashlib.sha256(repr(image.shape).encode())
    digest.update(np.ascontiguousarray(image).data)
    key = digest.hexdigest()
    if image.base is None and not image.flags.writeable:
        number = id(image)
        _known[number] = weakref.ref(image, lambda _: _known.pop(number, None)), key
    return key


class EmbeddingCache:
    """Key -> tensor, holding at most `max_bytes` of tensors (the newest one always stays).

    Args:
        max_bytes: Budget in bytes; MobileSAM's embedding of one image takes 4 MiB in float32.

    Example:
        >>> cache = EmbeddingCache(max_bytes=8)
        >>> cache.put("a", torch.zeros(2)); cache.put("b", torch.zeros(1))
        >>> cache.get("a") is None, cache.get("b").shape
        (True, torch.Size([1]))
    """

    def __init__(self, max_bytes: int) -> None:
        if max_bytes <= 0:
            raise ValueError(f"max_bytes must be positive, got {max_bytes}")
        self.max_bytes = max_bytes
        self._entries: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str) -> torch.Tensor | None:
        """The tensor stored under `key`, now the most recently used, or None."""
        if key in self._entries:
            self._entries.move_to_end(key)
        return self._entries.get(key)

    def put(self, key: str, value: torch.Tensor) -> None:
        """Store `value` and drop the least recently used entries beyond the budget."""
        if (old := self._entries.pop(key, None)) is not None:
            self._bytes -= old.nbytes
        self._entries[key] = value
        self._bytes += value.nbytes
        while self._bytes > self.max_bytes and len(self._entries) > 1:
            _, dropped = self._entries.popitem(last=False)
            self._bytes -= dropped.nbytes
