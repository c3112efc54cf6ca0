"""`sam-gym play`: what it refuses before it begins, and that it serves what it says until it is stopped."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["SamPromt-DSB-v1"], "did you mean 'SamPrompt-DSB-v1'?"),
        (["--images", "none"], "--images none is no folder"),
        (["--images", "empty"], "hold no image file"),
        (["--host", "0.0.0.0"], "give --token as well"),
        (["--agent", "none.zip"], "there is no model none.zip"),
        (["--host", "192.0.2.1", "--token", "new"], "cannot listen on 192.0.2.1"),
    ],
)
def test_refused(
    run: Callable[..., tuple[int, str, str]], words: list[str], message: str, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    agent = [] if "--agent" in words else ["--agent", "none"]
    status, _, err = run("play", *words, *agent, "--checkpoint", "tiny_random")
    assert status == 1
    assert err.startswith("error: ")
    assert message in err


def test_it_serves_until_it_is_stopped(tmp_path: Path, sections: Any) -> None:
    (tmp_path / "images").mkdir()
    Image.fromarray(sections.image(0)).save(tmp_path / "images" / "a.png")
    words = [
        "play",
        "--images",
        "images",
        "--port",
        "0",
        "--agent",
        "none",
        "--checkpoint",
        "tiny_random",
        "--token",
        "new",
    ]
    program = "from sam_gym.cli import main; main()"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    server = subprocess.Popen(
        [sys.executable, "-c", program, *words], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    )
    try:
        assert server.stderr is not None
        found = re.search(r"open (http://127\.0\.0\.1:\d+/)#token=(\S+) in a browser", server.stderr.readline())
        assert found is not None
        headers = {"X-Sam-Gym-Token": found[2], "X-Sam-Gym-Browser": "browser-of-me"}
        request = urllib.request.Request(f"{found[1]}api/annotate/images", headers=headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert json.load(answer) == [{"name": "a.png", "accepted": 0, "taken": None}]
        server.send_signal(signal.SIGINT)
        said = server.communicate(timeout=60)[1]
        assert server.returncode in (0, 130, -signal.SIGINT)
        assert "Traceback" not in said
    finally:
        server.kill()
        server.communicate()
