"""Files of boxes: what is read, and what an error names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sam_gym.annotate.cue_boxes import CueBox, read_cue_boxes


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_csv(tmp_path: Path, mark: str) -> None:
    lines = ("x0, image ,y0,x1,y1", "1.5,a.png,2,3,4", "", "5,deep\\b.png,6,7,8", "0,a.png,0,9,9")
    (tmp_path / "boxes.csv").write_text("\ufeff" + "\n".join(lines).replace(",", mark), encoding="utf-8")
    assert read_cue_boxes(tmp_path / "boxes.csv") == {
        "a.png": [CueBox(1, "", (1.5, 2, 3, 4)), CueBox(2, "", (0, 0, 9, 9))],
        "deep/b.png": [CueBox(1, "", (5, 6, 7, 8))],
    }


def test_ids_of_a_csv_are_labels(tmp_path: Path) -> None:
    (tmp_path / "boxes.csv").write_text("image,x0,y0,x1,y1,id\na,0,0,1,1,65535\na,0,0,2,2,7\nb,0,0,2,2,7\n")
    found = read_cue_boxes(tmp_path / "boxes.csv")
    assert [(box.label, box.id) for box in found["a"]] == [(65535, "65535"), (7, "7")]


def test_coco(tmp_path: Path) -> None:
    content = {
        "images": [{"id": 4, "file_name": "a.png"}, {"id": 5, "file_name": "without.png"}],
        "annotations": [{"image_id": 4, "id": 90_001, "bbox": [1, 2, 30, 40]}, {"image_id": 4, "bbox": [0, 0, 1, 1]}],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    assert read_cue_boxes(tmp_path / "boxes.json") == {
        "a.png": [CueBox(1, "90001", (1, 2, 31, 42)), CueBox(2, "", (0, 0, 1, 1))]
    }


HEAD = "image,x0,y0,x1,y1"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("b.csv", "", "holds no box|no column 'image'"),
        ("b.csv", HEAD, "holds no box. CSV: a header"),
        ("b.csv", "image,x0,y0,x1\na,1,2,3", "no column 'y1'; its first line is 'image,x0,y0,x1'"),
        ("b.csv", f"{HEAD}\na,1,2,3,4\na,1,2,3", "line 3: 4 cells under a header of 5"),
        ("b.csv", f"{HEAD}\na,1,2,three,4", "line 2: 'three' is not a number"),
        ("b.csv", f"{HEAD}\na,1,2,nan,4", "line 2: 'nan' is not finite"),
        ("b.csv", f"{HEAD}\n../a.png,1,2,3,4", "line 2: an image is named by its path below the folder of images"),
        ("b.csv", f"{HEAD}\n/home/a.png,1,2,3,4", "got '/home/a.png'"),
        ("b.csv", f"{HEAD}\nx\\..\\..\\a.png,1,2,3,4", "is named by its path below"),
        ("b.csv", f"{HEAD}\n,1,2,3,4", "got ''"),
        ("b.csv", f"{HEAD}\na,5,2,3,4", "line 2: a box needs x0 < x1 and y0 < y1, got 5, 2, 3, 4"),
        ("b.csv", f"{HEAD},id\na,1,2,3,4,0", "line 2: id must be an integer in 1..65535"),
        ("b.csv", f"{HEAD},id\na,1,2,3,4,9\na,1,2,3,5,9", "line 3: a has two boxes of id 9"),
        ("b.json", "{", "is not JSON"),
        ("b.json", "[]", "is not a COCO file"),
        ("b.json", '{"images": []}', "is not a COCO file: KeyError 'annotations'"),
        (
            "b.json",
            '{"images": [], "annotations": [{"image_id": 1, "bbox": [0, 0, 1, 1]}]}',
            "there is no image of id 1",
        ),
        ("b.json", '{"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 1, "bbox": 3}]}', "got 3"),
    ],
)
def test_errors_name_the_place(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read_cue_boxes(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no file of boxes"):
        read_cue_boxes(tmp_path / "boxes.csv")
