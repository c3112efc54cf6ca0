"""Settings of the tests of sam_gym.sb3: generated sections, a SAM of random weights."""

from __future__ import annotations

from typing import Any

import pytest

ENV_ID = "SamPrompt-Synthetic-v0"


@pytest.fixture(scope="session")
def small() -> dict[str, Any]:
    """Arguments of `gymnasium.make`: eight generated sections, milliseconds a decode."""
    return {"id": ENV_ID, "split": "val", "checkpoint": "tiny_random", "device": "cpu"}
