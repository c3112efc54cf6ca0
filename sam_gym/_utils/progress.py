"""The progress bar of everything that takes long."""

from __future__ import annotations

import sys

from tqdm import tqdm

TERMINAL_SECONDS, LOG_SECONDS = 0.1, 30.0


def progress_bar(name: str, total: int, unit: str, *, done: int = 0, shown: bool = True, patience: float = 0) -> tqdm:
    """A bar on stderr; where that is a file or a pipe it writes every 30 seconds instead of ten times a second.

    Args:
        name: What is going on.
        total: Units in all.
        unit: Of what.
        done: Units done before.
        shown: False shows nothing.
        patience: Seconds before it is shown.
    """
    pause = TERMINAL_SECONDS if sys.stderr.isatty() else LOG_SECONDS
    return tqdm(
        total=total, initial=done, desc=f"{name:>14}", unit=unit, disable=not shown, smoothing=0.1,
        mininterval=pause, maxinterval=max(pause, 10.0), delay=patience,
    )  # fmt: skip
