"""The package as a whole: what its import costs and leaves behind."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gymnasium
import pytest
import yaml

import sam_gym
from sam_gym.version import __version__

MakeEnv = Callable[..., gymnasium.Env]


IMPORT = """
import sys, time
start = time.perf_counter()
import numpy, gymnasium
needed = time.perf_counter() - start
import sam_gym
took = time.perf_counter() - start
heavy = {"torch", "scipy", "PIL", "timm", "segment_anything", "open_clip", "onnx", "stable_baselines3", "pooch", "rich"}
print(took, needed, *sorted(heavy & set(sys.modules)))
"""


def test_import_is_light() -> None:
    """Under 0.3 s, or a quarter more than numpy and gymnasium take by themselves where the machine is slow or busy."""
    times = []
    for _ in range(8):
        took, needed, *heavy = subprocess.run(
            [sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True
        ).stdout.split()
        assert not heavy
        times.append((float(took), float(needed)))
        if times[-1][0] < max(0.3, 1.25 * times[-1][1]):
            return
    pytest.fail(f"import sam_gym took too long, (whole, numpy and gymnasium) in seconds: {times}")


def test_no_method_is_taken_for_a_goal_environment(make_env: MakeEnv) -> None:
    assert not hasattr(make_env().unwrapped, "compute_reward")


def test_registration_is_idempotent() -> None:
    before = dict(gymnasium.registry)
    sam_gym.register_envs()
    assert dict(gymnasium.registry) == before
    assert set(sam_gym.env_ids()) <= set(before)


def test_the_citation_is_of_this_version() -> None:
    said = yaml.safe_load((Path(__file__).parents[1] / "CITATION.cff").read_text(encoding="utf-8"))
    assert said.keys() >= {"cff-version", "message", "title", "authors"}  # what its format needs
    assert (said["version"], said["license"], said["type"]) == (__version__, "Apache-2.0", "software")
    for work in said["references"]:
        assert work.keys() >= {"type", "title", "authors", "year"}
