"""Fixtures of the data tests: a loader that remembers nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from sam_gym._utils import fetching
from sam_gym.data import datasets, sources


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Empty in-process caches, no $SAM_GYM_DATA, an empty cache folder (returned)."""
    for module, name in ((datasets, "_loaded"), (datasets, "_unlimited")):
        monkeypatch.setattr(module, name, {})
    for module, name in ((datasets, "_given_up"), (sources, "_verified")):
        monkeypatch.setattr(module, name, set())
    monkeypatch.delenv("SAM_GYM_DATA", raising=False)
    monkeypatch.setenv("SAM_GYM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No network; the list fills with the URLs that were asked for."""
    asked: list[str] = []

    def fail(url: str, *_args: object, **_kwargs: object) -> None:
        asked.append(url)
        raise fetching.FetchError(f"{url}: ConnectionError: no route")

    monkeypatch.setattr(fetching, "download", fail)
    return asked


@pytest.fixture
def real(fresh: Path, real_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh loader with $SAM_GYM_DATA at the real files."""
    monkeypatch.setenv("SAM_GYM_DATA", str(real_folder))
    return real_folder
