"""Warnings of RLlib's own: it deprecates what it uses itself, and leaves log files to the garbage collector."""

from __future__ import annotations

from pathlib import Path

import pytest

OWN = (
    "DeprecationWarning",
    "FutureWarning",
    "ResourceWarning",
    "pytest.PytestUnraisableExceptionWarning",
    "UserWarning:ray.*",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Ignore them in the tests of this folder only."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            for kind in OWN:
                item.add_marker(pytest.mark.filterwarnings(f"ignore::{kind}"))
