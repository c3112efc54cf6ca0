"""One SAM for everybody: what needs it waits in a queue, and the page can ask how long the queue is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


class ModelQueue:
    """Runs one thing at a time, in the order in which they come, in a thread of its own."""

    def __init__(self) -> None:
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="sam")
        self._waiting = 0
        self._doing: tuple[str, float] | None = None
        self._took: dict[str, float] = {}

    async def run(self, what: str, work: Callable[[], T]) -> T:
        """Wait for one's turn, and do it.

        Args:
            what: What the page calls it, such as "encode".
            work: The work.
        """

        def timed() -> T:
            start = time.monotonic()
            self._doing = what, start
            try:
                return work()
            finally:
                self._took[what] = time.monotonic() - start
                self._doing = None

        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._worker, timed)
        finally:
            self._waiting -= 1

    def status(self) -> dict[str, Any]:
        """What goes on: `doing` and for how many `seconds`, how long such a thing `took` last, how many wait in all."""
        doing = self._doing
        what, start = doing if doing else (None, time.monotonic())
        return {
            "doing": what,
            "seconds": round(time.monotonic() - start, 2),
            "took": round(self._took.get(what or "", 0.0), 2),
            "waiting": self._waiting,
        }

    def close(self) -> None:
        """No more work; what runs is waited for."""
        self._worker.shutdown(cancel_futures=True)
