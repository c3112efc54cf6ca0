"""The progress bar of everything that takes long, and the steps of whatever is trained with one."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

from tqdm import tqdm

TERMINAL_SECONDS, LOG_SECONDS = 0.1, 30.0
STORE_SECONDS = 60.0


class Trainer(Protocol):
    """What `run_with_bar` runs. `settings` has `steps`, those in all."""

    settings: Any

    @property
    def steps_done(self) -> int:
        """Steps so far, those before an interruption among them."""
        ...

    def run(self, after_step: Callable[[Any, float], None]) -> None:
        """Run the steps that are left; after each, `after_step(trainer, loss)`."""
        ...

    def store(self) -> None:
        """Keep what is needed to go on."""
        ...


def run_with_bar(
    trainer: Trainer,
    name: str,
    *,
    decimals: int = 3,
    memory: float = 0.95,
    after: Callable[[], None] = lambda: None,
) -> None:
    """Run the steps that are left; what is done is stored every minute, and before Ctrl-C goes on.

    Args:
        trainer: What is trained.
        name: What is going on.
        decimals: Of the loss that is shown.
        memory: Share of what was shown before in what is shown, so that it does not jump.
        after: Called after each step.
    """
    last_stored = time.monotonic()
    recent: float | None = None
    with progress_bar(name, trainer.settings.steps, "step", done=trainer.steps_done) as bar:

        def after_step(_: Any, loss: float) -> None:
            nonlocal last_stored, recent
            recent = loss if recent is None else memory * recent + (1 - memory) * loss
            bar.set_postfix_str(f"loss {recent:.{decimals}f}", refresh=False)
            bar.update()
            after()
            if time.monotonic() - last_stored > STORE_SECONDS:
                trainer.store()
                last_stored = time.monotonic()

        try:
            trainer.run(after_step)
        except KeyboardInterrupt:
            trainer.store()
            raise


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
