"""The trainings of benchmarks: each is agents/train_ppo.py in a folder of its own, and is done once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def from_root(path: Path) -> str:
    """A path as records shall hold it: without the folders of this machine."""
    return os.path.relpath(path, ROOT)


def command(*arguments: str) -> None:
    """Run a script of this repository, from its root."""
    subprocess.run([sys.executable, *arguments], check=True, cwd=ROOT)


def finished(run: Path, arguments: Sequence[str], train: bool) -> bool:
    """Whether a run is finished.

    Args:
        run: Its folder.
        arguments: What it is begun with.
        train: If it is not finished, train it now: begin it, or take it up where it was interrupted.
    """
    if train and not (run / "record.json").is_file():
        begun = (run / "state.json").is_file()
        how = ["--resume", from_root(run)] if begun else [*arguments, "--run-dir", from_root(run)]
        command("agents/train_ppo.py", *how)
    return (run / "record.json").is_file()
