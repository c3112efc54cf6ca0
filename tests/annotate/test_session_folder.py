"""What is saved of sessions: label images, COCO, a log; nobody overwrites anybody, and nothing is half written."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sam_gym.annotate import Segment, Segmenter, Session
from sam_gym.annotate.session_folder import CLAIM_SECONDS, SessionFolder, Taken, coco_counts

ME, YOU = "token-of-me", "token-of-you"


@pytest.fixture
def folder(tmp_path: Path, sections: Any) -> SessionFolder:
    (tmp_path / "images" / "deeper").mkdir(parents=True)
    for number, name in enumerate(["a.png", "deeper/b.png"]):
        Image.fromarray(sections.image(number)).save(tmp_path / "images" / name)
    (tmp_path / "secret.png").write_bytes((tmp_path / "images" / "a.png").read_bytes())
    (tmp_path / "images" / "link.png").symlink_to(tmp_path / "secret.png")
    return SessionFolder(tmp_path / "images", tmp_path / "images" / "out", ("cell", "mitochondrion"))


def work(folder: SessionFolder, name: str, segmenter: Segmenter, sections: Any, index: int = 0) -> Session:
    """Two accepted objects, of classes 1 and 2, and one that is not."""
    session = Session(sections.image(index), segmenter, name)
    for kind, box in enumerate([(40, 60, 120, 130), (150, 20, 230, 90)], start=1):
        session.begin_box(box, kind)
        session.accept()
    session.begin_box((10, 150, 60, 220))
    folder.claim(name, ME, "me")
    folder.save(session, ME, "me", masks=True)
    return session


def test_what_is_written(folder: SessionFolder, segmenter: Segmenter, sections: Any) -> None:
    assert folder.names() == ["a.png", "deeper/b.png"]  # neither what it wrote itself nor what a link leads to
    session = work(folder, "a.png", segmenter, sections)
    work(folder, "deeper/b.png", segmenter, sections, 1)
    with Image.open(folder.label_path("a.png")) as labels:
        assert labels.mode == "I;16"
        np.testing.assert_array_equal(np.asarray(labels), session.export().labels)
    coco = json.loads((folder.out / "coco.json").read_text())
    assert [one["name"] for one in coco["categories"]] == ["cell", "mitochondrion"]
    assert [one["image_id"] for one in coco["annotations"]] == [1, 1, 2, 2]
    for one in coco["annotations"][:2]:
        runs = one["segmentation"]["counts"]
        flat = np.repeat(np.arange(len(runs)) % 2, runs)
        mask = flat.reshape(one["segmentation"]["size"], order="F") > 0
        np.testing.assert_array_equal(mask, session.mask(one["id"]))
        assert one["area"] == mask.sum()
        x, y, w, h = one["bbox"]
        assert mask[y : y + h, x : x + w].sum() == one["area"]
    with open(folder.out / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["image"], row["object"], row["class"], row["annotator"], row["how"]) for row in rows[:2]] == [
        ("a.png", "1", "cell", "me", "as proposed"),
        ("a.png", "2", "mitochondrion", "me", "as proposed"),
    ]
    again = Session.load(folder.stored("a.png") or {}, sections.image(0), segmenter)
    assert again.objects == session.objects
    assert [one["accepted"] for one in folder.overview()] == [2, 2]


def test_nobody_overwrites_anybody(folder: SessionFolder, segmenter: Segmenter, sections: Any) -> None:
    mine = work(folder, "a.png", segmenter, sections)
    with pytest.raises(Taken, match=r"me works on a\.png"):
        folder.claim("a.png", YOU, "you")
    folder.claim("deeper/b.png", YOU, "you")
    assert [one["taken"] for one in folder.overview(ME)] == [None, "you"]
    long_ago = time.time() - CLAIM_SECONDS - 1
    os.utime(folder.out / "sessions" / "a.png.claim", (long_ago, long_ago))
    folder.claim("a.png", YOU, "you")  # I went home
    stored = folder.session_path("a.png").read_bytes()
    with pytest.raises(Taken, match=r"you works on a\.png"):
        folder.save(mine, ME, "me", masks=True)
    assert folder.session_path("a.png").read_bytes() == stored
    folder.release("a.png", ME)  # it is not mine to give
    assert folder.claimed_by("a.png") == "you"
    folder.release("a.png", YOU)
    assert folder.claimed_by("a.png") is None


@pytest.mark.parametrize("name", ["../secret.png", "link.png", "/etc/passwd", "", "deeper/../a.png"])
def test_other_paths_are_refused(folder: SessionFolder, name: str) -> None:
    with pytest.raises(ValueError, match="no image"):
        folder.path(name)


def test_counts_by_hand() -> None:
    mask = np.array([[1, 1], [0, 1]], np.bool_)
    segment = Segment(1, 0, mask, 1.0, 0)
    assert coco_counts(segment, (2, 3)) == [2, 1, 1, 2]
    assert coco_counts(Segment(0, 0, np.zeros((0, 0), np.bool_), 1.0, 0), (2, 3)) == [6]


KILLED = """
import sys
from pathlib import Path
import numpy as np
from PIL import Image
from sam_gym._utils.fetching import atomic_path, write_json
out = Path(sys.argv[1])
number = 0
print("ready", flush=True)
while True:  # what SessionFolder.save does with a label image and a session, as fast as it goes
    number += 1
    with atomic_path(out / "labels" / "a.png") as temporary:
        Image.fromarray(np.full((300, 300), number, np.uint16)).save(temporary, "PNG")
    write_json(out / "sessions" / "a.png.json", {"numbers": [number] * 5000})
"""


def test_a_kill_leaves_whole_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        writer = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        writer.stdout.readline()
        for _ in range(200):
            if (tmp_path / "sessions" / "a.png.json").is_file():
                break
            time.sleep(0.02)
        time.sleep(rng.uniform(0.0, 0.1))
        writer.kill()
        writer.wait()
        writer.stdout.close()
        with Image.open(tmp_path / "labels" / "a.png") as labels:
            assert len(np.unique(np.asarray(labels))) == 1
        assert len(set(json.loads((tmp_path / "sessions" / "a.png.json").read_text())["numbers"])) == 1
