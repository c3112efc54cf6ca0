"""Run by test_cache_processes.py in a process of its own: fork writers and kill each with SIGKILL.

python kill_writers.py FOLDER NAMESPACE KILLS. Each writer stores entries whose every number is the same, and which says
key and generation, so that the halves of two entries could not be taken for a whole one.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from sam_gym.sam.disk_cache import DiskCache

KEYS = [f"{number:x}" * 64 for number in range(8)]
SHAPE = (256, 16, 16)  # float16: 128 KiB


def write_forever(cache: DiskCache, seed: int) -> None:
    for generation in itertools.count(seed):
        number = generation % len(KEYS)
        value = number * 256 + generation % 256  # whole numbers up to 2048 are exact in float16
        cache.put(KEYS[number], torch.full(SHAPE, value, dtype=torch.float16), (1, 1))


def die_within_a_write(byte: int) -> None:
    """From here on, this process ends at that byte of the first file it writes."""

    def write(path: Path, content: bytes) -> None:
        with open(path, "wb") as file:
            file.write(content[: byte % len(content)])
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    Path.write_bytes = write  # type: ignore[method-assign,assignment]


def main() -> None:
    cache = DiskCache(Path(sys.argv[1]), sys.argv[2])
    draw = random.Random(0)
    for kill in range(int(sys.argv[3])):
        wait, byte = draw.uniform(0, 0.02), draw.randrange(2**30)
        child = os.fork()
        if not child:
            if kill % 4 == 0:
                die_within_a_write(byte)
            write_forever(cache, kill)
        if kill % 4:
            time.sleep(wait)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL


if __name__ == "__main__":
    main()
