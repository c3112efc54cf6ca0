"""`sam-gym segment`: images and boxes in, label images, a table and a contact sheet out, whatever goes wrong."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sam_gym.annotate.contact_sheet import Tile, contact_sheet
from sam_gym.annotate.segmenting import Segmenter
from sam_gym.data.images import open_pixels

Run = Callable[..., tuple[int, str, str]]

TINY = ("--checkpoint", "tiny_random", "--device", "cpu", "--precision", "exact")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three images, three boxes on the first, one on each other."""
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    draw = np.random.default_rng(0)
    for name in ("a.png", "deep/b.jpg", "c.tif"):
        coarse = Image.fromarray(draw.integers(0, 256, (6, 8), dtype=np.uint8))
        coarse.resize((80, 60), Image.Resampling.BICUBIC).save(folder / name)
    write_boxes(
        tmp_path,
        ["a.png,2,3,40,50", "deep/b.jpg,1,1,70,55", "a.png,30,10,60,44", "c.tif,-9,5,30,99", "a.png,8,8,20,20"],
    )
    return folder


def write_boxes(folder: Path, rows: list[str], head: str = "image,x0,y0,x1,y1") -> None:
    (folder / "boxes.csv").write_text("\n".join([head, *rows]) + "\n")


@pytest.fixture
def segment(run: Run, photos: Path) -> Run:
    out, boxes = photos.parent / "out", photos.parent / "boxes.csv"

    def command(*more: str) -> tuple[int, str, str]:
        return run("segment", "--images", str(photos), "--boxes", str(boxes), "--out", str(out), *TINY, *more)

    return command


def table(folder: Path) -> list[dict[str, str]]:
    with open(folder / "boxes.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_what_is_written(segment: Run, tmp_path: Path) -> None:
    status, out, _ = segment()
    assert status == 0
    assert out.startswith("3 of 3 images: 3 segmented, 0 found, 0 failed; 5 masks")
    rows = table(tmp_path / "out")
    order = [("a.png", "1"), ("a.png", "2"), ("a.png", "3"), ("deep/b.jpg", "1"), ("c.tif", "1")]
    assert [(row["image"], row["label"]) for row in rows] == order
    for row in rows:
        labels = open_pixels((tmp_path / "out/labels" / row["image"]).with_suffix(".png"))
        assert (labels.shape, labels.dtype) == ((60, 80), np.uint8)
        painted = int((labels == int(row["label"])).sum())
        assert 0 < painted <= int(row["area"])
        assert 0 <= float(row["predicted_iou"]) <= 1
        assert (row["prompts"], row["error"]) == ("0", "")
    assert open_pixels(tmp_path / "out/contact_sheet.png").shape == (2 * 368 + 8, 2 * 328 + 8, 3)
    stored = json.loads((tmp_path / "out/run.json").read_text())
    assert stored["settings"]["agent"] is None
    assert stored["versions"]["sam_gym"]


def test_large_ids_take_sixteen_bits(segment: Run, tmp_path: Path) -> None:
    write_boxes(tmp_path, ["a.png,2,3,40,50,300"], "image,x0,y0,x1,y1,id")
    status, _, err = segment()
    assert status == 0
    assert "2 of 3 images have no box and are left out, for one c.tif" in err
    labels = open_pixels(tmp_path / "out/labels/a.png")
    assert labels.dtype == np.uint16
    assert np.unique(labels).tolist() == [0, 300]


def test_failures_stop_nobody_and_are_tried_again(segment: Run, photos: Path, tmp_path: Path) -> None:
    whole = (photos / "deep/b.jpg").read_bytes()
    (photos / "deep/b.jpg").write_bytes(whole[:200])
    with open(tmp_path / "boxes.csv", "a") as file:
        file.write("c.tif,200,5,220,30\nd.tif,1,1,9,9\n")
    status, out, err = segment()
    assert status == 1
    assert out.startswith("4 of 4 images: 1 segmented, 0 found, 3 failed; 4 masks")
    assert "cannot segment c.tif: the box 200, 5, 220, 30 lies outside the image of 80 x 60 px" in err
    assert "cannot segment deep/b.jpg: " in err
    assert "--images holds no image d.tif. Did you mean 'c.tif'" in err
    assert [bool(row["error"]) for row in table(tmp_path / "out")] == [False] * 3 + [True, False, True, True]
    (photos / "deep/b.jpg").write_bytes(whole)
    write_boxes(tmp_path, (tmp_path / "boxes.csv").read_text().splitlines()[1:6])
    status, out, _ = segment()
    assert status == 0
    assert out.startswith("3 of 3 images: 2 segmented, 1 found, 0 failed; 2 masks")
    assert not any(row["error"] for row in table(tmp_path / "out") if row["image"] != "d.tif")


def test_it_goes_on_after_an_interruption(segment: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, calls = Segmenter.__call__, []

    def interrupted(self: Segmenter, image: Any, boxes: Any) -> Any:
        calls.append(len(boxes))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return work(self, image, boxes)

    monkeypatch.setattr(Segmenter, "__call__", interrupted)
    status, out, err = segment()
    assert (status, calls) == (130, [3, 1])
    assert out.startswith("1 of 3 images: 1 segmented, 0 found, 0 failed; 3 masks")
    assert "stopped; the same command goes on from here" in err
    assert len(table(tmp_path / "out")) == 3
    with open(tmp_path / "out/boxes.csv", "a") as file:
        file.write("deep/b.jpg,1,,1")  # as a crash leaves it
    status, out, _ = segment()
    assert (status, calls) == (0, [3, 1, 1, 1])
    assert out.startswith("3 of 3 images: 2 segmented, 1 found, 0 failed; 2 masks")
    assert len(table(tmp_path / "out")) == 5
    assert segment()[1].startswith("3 of 3 images: 0 segmented, 3 found")
    assert segment("--overwrite")[1].startswith("3 of 3 images: 3 segmented, 0 found")
    assert calls == [3, 1, 1, 1, 3, 1, 1]


def test_other_boxes_are_done_anew(segment: Run, tmp_path: Path) -> None:
    segment()
    rows = (tmp_path / "boxes.csv").read_text().splitlines()[1:]
    write_boxes(tmp_path, [*rows[:-1], "a.png,8,8,20,21"])
    assert segment()[1].startswith("3 of 3 images: 1 segmented, 2 found")
    assert table(tmp_path / "out")[2]["y1"] == "21"


def test_folders_of_other_settings_are_left_alone(segment: Run, tmp_path: Path) -> None:
    segment()
    before = (tmp_path / "out/boxes.csv").read_bytes()
    status, _, err = segment("--precision", "official")
    assert status == 1
    assert "out holds masks made with precision 'exact', not 'official': name another folder" in err
    assert (tmp_path / "out/boxes.csv").read_bytes() == before
    assert segment("--precision", "official", "--overwrite")[0] == 0


def test_errors_before_any_work(run: Run, segment: Run, photos: Path, tmp_path: Path) -> None:
    status, _, err = segment("--agent", str(tmp_path / "no.zip"))
    assert (status, err.splitlines()[-1]) == (
        1,
        f"error: there is no model {tmp_path / 'no.zip'}; sam-gym train writes runs/NAME/model.zip",
    )
    Image.new("L", (9, 9)).save(photos / "a.bmp")
    write_boxes(tmp_path, ["a.png,1,1,5,5", "a.bmp,1,1,5,5"])
    assert "error: a.png and a.bmp would have one label image: rename one of them" in segment()[2]
    assert not (tmp_path / "out").exists()
    status, _, err = run("segment", "--images", "/no/such", "--boxes", "b.csv", "--out", str(tmp_path / "out"))
    assert (status, err) == (1, "error: --images /no/such is no folder\n")


def test_results_inside_the_images_are_no_images(run: Run, photos: Path) -> None:
    command = ("segment", "--images", str(photos), "--boxes", str(photos.parent / "boxes.csv"))
    for _ in range(2):
        status, _, err = run(*command, "--out", str(photos / "out"), *TINY)
        assert status == 0
        assert "no box" not in err


def test_a_sheet_shows_masks_boxes_and_failures() -> None:
    grey, labels = np.full((40, 80, 3), 100, np.uint8), np.zeros((40, 80), np.uint16)
    labels[10:30, 10:30] = 900
    plain, marked, broken = (
        np.asarray(contact_sheet([tile])).astype(int)
        for tile in (
            Tile("a", "", grey), Tile("a", "", grey, labels, {900: (5, 5, 35, 35)}), Tile("a", "why", failed=True),
        )
    )  # fmt: skip
    changed = (plain != marked).any(axis=2)
    assert changed.sum() > (20 * 4) ** 2  # the mask, enlarged fourfold, and the box around it
    assert not changed[:, 320 // 2 :].any()
    assert (broken[:, :, 0] > 200).any()
    long = contact_sheet([Tile("a name that does not fit " * 9, "")] * 7)
    assert long.size == (3 * 328 + 8, 3 * 368 + 8)


def test_an_interruption_counts_what_was_done_now(segment: Run, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Failures of an earlier run that were not tried again are neither work done nor found."""
    (photos / "c.tif").write_text("no image")
    assert segment()[1].startswith("3 of 3 images: 2 segmented, 0 found, 1 failed")

    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("sam_gym.commands.segment._segment_one", interrupted)
    status, out, _ = segment()
    assert status == 130
    assert out.startswith("2 of 3 images: 0 segmented, 2 found, 0 failed; 0 masks")


def test_a_text_proposes_boxes_once_and_for_itself(run: Run, photos: Path, tmp_path: Path) -> None:
    """Bright and dark blobs on grey: boxes around them are written, segmented, and kept for the same text only."""
    for name in ("deep/b.jpg", "c.tif"):
        (photos / name).unlink()
    scene = np.full((60, 80, 3), 120, np.uint8)
    scene[10:30, 10:35], scene[35:52, 50:72] = (250, 120, 220), (90, 20, 140)
    Image.fromarray(scene).save(photos / "a.png")
    Image.fromarray(np.full((60, 80), 7, np.uint8)).save(photos / "flat.png")

    def text(words: str, *more: str) -> tuple[int, str, str]:
        return run("segment", "--images", str(photos), "--text", words, "--out", str(tmp_path / "out"), *TINY, *more)

    status, out, err = text("nucleus", "--way", "otsu")
    assert status == 0
    assert "nothing is proposed for flat.png: no part of it looks like the text" in err
    assert [file.name for file in tmp_path.rglob("nothing-found/*")] == ["flat.png.png"]
    assert out.startswith("1 of 1 images: 1 segmented")
    rows = (tmp_path / "out/proposals.csv").read_text().splitlines()
    assert rows[0] == "image,x0,y0,x1,y1,x,y,confidence,asked"
    assert rows[1].startswith("a.png,")
    assert len(rows) == 2
    assert text("nucleus", "--way", "otsu")[1].startswith("1 of 1 images: 0 segmented, 1 found")
    status, _, err = text("membrane", "--way", "otsu")
    assert status != 0
    assert "has proposals for nucleus (otsu, clip-micro), not for membrane (otsu, clip-micro)" in err
    for arguments in ((), ("--text", "nucleus", "--boxes", "boxes.csv")):
        status, _, err = run("segment", "--images", str(photos), "--out", str(tmp_path / "other"), *arguments)
        assert status != 0
        assert "give --boxes FILE, or --text WORDS" in err
    assert (
        "no box was proposed for nucleus"
        in run(
            "segment",
            "--images",
            str(photos),
            "--text",
            "nucleus",
            "--way",
            "sam",
            "--out",
            str(tmp_path / "none"),
            *TINY,
        )[2]
    )
