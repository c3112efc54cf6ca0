"""The disk tier among processes: writers that are killed, and two that fill one folder at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from sam_gym.sam import SamBackend, embedding_folder
from sam_gym.sam.disk_cache import read_entry

NAMESPACE = "0123456789ab-p1-float16"
SCRIPT = Path(__file__).with_name("kill_writers.py")


def test_killed_writers_leave_no_half_entry(tmp_path: Path) -> None:
    """200 writers killed by SIGKILL: 150 at any time, 50 within a write. Every entry is one of those written whole."""
    subprocess.run([sys.executable, str(SCRIPT), str(tmp_path), NAMESPACE, "200"], check=True, timeout=300)
    entries = embedding_folder.entries(tmp_path)
    assert len(entries) == 8
    for entry in entries:
        tensor = read_entry(entry.path)
        assert tensor.shape == (16, 16, 256)
        assert (tensor == tensor[0, 0, 0]).all()
        assert int(tensor[0, 0, 0]) // 256 == int(entry.path.stem[0], 16)
    temporary = list(tmp_path.glob("*/??/.*"))
    assert len(temporary) >= 50
    assert any(0 < path.stat().st_size < entries[0].bytes for path in temporary)
    for path in temporary:
        os.utime(path, (1e9, 1e9))
    stale, removed = embedding_folder.prune(tmp_path)
    assert (len(stale), removed) == (len(temporary), [])
    assert not list(tmp_path.glob("*/??/.*"))


FILL = """
import sys
from pathlib import Path
import numpy as np
from sam_gym.sam import SamBackend
backend = SamBackend("tiny_random", "cpu", disk_cache=Path(sys.argv[1]))
images = [np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8) for seed in range(30)]
print("ready", flush=True)
sys.stdin.readline()
backend.encode(images)
"""


def test_two_processes_fill_one_cache(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error::UserWarning", "-c", FILL, str(tmp_path)]
    fillers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for filler in fillers:
        assert filler.stdout is not None
        assert filler.stdout.readline() == "ready\n"
    for filler in fillers:  # both begin now
        assert filler.stdin is not None
        filler.stdin.write("\n")
        filler.stdin.flush()
    for filler in fillers:
        filler.communicate(timeout=120)
        assert filler.returncode == 0
    images = [np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8) for seed in range(30)]
    plain, reader = (SamBackend("tiny_random", "cpu", disk_cache=folder) for folder in (None, tmp_path))
    for computed, read in zip(plain.encode(images), reader.encode(images), strict=True):
        assert torch.equal(computed.features, read.features)
    assert reader.encoder_calls == 0
    assert not list(tmp_path.glob("*/??/.*"))
