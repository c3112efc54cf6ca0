"""Threads that decode: one core each, so that a mask is the same to the last bit however many of them there are."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, TypeVar

import torch

from sam_gym.sam.masks import Masks, WindowMasks

Made = TypeVar("Made", Masks, WindowMasks)


def in_parallel(device: torch.device, part: Callable[..., Made], jobs: Sequence[Any]) -> list[Made]:
    """What `part` makes of each job, in order; on a CPU each is done by one of its threads.

    Args:
        device: Where the work is done.
        part: Takes a job, and `each=`, which is given where there is but one job for several threads.
        jobs: What is to be done.
    """
    if device.type != "cpu":
        return [part(job) for job in jobs]
    threads = torch.get_num_threads()
    workers = _workers(os.getpid(), threads)
    if len(jobs) > 1 or threads == 1:
        return list(workers.map(part, jobs))
    lone = _workers(os.getpid(), 1).submit(part, jobs[0], each=workers.map)  # by parts of its cells
    return [lone.result()]


@lru_cache(maxsize=4)
def _workers(process: int, count: int) -> ThreadPoolExecutor:
    """Decoding threads with one compute thread each; a forked child (another pid) gets its own."""
    # The decoder is many small operations: two masks side by side are quicker than each split over two cores.
    return ThreadPoolExecutor(count, "sam-decoder", initializer=lambda: torch.set_num_threads(1))
