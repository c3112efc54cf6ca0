"""The cache folder's upkeep: what goes, in which order, and what is left alone."""

from __future__ import annotations

import os
import time
from pathlib import Path

from sam_gym.sam import embedding_folder

NAMESPACE = "0123456789ab-p1-float16"
SIZE, DAY = 100, 86_400


def fill(folder: Path, count: int) -> list[Path]:
    """Entries of equal size, the first used longest ago, ten days apart."""
    paths = [embedding_folder.entry_path(folder, NAMESPACE, f"{15 - index:x}" * 64) for index in range(count)]
    for age, path in enumerate(reversed(paths)):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x" * SIZE)
        os.utime(path, (time.time() - 10 * DAY * age,) * 2)
    return paths


def test_entries_come_in_the_order_of_their_use(tmp_path: Path) -> None:
    assert embedding_folder.entries(tmp_path / "none") == []
    paths = fill(tmp_path, 4)
    files = embedding_folder.entries(tmp_path)
    assert [file.path for file in files] == paths
    assert {(file.bytes, file.namespace) for file in files} == {(SIZE, NAMESPACE)}


def test_prune_by_size_and_by_age(tmp_path: Path) -> None:
    paths = fill(tmp_path, 6)
    assert embedding_folder.prune(tmp_path, max_bytes=6 * SIZE) == ([], [])
    _, removed = embedding_folder.prune(tmp_path, max_bytes=5.5 * SIZE)
    assert [file.path for file in removed] == paths[:1]
    _, removed = embedding_folder.prune(tmp_path, unused_seconds=25 * DAY)
    assert [file.path for file in removed] == paths[1:3]
    _, removed = embedding_folder.prune(tmp_path, max_bytes=SIZE, unused_seconds=15 * DAY)
    assert [file.path for file in removed] == paths[3:5]
    assert [file.path for file in embedding_folder.entries(tmp_path)] == paths[5:]


def test_prune_leaves_writers_and_strangers_alone(tmp_path: Path) -> None:
    (path,) = fill(tmp_path, 1)
    writing = path.parent / f".{path.name}.abcdefgh"
    stale = path.parent / f".{path.name}.stalestl"
    strangers = [tmp_path / "notes" / "ab" / "model.safetensors", path.parent / "notes.txt", tmp_path / "x.safetensors"]
    for file in (writing, stale, *strangers):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")
    for file in (stale, *strangers):
        os.utime(file, (1e9, 1e9))
    assert [file.path for file in embedding_folder.leftovers(tmp_path)] == [stale]
    embedding_folder.prune(tmp_path, max_bytes=0)
    assert not stale.exists()
    assert not path.exists()
    assert all(file.exists() for file in (writing, *strangers))
